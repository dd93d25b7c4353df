"""Implement MCMC policy optimization with a Langevin flow: TD3 whose actions go through a learned flow.

Johnson, "Markov Chain Monte Carlo Policy Optimization", 3.1 and 4. K coupling layers move the policy's action
along the gradient of Q and keep it near the previous policy's (eq. (8) and (9)). Policy and layers maximise
(eq. (10))

    J = E[Q(s, a_K) - beta |a_K - a_t|]

where a_t is the action of delayed copies of both, and beta is set by PID control that holds the mean distance at a
target (4.1). With `form: paper`, as printed, a_t is the previous policy's action before the flow. That form drifts: the
distance includes the flow's own displacement, which the policy then compensates.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from rllib_hpo.algorithms.base import Memory, Metrics, Noise
from rllib_hpo.algorithms.footprint import (
    COPIES_LEARNED,
    COPIES_WITH_TARGET,
    FLOAT,
    Part,
    batch_part,
    policy_and_critics,
)
from rllib_hpo.algorithms.td3 import TD3, DeterministicActor, TD3Model, TD3Settings
from rllib_hpo.networks.mlp import MLP
from rllib_hpo.networks.normalized_critics import make_critics
from rllib_hpo.optim.pid import Multiplier, MultiplierSettings, NonNegative
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch
from rllib_hpo.samplers.langevin_flow import (
    ActionTarget,
    FlowTarget,
    ForceParts,
    LangevinFlow,
    PreTanhTarget,
    smooth_norm,
)
from rllib_hpo.settings import PositiveFloat, PositiveInt, UnitInterval
from rllib_hpo.streams import torch_generator


class LangevinPOSettings(TD3Settings, MultiplierSettings):
    """MCMC policy optimization with a Langevin flow ("Markov Chain Monte Carlo Policy Optimization", 3.1)."""

    sampler: ClassVar[str] = "langevin_flow"
    follows_gradient: ClassVar[bool] = True
    changeable: ClassVar[frozenset[str]] = (
        TD3Settings.changeable
        | MultiplierSettings.multiplier_changeable
        | frozenset("prior_tau proximity flow_step_size".split())
    )

    initial_kappa: Annotated[
        NonNegative,
        Field(description="Initial output and integral of the PID control, in units of the force."),
    ] = 0.0
    min_kappa: Annotated[
        NonNegative, Field(description="Minimum output of the PID control, in units of the force.")
    ] = 0.0
    max_kappa: Annotated[
        PositiveFloat, Field(description="Upper bound of the PID control's integral, in units of the force.")
    ] = 10.0
    flow_layers: Annotated[int, Field(ge=1, le=100, description="Coupling layers K.")] = 2
    flow_units: Annotated[
        PositiveInt, Field(description="Units of the hidden layer in each network of a coupling layer.")
    ] = 16
    flow_step_size: Annotated[
        PositiveFloat, Field(description="Step size epsilon of the coupling layers.")
    ] = 0.1
    flow_sees_state: Annotated[
        bool, Field(description="Whether the state is an input of the coupling layers' networks.")
    ] = True
    proximity: Annotated[
        bool, Field(description="Whether the force includes the pull towards the previous policy's action.")
    ] = True
    prior_tau: Annotated[
        UnitInterval, Field(description="Polyak rate of the previous policy and flow, per policy update.")
    ] = 0.01
    alternate: Annotated[
        bool, Field(description="On each batch, update first the policy, then the flow, eq. (11).")
    ] = False
    form: Annotated[
        Literal["matched", "paper"],
        Field(
            description="'matched': distance between two actions after the flow, in pre-tanh coordinates; "
            "'paper': as printed (which drifts): an action after the flow against one before it, the "
            "force with the sign of eq. (9), beta in absolute units."
        ),
    ] = "matched"

    @override
    def notices(self) -> list[str]:
        """Warn of the equations as printed."""
        return [*super().notices(), *([PAPER_FORM_NOTICE] if self.form == "paper" else [])]

    def distance_target(self, action_dim: int) -> float:
        """Return the distance that the PID control aims at.

        'auto' is about how far a policy moves from its copy without any control.
        """
        target = self.target_distance
        return 0.05 * math.sqrt(action_dim / 2) if target == "auto" else target


PAPER_FORM_NOTICE = (
    "form='paper' uses the paper's equations as printed, which measure an action after the flow against one "
    "before it. On Reacher the return fell from -11 to -84 in 8,000 steps (docs/mcmc-po.md)."
)
_Part = Callable[[ForceParts], Tensor]


class LangevinPOActor(DeterministicActor):
    """Hold the policy, the flow, the previous policy and target critics that set its force, and the multiplier."""

    settings: LangevinPOSettings

    def __init__(self, obs_dim: int, action_dim: int, settings: LangevinPOSettings, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings, seed)
        is_paper = settings.form == "paper"
        self.flow = LangevinFlow(
            obs_dim if settings.flow_sees_state else 0,
            action_dim,
            settings.flow_layers,
            settings.flow_units,
            settings.flow_step_size,
            is_paper,
            torch_generator(seed, "initial weights", "flow"),
        )
        self.previous_policy = copy.deepcopy(self.policy).requires_grad_(False)
        stream = torch_generator(seed, "initial weights", "critics")
        # A model's own critics are equal: they come from the same stream.
        critics = make_critics(obs_dim, action_dim, settings, stream, settings.num_critics)
        self.target_critics = critics.requires_grad_(False)
        self.multiplier = Multiplier(settings, settings.distance_target(action_dim), literal=is_paper)

    @property
    @override
    def acting(self) -> nn.Module:
        return nn.ModuleDict({"policy": self.policy, "flow": self.flow})

    def target(self, obs: Tensor, beta: Tensor | None = None) -> FlowTarget:
        """Return the target of the flow at obs (B, S); `beta` defaults to the multiplier's."""
        critic = self.target_critics.condition(obs, num=1)
        with torch.no_grad():
            previous = self.previous_policy(obs)
        if self.settings.form == "paper":
            return ActionTarget(critic, previous, self.multiplier.beta() if beta is None else beta)
        return PreTanhTarget(critic, previous)

    def whole(self, parts: ForceParts) -> Tensor:
        """Return the force: both parts, or without `proximity` that of Q alone."""
        return parts.value + parts.proximity if self.settings.proximity else parts.value

    def flowed(
        self,
        policy: MLP,
        flow: LangevinFlow,
        obs: Tensor,
        target: FlowTarget,
        part: _Part | None = None,
    ) -> Tensor:
        """Return x_K (B, A) of a policy and a flow, in the target's coordinates.

        Args:
            policy: The policy, whose actions the flow starts from.
            flow: The flow.
            obs: States, (B, S).
            target: The flow's target at these states.
            part: Selects the part of the force that moves the action; by default `whole`.
        """
        force = self.whole if part is None else part
        last: Tensor = flow(target.position(policy(obs)), obs, lambda position: force(target.parts(position)))
        return last

    @override
    def forward(self, obs: Tensor, memory: Memory | None = None) -> Tensor:
        """See `Actor.forward`."""
        target = self.target(obs)
        return target.action(self.flowed(self.policy, self.flow, obs, target))


class LangevinPOModel(LangevinPOActor, TD3Model):
    """Add the critics, the targets of all networks, and the previous flow to the actor."""

    def __init__(self, obs_dim: int, action_dim: int, settings: LangevinPOSettings, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings, seed)
        self.target_flow = copy.deepcopy(self.flow).requires_grad_(False)
        self.previous_flow = copy.deepcopy(self.flow).requires_grad_(False)

    @override
    def target_action(self, obs: Tensor) -> Tensor:
        target = self.target(obs)
        return target.action(self.flowed(self.target_policy, self.target_flow, obs, target))

    @torch.no_grad()
    def previous_action(self, obs: Tensor, target: FlowTarget) -> Tensor:
        """Return the action (B, A) from which the distance is measured, in coordinates of actions."""
        if self.settings.form == "paper":
            return torch.tanh(self.previous_policy(obs))
        return target.action(self.flowed(self.previous_policy, self.previous_flow, obs, target))


class LangevinPO(TD3[LangevinPOSettings, LangevinPOModel]):
    """Update the critics as TD3 does; with the policy, update flow, previous copies, multiplier and targets."""

    actor_class: ClassVar[type[Any]] = LangevinPOActor
    model_class: ClassVar[type[Any]] = LangevinPOModel

    @override
    def trained(self, model: LangevinPOModel) -> Mapping[str, Sequence[Tensor]]:
        policy, flow = list(model.policy.parameters()), list(model.flow.parameters())
        parts = {"policy": policy, "flow": flow} if self.settings.alternate else {"policy": policy + flow}
        return {"critic": list(model.critics.parameters()), **parts}

    @override
    def improve(self, model: LangevinPOModel, obs: Tensor, steps: Steps) -> Metrics:
        """Ascend eq. (10), then update the previous policy, the previous flow and the multiplier."""
        scale = model.multiplier.next_scale(steps.mean(self.gradient_norm(model, obs)))
        beta = model.multiplier.beta(scale)
        loss, distance = self.loss(model, obs, beta)
        steps.descend("policy", loss)
        if "flow" in steps:  # theta first, then h with the new theta, eq. (11)
            steps.descend("flow", self.loss(model, obs, beta)[0])

        distance = steps.mean(distance)
        model.multiplier.store_scale(steps, scale)
        model.multiplier.control(steps, distance)
        for target, online in ((model.previous_policy, model.policy), (model.previous_flow, model.flow)):
            steps.track(target, online, self.settings.prior_tau)
        steps.track(model.target_flow, model.flow, self.settings.tau)
        return {"policy_loss": loss.detach(), "prior_distance_mean": distance}

    @torch.no_grad()
    def gradient_norm(self, model: LangevinPOModel, obs: Tensor) -> Tensor:
        """Return the mean norm of Q_1's gradient at the actions before the flow, a scalar."""
        critic = model.target_critics.condition(obs, num=1)
        _, gradient = critic.minimum_and_gradient(torch.tanh(model.policy(obs)))
        return torch.linalg.vector_norm(gradient, dim=-1).mean()

    def loss(self, model: LangevinPOModel, obs: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss -E[Q_1(s, a_K) - beta |a_K - a_t|], eq. (10), and the mean distance, both scalars."""
        target = model.target(obs, beta)
        last = model.flowed(model.policy, model.flow, obs, target)
        action = target.action(last)
        # As printed, an action may lie outside the bounds, where only the distance can bring it back.
        measured = last if self.settings.form == "paper" else action
        distance = smooth_norm(measured - model.previous_action(obs, target)).mean()
        return beta * distance - model.critics.first(obs, action).mean(), distance

    @override
    @torch.no_grad()
    def diagnose(self, model: LangevinPOModel, batch: Batch, noise: Noise) -> Metrics:
        """Return distance, multiplier, gain in Q_1, and how far the flow and each of its parts move an action.

        A flow under one part of the force alone measures that part, minus what the networks do without a force.
        """
        obs, target = batch.obs, model.target(batch.obs)

        def ended(part: _Part | None = None) -> Tensor:
            return target.action(model.flowed(model.policy, model.flow, obs, target, part))

        action, first = ended(), torch.tanh(model.policy(obs))
        unforced = ended(lambda parts: torch.zeros_like(parts.value))
        measured = model.flowed(model.policy, model.flow, obs, target)
        measured = measured if self.settings.form == "paper" else target.action(measured)
        q = model.target_critics.first
        return {
            "prior_distance": smooth_norm(measured - model.previous_action(obs, target)).mean(),
            **model.multiplier.described(),
            "step_size_mean": torch.full_like(model.multiplier.kappa, self.settings.flow_step_size),
            "q_gain": (q(obs, action) - q(obs, first)).mean(),
            "displacement": _mean_norm(action - first),
            "displacement_value": _mean_norm(ended(attrgetter("value")) - unforced),
            "displacement_prior": _mean_norm(ended(attrgetter("proximity")) - unforced),
            "displacement_networks": _mean_norm(unforced - first),
        }

    @override
    def actor_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """Return the sizes of the policy, the previous policy, the target critics and the flow."""
        settings = self.settings
        return [_networks(settings, obs_dim, action_dim, 2, 1), _flow_part(settings, action_dim, 1)]

    @override
    def learner_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """Return the sizes of all networks with their copies and optimizers, and of a batch."""
        settings = self.settings
        copies = COPIES_WITH_TARGET + 1, COPIES_WITH_TARGET
        flow = _flow_part(settings, action_dim, COPIES_LEARNED + 2)
        return [
            _networks(settings, obs_dim, action_dim, *copies),
            flow,
            batch_part(settings, obs_dim, action_dim),
        ]


def _mean_norm(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1).mean()


def _networks(
    settings: LangevinPOSettings, obs_dim: int, action_dim: int, of_policy: int, of_critics: int
) -> Part:
    return policy_and_critics(
        settings,
        obs_dim,
        action_dim,
        copies_of_policy=of_policy,
        copies_of_critics=of_critics,
        policy_outputs=action_dim,
        num_critics=settings.num_critics,
    )


def _flow_part(settings: LangevinPOSettings, action_dim: int, copies: int) -> Part:
    """Return the size of the layers' networks, without their weights of the state."""
    per_network = 2 * action_dim * settings.flow_units
    return Part(FLOAT * copies * settings.flow_layers * 3 * per_network, "flow_units")

"""Implement SAC and SAC-HPO under a cost limit: cost critics, a Lagrange multiplier and a shield.

Xu & Fekri 2021, arXiv 2103.12020, IV-D and V-B. The shield is SAC-HPO's. The policy maximises

    E[min Q(s, a) - lambda Q_C(s, a) - alpha log pi(a|s)],

actions of SAC-HPO evolve along the gradient of min Q - lambda Q_C, and lambda <- [lambda + eta (J_C - d_0)]_+.
(The paper prints Q + lambda Q_C for SAC-HPO, which would seek costs; its baseline has the minus.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from rllib_hpo.algorithms.base import Actor, Episode, Memory, Metrics, Noise, Remembered
from rllib_hpo.algorithms.footprint import (
    COPIES_WITH_TARGET,
    FLOAT,
    Part,
    mlp_weights,
)
from rllib_hpo.algorithms.losses import critic_loss
from rllib_hpo.algorithms.sac import SamplerActor, SoftActorCritic, SoftActorCriticModel
from rllib_hpo.costs import largest_step_cost
from rllib_hpo.errors import SettingsError
from rllib_hpo.networks.critics import ActionValue, ConditionedCritic, SubtractedCritic
from rllib_hpo.networks.normalized_critics import make_critics
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch, Column
from rllib_hpo.samplers.base import Mode, Sample, draw_noise, zero_noise
from rllib_hpo.samplers.hamiltonian import HamiltonianSampler
from rllib_hpo.samplers.leapfrog import LeapfrogState
from rllib_hpo.samplers.shield import (
    Fallback,
    MomentumRefresh,
    Shielded,
    ShieldOptions,
    lyapunov_bound,
    shielded,
)
from rllib_hpo.settings import (
    ActorCriticSettings,
    PositiveFloat,
    PositiveInt,
    SACHPOSettings,
    SACSettings,
    layer_units,
)
from rllib_hpo.streams import TorchStreams, torch_generator

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LATEST_EPISODES = 10
"""Number of finished episodes over which J_C is averaged."""
_MOVE = "update and multiplier"
_DELAY = 10
"""Multiplier updates that the derivative of "pid" looks back."""


class ConstraintSettings(ActorCriticSettings):
    """Settings shared by SAC and SAC-HPO under a cost limit."""

    changeable: ClassVar[frozenset[str]] = ActorCriticSettings.changeable | frozenset(
        """
        cost_max cost_horizon terminated_cost lagrange_lr lagrange_kp lagrange_kd lagrange_smoothing lagrange_every
        lagrange_max lagrange_rescale lagrange_estimate
        """.split()
    )

    cost_critics: Annotated[
        Literal[1, 2], Field(description="Number of cost critics; of two, the larger value is used.")
    ] = 1
    cost_initial: Annotated[
        NonNegative | Literal["limit"],
        Field(
            description="Initial value of the cost critics: a number, or the discounted limit. They take about 1 "
            "/ (tau (1 - gamma)) updates to learn their level, and a shield relies on this value "
            "until then."
        ),
    ] = 0.0
    cost_max: Annotated[
        PositiveFloat | Literal["auto"],
        Field(
            description="Maximum cost of a step, which bounds the cost critics' targets; 'auto': 1 for speed and "
            "torque, unbounded for info. With an action repeat, multiply it by the number of repeats."
        ),
    ] = "auto"
    cost_horizon: Annotated[
        PositiveInt,
        Field(
            description="Steps of a full episode, used to convert an undiscounted limit into a discounted one for "
            "the shield, and a mean cost into a sum."
        ),
    ] = 1_000
    terminated_cost: Annotated[
        NonNegative,
        Field(description="Discounted cost charged to a terminated episode after its last step."),
    ] = 0.0
    lagrange: Annotated[
        Literal["integral", "pid"],
        Field(
            description="Rule of the multiplier: the integral of J_C - cost_limit (the paper's), or PID control "
            "of J_C / cost_limit - 1 (Stooke et al. 2020)."
        ),
    ] = "integral"
    lagrange_lr: Annotated[NonNegative, Field(description="Gain eta of the integral.")] = 0.1
    lagrange_kp: Annotated[NonNegative, Field(description="Gain of the proportional part of 'pid'.")] = 0.5
    lagrange_kd: Annotated[NonNegative, Field(description="Gain of the derivative part of 'pid'.")] = 0.5
    lagrange_smoothing: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Decay of the moving averages of error and cost in 'pid', per update of the multiplier.",
        ),
    ] = 0.95
    lagrange_every: Annotated[
        PositiveInt,
        Field(
            description="Environment steps between updates of the multiplier, which begin after the warm-up."
        ),
    ] = 1_000
    lagrange_max: Annotated[PositiveFloat, Field(description="Upper bound of the multiplier.")] = 1_000.0
    lagrange_rescale: Annotated[bool, Field(description="Divide the policy loss by 1 + the multiplier.")] = (
        False
    )
    lagrange_estimate: Annotated[
        Literal["sum", "mean"],
        Field(
            description="J_C of an episode: the sum of its costs, or their mean times the sum of a constant cost "
            "of 1, which early termination does not lower."
        ),
    ] = "sum"

    @model_validator(mode="after")
    def _check_pid(self) -> Self:
        if self.lagrange == "pid" and self.cost_limit == 0:
            raise ValueError("lagrange='pid' divides by cost_limit, which must be above 0")
        return self

    @override
    def notices(self) -> list[str]:
        """List gains without effect."""
        names = "lagrange_kp lagrange_kd lagrange_smoothing" if self.lagrange == "integral" else ""
        return [*super().notices(), *_without_effect(self, names, "lagrange='integral'")]

    @override
    def largest_cost(self) -> float | None:
        if self.cost is None or self.cost_max != "auto":
            return None if self.cost_max == "auto" else self.cost_max
        return largest_step_cost(self.cost)

    @property
    def most_to_come(self) -> float | None:
        """The largest possible discounted sum of costs, C_max / (1 - gamma); None if unbounded."""
        largest = self.largest_cost()
        return None if largest is None or self.gamma == 1 else largest / (1 - self.gamma)

    @property
    def steps_that_count(self) -> float:
        """The sum of a constant cost of 1: discounted without end, or undiscounted over a full episode."""
        if self.cost_discounting == "undiscounted" or self.gamma == 1:
            return float(self.cost_horizon)
        return 1 / (1 - self.gamma)

    @property
    def discounted_limit(self) -> float:
        """The limit d_0 for a discounted sum of costs.

        An undiscounted limit is spread evenly over a full episode of T steps: cost_limit (1 - gamma^T) / ((1 - gamma)
        T).
        """
        limit = self.cost_limit or 0.0
        if self.cost_discounting == "discounted" or self.gamma == 1:
            return limit
        steps = self.cost_horizon
        return limit * (1 - self.gamma**steps) / ((1 - self.gamma) * steps)

    def estimate(self, episode: Episode) -> float:
        """Return J_C of an episode, in the units of `cost_limit`."""
        if self.lagrange_estimate == "mean":
            return self.steps_that_count * episode.cost / max(episode.length, 1)
        return episode.cost if self.cost_discounting == "undiscounted" else episode.cost_discounted


class SACLagrangianSettings(SACSettings, ConstraintSettings):
    """SAC that keeps the cost of an episode within a limit, by a Lagrange multiplier (arXiv 2103.12020, V-B)."""


class SACHPOLagrangianSettings(SACHPOSettings, ConstraintSettings):
    """SAC-HPO under a cost limit: a multiplier, and leapfrog steps under a test (arXiv 2103.12020, Algorithm 3)."""

    changeable: ClassVar[frozenset[str]] = (
        SACHPOSettings.changeable
        | ConstraintSettings.changeable
        | frozenset("shield_steps test_initial momentum_refresh fallback".split())
    )

    shield: Annotated[
        Literal["none", "lyapunov"],
        Field(
            description="'lyapunov': take leapfrog steps until an action passes the test of its predicted cost, "
            "in training and evaluations but not in losses."
        ),
    ] = "lyapunov"
    shield_steps: Annotated[
        PositiveInt, Field(le=10_000, description="Maximum number of leapfrog steps of the shield.")
    ] = 10
    test_initial: Annotated[
        bool,
        Field(
            description="Whether the action before the first step may pass; the paper tests only after that step."
        ),
    ] = False
    momentum_refresh: Annotated[
        MomentumRefresh,
        Field(
            description="Momentum before each further step: noise added (the paper's), noise alone, or noise "
            "mixed in so that the variance is preserved."
        ),
    ] = "add"
    fallback: Annotated[
        Fallback,
        Field(
            description="Action where none passes: the last (the paper's), or the one with the lowest predicted "
            "cost."
        ),
    ] = "last"

    @model_validator(mode="after")
    def _check_shield(self) -> Self:
        if self.shield == "none":
            return self
        if self.tempering:
            raise ValueError(
                "tempering=true scales the momentum by a schedule over leapfrog_steps, but the shield takes a "
                "varying number of steps: set tempering=false or shield='none'"
            )
        for name in ("explore_sampler", "train_sampler"):
            if getattr(self, name) != "hamiltonian":
                raise ValueError(
                    f"shield='lyapunov' requires leapfrog steps: set {name}='hamiltonian' or shield='none'"
                )
        return self

    @override
    def notices(self) -> list[str]:
        """List settings of the shield without effect."""
        names = "shield_steps test_initial momentum_refresh fallback" if self.shield == "none" else ""
        return [*super().notices(), *_without_effect(self, names, "shield='none'")]


def _without_effect(settings: ActorCriticSettings, names: str, because: str) -> list[str]:
    """Return a sentence on each of these settings that was changed."""
    fields = type(settings).model_fields
    changed = [name for name in names.split() if getattr(settings, name) != fields[name].default]
    return [f"{name}={getattr(settings, name)!r} has no effect with {because}." for name in changed]


class ConstrainedActor(SamplerActor):
    """Hold a sampler whose force accounts for costs, the multiplier, the target cost critics and perhaps a shield.

    Its memory holds the predicted cost of each episode and, with a shield, the first observation and the counts of the
    test.

    Initial weights that SAC has too equal SAC's of the same seed.
    """

    settings: ConstraintSettings
    multiplier: Tensor

    def __init__(self, obs_dim: int, action_dim: int, settings: ConstraintSettings, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings, seed)
        stream = torch_generator(seed, "initial weights", "cost critics")
        critics = make_critics(obs_dim, action_dim, settings, stream, settings.cost_critics)
        self.target_cost_critics = critics.requires_grad_(False)
        initial = settings.discounted_limit if settings.cost_initial == "limit" else settings.cost_initial
        self.target_cost_critics.biases[-1].data.add_(initial)
        self.register_buffer("multiplier", torch.zeros(()))

    @property
    def has_shield(self) -> bool:
        """Whether a shield tests actions."""
        return isinstance(self.settings, SACHPOLagrangianSettings) and self.settings.shield != "none"

    @property
    @override
    def memory(self) -> Mapping[str, Remembered]:
        predicted = {"q_cost_start": Remembered((), only_exploring=True, recorded=True)}
        if not self.has_shield:
            return predicted
        return predicted | {
            "first_obs": Remembered((self.obs_dim,)),
            "shield": Remembered((3,), only_exploring=True, recorded=True),  # decisions, passed, steps
        }

    @override
    @torch.no_grad()
    def begin(self, obs: Tensor, *, explores: bool = True) -> Memory:
        begun = super().begin(obs, explores=explores)
        if "q_cost_start" in begun:
            begun["q_cost_start"] = self.target_cost_critics.maximum(obs, self.reference(obs))
        if "first_obs" in begun:
            begun["first_obs"] = obs.clone()
        return begun

    @override
    def force_critic(self, obs: Tensor, target_critics: ConditionedCritic) -> ActionValue:
        """Return min Q - lambda Q_C of the target critics."""
        return SubtractedCritic(target_critics, self.target_cost_critics.condition(obs), self.multiplier)

    def reference(self, obs: Tensor) -> Tensor:
        """Return b(s), the policy's noise-free actions (B, A) without the shield."""
        return self.action(obs, zero_noise(self.sampler, obs.shape[0], obs.device), "train")

    @override
    def forward(self, obs: Tensor, memory: Memory | None = None) -> Tensor:
        """See `Actor.forward`."""
        settings = self.settings
        if not isinstance(settings, SACHPOLagrangianSettings) or settings.shield == "none":
            return self.reference(obs)
        first_obs = obs if memory is None else memory["first_obs"]
        noise = zero_noise(self.sampler, obs.shape[0], obs.device)
        refreshed = obs.new_zeros((obs.shape[0], settings.shield_steps, self.action_dim))
        return self._shielded(obs, first_obs, noise, refreshed, "train").action

    @override
    def explore(self, obs: Tensor, streams: TorchStreams, memory: Memory) -> Tensor:
        """See `Actor.explore`."""
        settings = self.settings
        if not isinstance(settings, SACHPOLagrangianSettings) or settings.shield == "none":
            return super().explore(obs, streams, memory)
        noise, generator = draw_noise(self.sampler, len(obs), streams, obs.device), streams["shield"]
        shape = (len(obs), settings.shield_steps, self.action_dim)
        refreshed = torch.randn(shape, generator=generator, device=generator.device).to(obs.device)
        found = self._shielded(obs, memory["first_obs"], noise, refreshed, "explore")
        counts = torch.stack([torch.ones_like(found.accepted), found.accepted, found.num_steps], dim=-1)
        memory["shield"] = memory["shield"] + counts
        return found.action

    def _shielded(
        self, obs: Tensor, first_obs: Tensor, noise: Noise, refreshed: Tensor, mode: Mode
    ) -> Shielded:
        """Run Algorithm 3 at states (B, S) of episodes that began at `first_obs` (B, S)."""
        sampler, settings = self.sampler, self.settings
        assert isinstance(sampler, HamiltonianSampler)
        assert isinstance(settings, SACHPOLagrangianSettings)
        num_rows = obs.shape[0]
        both = torch.cat([obs, first_obs])
        reference = self.reference(both)
        costs = self.target_cost_critics.maximum(both, reference)
        limit, gamma = settings.discounted_limit, settings.gamma
        bound = lyapunov_bound(costs[:num_rows], costs[num_rows:], limit, gamma)

        critic = self.force_critic(obs, self.target_critics.condition(obs))
        force = sampler.force(obs, critic, self.alpha)
        action, _ = sampler.initial_action(obs, noise)
        momentum = sampler.initial_momentum(action, noise, mode)
        std = sampler.chains[mode].momentum_std if settings.momentum_noise else 0.0
        return shielded(
            LeapfrogState(action, momentum, force(action)),
            std * refreshed,
            lambda state: sampler.step(state, force, mode),
            self.target_cost_critics.condition(obs).maximum,
            bound,
            reference[:num_rows],
            ShieldOptions(settings.test_initial, settings.momentum_refresh, settings.fallback),
        )


class ConstrainedModel(ConstrainedActor, SoftActorCriticModel):
    """Add online cost critics, the last finished episodes, and the state of the multiplier's rule to the actor."""

    latest: Tensor
    """(10, 6), the last episodes, newest last: J_C, discounted cost, predicted cost, and counts of the shield."""
    num_latest: Tensor
    """Number of valid rows in `latest`."""
    pid_integral: Tensor
    pid_error: Tensor
    pid_cost: Tensor
    pid_past_costs: Tensor

    def __init__(self, obs_dim: int, action_dim: int, settings: ConstraintSettings, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings, seed)
        self.cost_critics = copy.deepcopy(self.target_cost_critics).requires_grad_(True)
        self.register_buffer("latest", torch.zeros(LATEST_EPISODES, 6))
        self.register_buffer("num_latest", torch.zeros(()))
        if settings.lagrange == "pid":
            for name in ("pid_integral", "pid_error", "pid_cost"):
                self.register_buffer(name, torch.zeros(()))
            self.register_buffer("pid_past_costs", torch.zeros(_DELAY))

    @property
    def mean_of_latest(self) -> Tensor:
        """Return means (6,) over the last episodes; zeros before the first."""
        return self.latest.sum(0) / self.num_latest.clamp(min=1)


class ConstrainedSoftActorCritic(SoftActorCritic[ConstraintSettings, ConstrainedModel]):
    """Update as SAC does, with the cost critics after the critics and the multiplier at intervals."""

    actor_class = ConstrainedActor
    model_class = ConstrainedModel
    columns = (Column("cost"),)

    @override
    def trained(self, model: ConstrainedModel) -> Mapping[str, Sequence[Tensor]]:
        return {"cost": list(model.cost_critics.parameters()), **super().trained(model)}

    @override
    def kind(self, update: int) -> str:
        """Return the kind; the multiplier changes at the update due at each `lagrange_every`-th environment step."""
        between = (
            self.settings.lagrange_every * self.settings.update_to_data or 1.0
        )  # no update is due at step 0
        return _MOVE if update // between > (update - 1) // between else "update"

    @override
    def update(self, model: ConstrainedModel, batch: Batch, noise: Noise, steps: Steps, kind: str) -> Metrics:
        multiplier = model.multiplier.clone()
        metrics = super().update(model, batch, noise, steps, kind)
        steps.track(model.target_cost_critics, model.cost_critics, self.settings.tau)
        if kind == _MOVE:
            self.move_multiplier(model, steps)
        return metrics | {"lambda": multiplier}

    @override
    def learn_critics(
        self,
        model: ConstrainedModel,
        batch: Batch,
        next_sample: Sample,
        target_critics: ConditionedCritic,
        alpha: Tensor,
        steps: Steps,
    ) -> Metrics:
        metrics = super().learn_critics(model, batch, next_sample, target_critics, alpha, steps)
        q_cost = model.cost_critics(batch.obs, batch.action)
        loss = critic_loss(q_cost, self.cost_target(model, batch, next_sample.action))
        steps.descend("cost", loss)
        return metrics | {"cost_loss": loss.detach(), "q_cost_mean": q_cost.detach().amax(0).mean()}

    @torch.no_grad()
    def cost_target(self, model: ConstrainedModel, batch: Batch, next_action: Tensor) -> Tensor:
        """Return c + gamma Q_C(s', a'), (B,), with Q_C clipped to its possible range.

        At a terminal state `terminated_cost` replaces Q_C. The next action a' (B, A) is drawn without the shield, so
        that costs are not underestimated.
        """
        settings = self.settings
        to_come = model.target_cost_critics.maximum(batch.next_obs, next_action)
        to_come = to_come.clamp(min=0.0, max=settings.most_to_come)
        value = torch.where(batch.terminated > 0, settings.terminated_cost, to_come)
        return torch.add(batch.extras["cost"], value, alpha=settings.gamma)

    @override
    def objective(
        self, model: ConstrainedModel, batch: Batch, action: Tensor, target_critics: ConditionedCritic
    ) -> Tensor:
        """Return min Q - lambda Q_C, (B,)."""
        is_online = self.settings.objective_critic == "online"
        critics = model.cost_critics if is_online else model.target_cost_critics
        cost = critics.maximum(batch.obs, action)
        return super().objective(model, batch, action, target_critics) - model.multiplier * cost

    @override
    def policy_loss(
        self,
        model: ConstrainedModel,
        batch: Batch,
        sample: Sample,
        target_critics: ConditionedCritic,
        alpha: Tensor,
    ) -> Tensor:
        loss = super().policy_loss(model, batch, sample, target_critics, alpha)
        return loss / (1 + model.multiplier) if self.settings.lagrange_rescale else loss

    @torch.no_grad()
    def move_multiplier(self, model: ConstrainedModel, steps: Steps) -> None:
        """Set lambda <- lambda + eta (J_C - d_0), clipped to [0, lagrange_max], or to the PID rule's value.

        It does not change before an episode has ended after the warm-up.
        """
        settings, has_any = self.settings, model.num_latest > 0
        assert settings.cost_limit is not None
        cost = model.mean_of_latest[0]
        if settings.lagrange == "integral":
            value = model.multiplier + settings.lagrange_lr * (cost - settings.cost_limit)
        else:
            value = self._move_pid(model, steps, cost / settings.cost_limit, has_any)
        value = value.clamp(0.0, settings.lagrange_max)
        steps.assign(model.multiplier, torch.where(has_any, value, model.multiplier))

    def _move_pid(self, model: ConstrainedModel, steps: Steps, cost: Tensor, has_any: Tensor) -> Tensor:
        """Return the multiplier by PID control of J_C / d_0, a scalar.

        Stooke et al. 2020, arXiv 2007.03964, Algorithm 2.
        """
        settings, keep, past = self.settings, self.settings.lagrange_smoothing, model.pid_past_costs
        error = cost - 1
        integral = (model.pid_integral + settings.lagrange_lr * error).clamp(0.0, settings.lagrange_max)
        smooth_error = keep * model.pid_error + (1 - keep) * error
        smooth_cost = keep * model.pid_cost + (1 - keep) * cost
        derivative = (smooth_cost - past[0]).clamp(min=0.0)
        for buffer, new in (
            (model.pid_integral, integral),
            (model.pid_error, smooth_error),
            (model.pid_cost, smooth_cost),
            (past, torch.cat([past[1:], smooth_cost[None]])),
        ):
            steps.assign(buffer, torch.where(has_any, new, buffer))
        return settings.lagrange_kp * smooth_error + integral + settings.lagrange_kd * derivative

    @override
    @torch.no_grad()
    def episodes_ended(self, model: ConstrainedModel, episodes: Sequence[Episode]) -> None:
        """Store the last episodes that ended after the warm-up, whose actions are random."""
        rows = [
            [
                self.settings.estimate(episode),
                episode.cost_discounted,
                *episode.recorded.get("q_cost_start", (0.0,)),
                *episode.recorded.get("shield", (0.0, 0.0, 0.0)),
            ]
            for episode in episodes
            if episode.ended_at > self.settings.warmup_steps
        ]
        if rows:
            new = torch.tensor(rows, dtype=model.latest.dtype).to(model.device)
            model.latest.copy_(torch.cat([model.latest, new])[-LATEST_EPISODES:])
            model.num_latest.add_(len(rows)).clamp_(max=LATEST_EPISODES)

    @override
    @torch.no_grad()
    def diagnose(self, model: ConstrainedModel, batch: Batch, noise: Noise) -> Metrics:
        """Add multiplier, J_C, predicted and realised discounted cost of the last episodes, and counts of the test."""
        cost, discounted, predicted, decisions, passed, taken = model.mean_of_latest
        found = {
            "lambda": model.multiplier.clone(),
            "q_cost_mean": model.cost_critics(batch.obs, batch.action).amax(0).mean(),
        }
        missing = torch.full_like(cost, torch.nan)
        has_any = model.num_latest > 0
        found |= {
            name: torch.where(has_any, value, missing)
            for name, value in (
                ("cost_estimate", cost),
                ("cost_discounted_latest", discounted),
                ("q_cost_start", predicted),
            )
        }
        if model.has_shield:  # 0 / 0 is NaN, which is left out
            found |= {"shield_accept": passed / decisions, "shield_steps_mean": taken / decisions}
        return super().diagnose(model, batch, noise) | found

    @override
    def concerns(self, diagnostics: Mapping[str, float]) -> Mapping[str, str]:
        """Warn of a shield whose test does not discriminate."""
        accepted = diagnostics.get("shield_accept", 0.5)
        if 0.05 <= accepted <= 0.95:
            return {}
        predicted = diagnostics.get("q_cost_start", math.nan)
        realised = diagnostics.get("cost_discounted_latest", math.nan)
        return {
            "shield_accept": (
                f"The shield found a safe action in {100 * accepted:.0f} % of the last episodes' steps, so "
                f"its test hardly discriminates. The cost critic predicts {predicted:.3g} per episode, and "
                f"the discounted cost is {realised:.3g}."
            )
        }

    @override
    def check(self, actor: Actor) -> None:
        """Reject a task that does not report costs.

        Raises:
            SettingsError: If no cost is defined; it names what to set.
        """
        if self.settings.cost is None:
            raise SettingsError(
                "cost=None: a safe algorithm needs a cost. Set cost and cost_limit, for example cost={kind: "
                "speed, limit: 1.0} and cost_limit=10, or choose a task that defines them, for example "
                "halfcheetah-speed1."
            )
        super().check(actor)

    @override
    def actor_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        return [*super().actor_parts(obs_dim, action_dim), self._cost_part(obs_dim, action_dim, copies=1)]

    @override
    def learner_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        copies = COPIES_WITH_TARGET
        return [*super().learner_parts(obs_dim, action_dim), self._cost_part(obs_dim, action_dim, copies)]

    def _cost_part(self, obs_dim: int, action_dim: int, copies: int) -> Part:
        settings = self.settings
        hidden = layer_units(settings.hidden_units, settings.critic_layers)
        weights = mlp_weights(obs_dim + action_dim, hidden, 1)
        return Part(FLOAT * copies * settings.cost_critics * weights, "hidden_units")

"""Implement MCMC policy optimization: a Gaussian policy with Hamiltonian steps near the previous policy.

Johnson, "Markov Chain Monte Carlo Policy Optimization", 3.2 and 4. An action starts as the policy's draw, a_0 ~
pi_theta(.|s), with momentum rho_0 ~ N(0, I), and takes K leapfrog steps towards exp(Q / beta) pi_t N(0, I) (eq. (12)
and (13)), where pi_t is a delayed copy of the policy. Policy and steps maximise (eq. (17))

    J = E[Q(s, a_K) - beta D],   D = log pi_theta(a_0|s) N(rho_0) - log pi_t(a_K|s) N(rho_K).

beta is set by PID control that holds the mean of D at a target (4.1). By default the chain moves in the previous
policy's whitened coordinates; `form: paper` uses the equations as printed, which diverge.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from rllib_hpo.algorithms.base import Actor, Memory, Method, Metrics, Noise
from rllib_hpo.algorithms.footprint import (
    COPIES_LEARNED,
    COPIES_WITH_TARGET,
    FLOAT,
    Part,
    batch_part,
    policy_and_critics,
)
from rllib_hpo.algorithms.losses import bellman_target, critic_loss
from rllib_hpo.errors import SettingsError
from rllib_hpo.networks.critics import ActionValue
from rllib_hpo.networks.mlp import make_mlp
from rllib_hpo.networks.normalized_critics import make_critics
from rllib_hpo.optim.pid import Multiplier, MultiplierSettings, given
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch
from rllib_hpo.samplers import previous
from rllib_hpo.samplers.leapfrog import leapfrog
from rllib_hpo.samplers.previous import (
    ActionTarget,
    ChainTarget,
    Gaussian,
    ScalarGate,
    WhitenedTarget,
    inverse_softplus,
    joint_distance,
)
from rllib_hpo.settings import NetworkSettings, PositiveFloat, PositiveInt, UnitInterval
from rllib_hpo.streams import Draw, TorchStreams, torch_generator

LOG_STD_MAX = 2.0


class MCMCPOSettings(NetworkSettings, MultiplierSettings):
    """MCMC policy optimization with Hamiltonian steps ("Markov Chain Monte Carlo Policy Optimization", 3.2)."""

    sampler: ClassVar[str] = "mcmc"
    follows_gradient: ClassVar[bool] = True
    changeable: ClassVar[frozenset[str]] = (
        NetworkSettings.changeable
        | MultiplierSettings.multiplier_changeable
        | frozenset("leapfrog_steps prior_tau prior_every value_kl min_log_std".split())
    )

    target_distance: Annotated[
        PositiveFloat, Field(description="Target distance D of the PID control, in nats.")
    ] = 0.1
    leapfrog_steps: Annotated[
        int, Field(ge=0, le=10_000, description="Leapfrog steps K; with 0 the policy is the Gaussian.")
    ] = 5
    step_size: Annotated[
        PositiveFloat | Annotated[list[PositiveFloat], Field(min_length=1)],
        Field(description="Initial learned step sizes: one number, or one per action dimension."),
    ] = 0.1
    force_gate: Annotated[
        Literal["none", "gated"],
        Field(description="'none': eq. (13); 'gated': networks T_h and sigma_h, eq. (18) and (19)."),
    ] = "none"
    gate_layers: Annotated[
        int, Field(ge=1, le=4, description="Hidden layers of the networks T_h and sigma_h.")
    ] = 2
    gate_units: Annotated[PositiveInt, Field(description="Units per hidden layer of T_h and sigma_h.")] = 16
    prior: Annotated[
        Literal["polyak", "snapshot"],
        Field(description="The previous policy: a Polyak copy, or a copy made every prior_every updates."),
    ] = "polyak"
    prior_tau: Annotated[UnitInterval, Field(description="Polyak rate of the previous policy.")] = 0.01
    prior_every: Annotated[
        PositiveInt, Field(description="Updates between snapshots of the previous policy.")
    ] = 100
    alternate: Annotated[
        bool,
        Field(
            description="On each batch, update first the policy, then the chain's step sizes and gate, eq. (11)."
        ),
    ] = False
    value_kl: Annotated[
        bool, Field(description="Subtract beta times the distance from the value of the next state.")
    ] = False
    min_log_std: Annotated[
        float,
        Field(
            ge=-20,
            le=0,
            description="Minimum log standard deviation of the policy, which no entropy bonus keeps up.",
        ),
    ] = -3.0
    form: Annotated[
        Literal["whitened", "paper"],
        Field(
            description="'whitened': chains in coordinates whitened by the previous policy; 'paper': chains in "
            "actions, with beta in absolute units, as printed (which diverges)."
        ),
    ] = "whitened"

    @override
    def notices(self) -> list[str]:
        """List settings without effect, and warn of the equations as printed."""
        unused = {
            "force_gate='none'": ("gate_layers", "gate_units") if self.force_gate == "none" else (),
            f"prior={self.prior!r}": ("prior_tau",) if self.prior == "snapshot" else ("prior_every",),
        }
        idle = [
            f"{name} has no effect with {why}."
            for why, names in unused.items()
            for name in given(self, names)
        ]
        return [*super().notices(), *idle, *([PAPER_FORM_NOTICE] if self.form == "paper" else [])]


PAPER_FORM_NOTICE = (
    "form='paper' uses the paper's equations as printed, whose force is singular at the bounds of the "
    "actions. On Pendulum the distance to the previous policy grew to 8e10 and nothing was learned "
    "(docs/mcmc-po.md)."
)


class Drawn(NamedTuple):
    """Actions at B states, their distance, and the actions where the chains started."""

    action: Tensor
    """a_K, (B, A) in [-1, 1]."""
    distance: Tensor
    """D, (B,)."""
    first_action: Tensor
    """a_0, (B, A)."""


class GaussianNetwork(nn.Module):
    """Predict the mean and the bounded log standard deviation before the tanh.

    Args:
        obs_dim: Observation dimension S.
        action_dim: Action dimension A.
        settings: Network sizes and the least log standard deviation.
        generator: Generator of the initial weights.
    """

    def __init__(
        self, obs_dim: int, action_dim: int, settings: MCMCPOSettings, generator: torch.Generator
    ) -> None:
        super().__init__()
        sizes = settings.hidden_units, settings.policy_layers
        self.network = make_mlp(obs_dim, *sizes, 2 * action_dim, generator, settings.policy_activation)
        self._min_log_std = settings.min_log_std

    def forward(self, obs: Tensor) -> Gaussian:
        """Return the Gaussian at obs (B, S)."""
        mean, log_std = self.network(obs).chunk(2, dim=-1)
        return Gaussian(mean, log_std.clamp(self._min_log_std, LOG_STD_MAX))


class MCMCSampler(nn.Module):
    """Hold the learned parts of sampling: the policy, the step size of each dimension, and the gate.

    Raises:
        SettingsError: If `step_size` is a list whose length is not the action dimension.
    """

    def __init__(
        self, obs_dim: int, action_dim: int, settings: MCMCPOSettings, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.settings = settings
        self.policy = GaussianNetwork(obs_dim, action_dim, settings, generator)
        self.raw_step_size = nn.Parameter(inverse_softplus(_step_sizes(settings, action_dim)))
        sizes = settings.gate_layers, settings.gate_units
        self.gate = (
            ScalarGate(obs_dim, action_dim, *sizes, generator) if settings.force_gate == "gated" else None
        )

    @property
    def step_size(self) -> Tensor:
        """epsilon, (A,)."""
        return F.softplus(self.raw_step_size)

    def chain_parameters(self) -> list[nn.Parameter]:
        """Return h: the parameters of the chain, without the policy's."""
        return [self.raw_step_size, *([] if self.gate is None else self.gate.parameters())]

    def evolve(
        self,
        target: ChainTarget,
        obs: Tensor,
        beta: Tensor,
        position: Tensor,
        momentum: Tensor,
        part: previous.Part = previous.whole,
        *,
        final_kick: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Evolve (x_0, rho_0) into (x_K, rho_K), each (B, A), by K leapfrog steps, eq. (13), (18) and (19).

        Args:
            target: The chain's target at these states.
            obs: States, (B, S).
            beta: Scalar.
            position: x_0.
            momentum: rho_0.
            part: Selects the part of the force that moves the chain.
            final_kick: Whether to compute rho_K, which costs one more evaluation of the force.
        """

        def force(position: Tensor) -> Tensor:
            found = part(target.parts(position, beta))
            if self.gate is None:
                return found
            return self.gate(obs, *target.gate_input(position, found), found)

        num_steps, step_size = self.settings.leapfrog_steps, self.step_size
        return leapfrog(
            position, momentum, force, step_size=step_size, num_steps=num_steps, final_kick=final_kick
        )


class MCMCPOActor(Actor):
    """Hold the sampler, the previous policy and target critics that its chain follows, and the multiplier."""

    settings: MCMCPOSettings

    def __init__(self, obs_dim: int, action_dim: int, settings: MCMCPOSettings, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings)
        sampler_stream = torch_generator(seed, "initial weights", "sampler")
        critic_stream = torch_generator(seed, "initial weights", "critics")
        self.sampler = MCMCSampler(obs_dim, action_dim, settings, sampler_stream)
        self.previous = copy.deepcopy(self.sampler.policy).requires_grad_(False)
        self.target_critics = make_critics(obs_dim, action_dim, settings, critic_stream).requires_grad_(False)
        is_literal = settings.form == "paper"
        self.multiplier = Multiplier(settings, settings.target_distance, literal=is_literal)

    @property
    @override
    def acting(self) -> nn.Module:
        return self.sampler

    def target(self, obs: Tensor) -> ChainTarget:
        """Return the target of chains at obs (B, S)."""
        critic: ActionValue = self.target_critics.condition(obs)
        with torch.no_grad():
            previous_policy: Gaussian = self.previous(obs)
        kind = ActionTarget if self.settings.form == "paper" else WhitenedTarget
        return kind(critic, previous_policy)

    def draw(self, obs: Tensor, noise: Noise, beta: Tensor, target: ChainTarget | None = None) -> Drawn:
        """Draw actions and their distance to the previous policy.

        Args:
            obs: States, (B, S).
            noise: Standard normals "base" and "momentum", each (B, A).
            beta: Scalar.
            target: The chain's target at these states, if the caller already has it.
        """
        target = self.target(obs) if target is None else target
        base: Gaussian = self.sampler.policy(obs)
        position, momentum = target.position(base.draw(noise["base"])), noise["momentum"]
        last, last_momentum = self.sampler.evolve(target, obs, beta, position, momentum)
        log_base, log_prior = target.log_base(base, noise["base"]), target.log_prior(last)
        distance = joint_distance(log_base, log_prior, momentum, last_momentum)
        return Drawn(target.action(last), distance, target.action(position))

    def draw_actions(self, obs: Tensor, noise: Noise, beta: Tensor) -> Tensor:
        """Return the actions (B, A) of `draw`, without computing their distance."""
        target, base = self.target(obs), self.sampler.policy(obs)
        position, momentum = target.position(base.draw(noise["base"])), noise["momentum"]
        last, _ = self.sampler.evolve(target, obs, beta, position, momentum, final_kick=False)
        return target.action(last)

    @override
    def forward(self, obs: Tensor, memory: Memory | None = None) -> Tensor:
        """Return noise-free actions: start at the mean, with zero momentum. See `Actor.forward`."""
        nothing = torch.zeros((obs.shape[0], self.action_dim), device=obs.device, dtype=obs.dtype)
        return self.draw_actions(obs, {"base": nothing, "momentum": nothing}, self.multiplier.beta())

    @override
    def explore(self, obs: Tensor, streams: TorchStreams, memory: Memory) -> Tensor:
        """See `Actor.explore`."""
        shape, noise = (len(obs), self.action_dim), {}
        for name in ("base", "momentum"):
            generator = streams[name]  # torch draws only on the generator's own device
            noise[name] = torch.randn(shape, generator=generator, device=generator.device).to(obs.device)
        return self.draw_actions(obs, noise, self.multiplier.beta())


class MCMCPOModel(MCMCPOActor):
    """Add online critics, initially equal to the targets, to the actor."""

    def __init__(self, obs_dim: int, action_dim: int, settings: MCMCPOSettings, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings, seed)
        self.critics = copy.deepcopy(self.target_critics).requires_grad_(True)


class MCMCPO(Method[MCMCPOSettings, MCMCPOModel]):
    """Update critics; policy and chain; previous policy and multiplier; target critics, in this order."""

    actor_class = MCMCPOActor
    model_class = MCMCPOModel

    @override
    def trained(self, model: MCMCPOModel) -> Mapping[str, Sequence[Tensor]]:
        sampler = model.sampler
        policy, chain = list(sampler.policy.parameters()), sampler.chain_parameters()
        parts = {"policy": policy, "chain": chain} if self.settings.alternate else {"policy": policy + chain}
        return {"critic": list(model.critics.parameters()), **parts}

    @override
    def draws(self, model: MCMCPOModel) -> Mapping[str, Draw]:
        """Declare noise for the next states (first half) and the states (second half)."""
        return {name: Draw(2, (model.action_dim,)) for name in ("base", "momentum")}

    @override
    def kind(self, update: int) -> str:
        is_due = self.settings.prior == "snapshot" and update % self.settings.prior_every == 0
        return "update and snapshot" if is_due else "update"

    @override
    def update(self, model: MCMCPOModel, batch: Batch, noise: Noise, steps: Steps, kind: str) -> Metrics:
        num_rows = len(batch.reward)
        next_noise, own_noise = _rows(noise, slice(0, num_rows)), _rows(noise, slice(num_rows, None))
        scale = model.multiplier.next_scale(steps.mean(self.gradient_norm(model, batch.obs, own_noise)))
        beta = model.multiplier.beta(scale)

        q = model.critics(batch.obs, batch.action)
        loss_critic = critic_loss(q, self.bellman_target(model, batch, next_noise, beta))
        steps.descend("critic", loss_critic)

        metrics = self.improve(model, batch.obs, own_noise, steps, kind, scale)
        steps.track(model.target_critics, model.critics, self.settings.tau)
        return {"critic_loss": loss_critic.detach(), "q_mean": q.detach().mean(), **metrics}

    @torch.no_grad()
    def gradient_norm(self, model: MCMCPOModel, obs: Tensor, noise: Noise) -> Tensor:
        """Return the mean norm of Q's gradient at the chains' starts, in their coordinates, a scalar."""
        target, base = model.target(obs), model.sampler.policy(obs)
        gradient = target.gradient(target.position(base.draw(noise["base"])))
        return torch.linalg.vector_norm(gradient, dim=-1).mean()

    @torch.no_grad()
    def bellman_target(self, model: MCMCPOModel, batch: Batch, noise: Noise, beta: Tensor) -> Tensor:
        """Return r + gamma min target Q(s', a_K), or with `value_kl` r + gamma (min target Q - beta D), (B,)."""
        distance: Tensor | None = None
        if self.settings.value_kl:
            action, distance, _ = model.draw(batch.next_obs, noise, beta)
        else:
            action = model.draw_actions(batch.next_obs, noise, beta)
        next_q = model.target_critics.minimum(batch.next_obs, action)
        return bellman_target(batch.reward, batch.terminated, next_q, distance, beta, self.settings.gamma)

    def improve(
        self, model: MCMCPOModel, obs: Tensor, noise: Noise, steps: Steps, kind: str, scale: Tensor
    ) -> Metrics:
        """Ascend eq. (17), then update the previous policy and the multiplier.

        Args:
            model: The model, changed in place by `steps`.
            obs: States, (B, S).
            noise: Noise of the draws at these states, each (B, A).
            steps: Takes gradient steps and writes buffers.
            kind: Kind of this update.
            scale: The multiplier's scale S.
        """
        beta, target = model.multiplier.beta(scale), model.target(obs)
        drawn = model.draw(obs, noise, beta, target)
        loss = self.loss(model, obs, drawn, beta)
        steps.descend("policy", loss)
        if "chain" in steps:  # theta first, then h with the new theta, eq. (11)
            steps.descend("chain", self.loss(model, obs, model.draw(obs, noise, beta, target), beta))

        distance = steps.mean(drawn.distance.mean())
        model.multiplier.store_scale(steps, scale)
        if self.settings.prior == "polyak" or kind == "update and snapshot":
            model.multiplier.control(steps, distance)
            tau = self.settings.prior_tau if self.settings.prior == "polyak" else 1.0
            steps.track(model.previous, model.sampler.policy, tau)
        return {"policy_loss": loss.detach(), "prior_distance_mean": distance}

    def loss(self, model: MCMCPOModel, obs: Tensor, drawn: Drawn, beta: Tensor) -> Tensor:
        """Return the loss -E[min Q(s, a_K) - beta D], eq. (17), a scalar."""
        return (beta * drawn.distance - model.critics.minimum(obs, drawn.action)).mean()

    @override
    @torch.no_grad()
    def diagnose(self, model: MCMCPOModel, batch: Batch, noise: Noise) -> Metrics:
        """Return distance, multiplier, step sizes, gain in Q, and how far each part of the force moves an action.

        Chains moved by one part alone measure that part: Q's gradient, the previous policy's density, and both (drift),
        each with zero momentum. Noise is the distance between the ends with and without momentum.
        """
        obs, own_noise = batch.obs, _rows(noise, slice(len(batch.reward), None))
        beta, target = model.multiplier.beta(), model.target(batch.obs)
        drawn = model.draw(obs, own_noise, beta, target)
        start = target.position(model.sampler.policy(obs).draw(own_noise["base"]))

        def moved(part: previous.Part) -> Tensor:
            still = torch.zeros_like(start)
            last, _ = model.sampler.evolve(target, obs, beta, start, still, part, final_kick=False)
            return target.action(last)

        drifted, critic = moved(previous.whole), model.target_critics.condition(obs)
        step_size = model.sampler.step_size
        return {
            "prior_distance": drawn.distance.mean(),
            **model.multiplier.described(),
            "step_size_mean": step_size.mean(),
            "step_size_min": step_size.min(),
            "step_size_max": step_size.max(),
            "q_gain": (critic.minimum(drawn.action) - critic.minimum(drawn.first_action)).mean(),
            "displacement": _mean_norm(drawn.action - drawn.first_action),
            "displacement_drift": _mean_norm(drifted - drawn.first_action),
            "displacement_noise": _mean_norm(drawn.action - drifted),
            "displacement_value": _mean_norm(moved(attrgetter("value")) - drawn.first_action),
            "displacement_prior": _mean_norm(moved(attrgetter("prior")) - drawn.first_action),
        }

    @override
    def actor_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """Return the sizes of the policy, the previous policy and the target critics."""
        settings = self.settings
        sizes = {"copies_of_policy": 2, "copies_of_critics": 1, "policy_outputs": 2 * action_dim}
        return [policy_and_critics(settings, obs_dim, action_dim, **sizes), _gate_part(settings)]

    @override
    def learner_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """Return the sizes of all networks with their copies and optimizers, and of a batch."""
        settings = self.settings
        networks = policy_and_critics(
            settings,
            obs_dim,
            action_dim,
            copies_of_policy=COPIES_WITH_TARGET,
            copies_of_critics=COPIES_WITH_TARGET,
            policy_outputs=2 * action_dim,
        )
        gate = _gate_part(settings)
        learned = gate._replace(num_bytes=COPIES_LEARNED * gate.num_bytes)
        return [networks, learned, batch_part(settings, obs_dim, action_dim)]


def _step_sizes(settings: MCMCPOSettings, action_dim: int) -> list[float]:
    """Return the initial step sizes, one per action dimension."""
    step_size = settings.step_size
    if not isinstance(step_size, list):
        return [step_size] * action_dim
    if len(step_size) != action_dim:
        raise SettingsError(
            f"step_size has {len(step_size)} numbers, but actions have {action_dim} dimensions; "
            f"give one number or {action_dim}."
        )
    return step_size


def _rows(noise: Noise, rows: slice) -> Noise:
    return {name: value[rows] for name, value in noise.items()}


def _mean_norm(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1).mean()


def _gate_part(settings: MCMCPOSettings) -> Part:
    """Return the size of the hidden layers of the gate's networks."""
    units = settings.gate_units if settings.force_gate == "gated" else 0
    return Part(FLOAT * 2 * (settings.gate_layers - 1) * units * units + FLOAT * 2 * units, "gate_units")

"""Draw SAC-HPO's actions: a tanh-Gaussian draw, evolved by leapfrog steps along the gradient of Q.

Xu & Fekri, arXiv 2103.12020, Algorithm 2 and eq. (9)-(13).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from rllib_hpo.errors import SettingsError
from rllib_hpo.kernels import wants_gradients
from rllib_hpo.kernels.gated_leapfrog import Direction, LeapfrogOptions, gated_leapfrog
from rllib_hpo.networks.critics import ActionValue
from rllib_hpo.samplers.base import Given, Mode, Noise, Sample, Sampler
from rllib_hpo.samplers.forces import GatedForce, unit_gradient
from rllib_hpo.samplers.gaussian import GaussianPolicy, squash
from rllib_hpo.samplers.leapfrog import LeapfrogState, leapfrog, leapfrog_step
from rllib_hpo.samplers.tempering import tempering_scales
from rllib_hpo.settings import SACHPOSettings


@dataclass(frozen=True)
class Chain:
    """The constants of a chain that differ between exploration and training."""

    num_steps: int
    """K; 0 where the sampler is the plain Gaussian (Table II)."""
    momentum_std: float
    """1 / sqrt(beta_0)."""
    inverse_mass: float
    """1 for unit mass; beta_0 for the mass that matches the momentum's variance."""
    momentum_scales: tuple[float, ...] | None
    """Tempering factors, one per step."""


def _chain(settings: SACHPOSettings, sampler: str, momentum_std: float) -> Chain:
    num_steps = settings.leapfrog_steps if sampler == "hamiltonian" else 0
    return Chain(
        num_steps=num_steps,
        momentum_std=momentum_std,
        inverse_mass=1.0 if settings.mass_matrix == "unit" else momentum_std**-2,
        momentum_scales=tempering_scales(momentum_std, num_steps) if settings.tempering else None,
    )


def _chains(settings: SACHPOSettings) -> dict[str, Chain]:
    return {
        "explore": _chain(settings, settings.explore_sampler, settings.momentum_std_explore),
        "train": _chain(settings, settings.train_sampler, settings.momentum_std_train),
    }


class HamiltonianSampler(Sampler):
    """Draw a_0 = tanh(u) and rho_0 ~ N(0, I / beta_0), take K leapfrog steps, and clip once.

    u ~ N(mean(s), std(s)^2).

    Each half kick and drift is a shear, so log q(a_K, rho_K | s) = log pi(a_0 | s) + log N(rho_0), eq. (10): a joint
    density, not that of a_K alone. `Sample.log_prob` is log pi(a_0 | s), the part that depends on
    parameters.

    Raises:
        SettingsError: If `step_size` is a list whose length is not the action dimension.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        settings: SACHPOSettings,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.noise_shapes = {"base": (action_dim,)}
        if settings.momentum_noise:
            self.noise_shapes["momentum"] = (action_dim,)
        self.policy = GaussianPolicy(
            obs_dim,
            action_dim,
            settings.hidden_units,
            settings.policy_layers,
            generator,
            settings.policy_activation,
        )
        self.chains = _chains(settings)
        gated = settings.force_gate == "gated"
        self.gated_force = (
            GatedForce(obs_dim, action_dim, settings.leapfrog_units, settings.leapfrog_state_input, generator)
            if gated
            else None
        )
        self._init_step_size(action_dim)

    def _init_step_size(self, action_dim: int) -> None:
        step_size = self.settings.step_size
        if isinstance(step_size, list) and len(step_size) != action_dim:
            raise SettingsError(
                f"step_size has {len(step_size)} numbers, but actions have {action_dim} dimensions; "
                f"give one number or {action_dim}."
            )
        steps = torch.tensor(step_size).expand(action_dim).clone()
        if self.settings.learn_step_size:
            self.raw_step_size = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))  # inverse softplus
        elif isinstance(step_size, list):
            # Not in checkpoints: a setting may change when a checkpoint is loaded.
            self.register_buffer("fixed_step_size", steps, persistent=False)

    @property
    def step_size(self) -> float | Tensor:
        """The step size eps: a number, or (A,)."""
        if self.settings.learn_step_size:
            return F.softplus(self.raw_step_size)
        if isinstance(self.settings.step_size, list):
            return self.get_buffer("fixed_step_size")
        return self.settings.step_size

    def forward(
        self,
        obs: Tensor,
        noise: Noise,
        *,
        mode: Mode,
        critic: ActionValue,
        alpha: Tensor,
        detached_rows: int = 0,
    ) -> Sample:
        """Draw one action per state; see `Sampler.forward`."""
        action, log_prob = self.initial_action(obs, noise, detached_rows)
        momentum = self.initial_momentum(action, noise, mode)
        final_kick = self.settings.momentum_penalty
        if self.gated_force is not None and self._learns_from_the_chain(mode):
            layers, options = self.gated_force.layers(), self._options(mode, final_kick)
            direction = self._directions(critic, alpha)
            action, momentum = gated_leapfrog(
                action, momentum, obs, direction, layers, options, leapfrog, detached_rows
            )
        else:
            force = self.force(obs, critic, alpha)
            action, momentum = self.evolve(action, momentum, force, mode, final_kick=final_kick)
        penalty = self._momentum_penalty(momentum, alpha) if self.settings.momentum_penalty else None
        return Sample(self._clip(action), log_prob, penalty)

    @override
    def action(self, obs: Tensor, noise: Noise, *, mode: Mode, given: Given) -> Tensor:
        """Return a_K, clipped, (B, A); see `Sampler.action`."""
        start = torch.tanh(self.policy.draw_alone(obs, noise["base"]))
        if self.chains[mode].num_steps == 0:
            return self._clip(start)
        force = self.force(obs, *given())
        momentum = self.initial_momentum(start, noise, mode)
        return self._clip(self.evolve(start, momentum, force, mode, final_kick=False)[0])

    def initial_action(self, obs: Tensor, noise: Noise, detached_rows: int = 0) -> tuple[Tensor, Tensor]:
        """Return a_0 (B, A), the Gaussian's draw where the chain starts, and its log-density (B,)."""
        return squash(*self.policy.draw(obs, noise["base"], detached_rows), detached_rows)

    def initial_momentum(self, action: Tensor, noise: Noise, mode: Mode) -> Tensor:
        """Return rho_0 = noise / sqrt(beta_0), (B, A); zero without momentum noise."""
        if not self.settings.momentum_noise:
            return torch.zeros_like(action)
        return self.chains[mode].momentum_std * noise["momentum"]

    def force(
        self,
        obs: Tensor,
        critic: ActionValue,
        alpha: Tensor,
        observe: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Callable[[Tensor], Tensor]:
        """Return F at fixed states, (B, A) -> (B, A): the scaled gradient, eq. (9) or (13), gated by eq. (13).

        Every evaluation calls `observe` with (gradient of Q, gate).
        """
        gate = None if self.gated_force is None else self.gated_force.condition(obs)

        def force(action: Tensor) -> Tensor:
            _, gradient = critic.minimum_and_gradient(action.detach())
            direction = self._direction(gradient, alpha)
            value, openness = (
                (direction, torch.ones_like(direction)) if gate is None else gate(action, direction)
            )
            if observe is not None:
                observe(gradient, openness)
            return value

        return force

    def evolve(
        self,
        action: Tensor,
        momentum: Tensor,
        force: Callable[[Tensor], Tensor],
        mode: Mode,
        *,
        final_kick: bool,
    ) -> tuple[Tensor, Tensor]:
        """Evolve (a_0, rho_0) into (a_K, rho_K), each (B, A), before clipping."""
        return leapfrog(action, momentum, force, **self._options(mode, final_kick)._asdict())

    def step(self, state: LeapfrogState, force: Callable[[Tensor], Tensor], mode: Mode) -> LeapfrogState:
        """Take one whole leapfrog step, with both half kicks and without tempering."""
        mass = self.chains[mode].inverse_mass
        return leapfrog_step(state, force, step_size=self.step_size, inverse_mass=mass)

    def take_steps(self, num_steps: int) -> None:
        """Take another number of leapfrog steps from now on than the policy was made with."""
        self.settings = self.settings.model_copy(update={"leapfrog_steps": num_steps})
        self.chains = _chains(self.settings)

    def trajectory(
        self, action: Tensor, momentum: Tensor, force: Callable[[Tensor], Tensor], mode: Mode
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return a_0, ..., a_K and rho_0, ..., rho_K, each (B, A), as `evolve` passes through them, unclipped."""
        options, actions, momenta = self._options(mode, final_kick=True), [action], [momentum]
        for k in range(options.num_steps):
            scales = options.momentum_scales
            one = options._replace(num_steps=1, momentum_scales=None if scales is None else scales[k : k + 1])
            action, momentum = leapfrog(action, momentum, force, **one._asdict())
            actions.append(action)
            momenta.append(momentum)
        return actions, momenta

    def _options(self, mode: Mode, final_kick: bool) -> LeapfrogOptions:
        chain = self.chains[mode]
        return LeapfrogOptions(
            self.step_size, chain.num_steps, final_kick, chain.inverse_mass, chain.momentum_scales
        )

    def _direction(self, gradient: Tensor, alpha: Tensor) -> Tensor:
        return unit_gradient(gradient) if self.settings.force_scale == "unit" else -gradient / alpha

    def _directions(self, critic: ActionValue, alpha: Tensor) -> Direction:
        """Return g as a function of the action, (B, A) -> (B, A), constant for autograd."""
        return lambda action: self._direction(critic.minimum_and_gradient(action.detach())[1], alpha)

    def _learns_from_the_chain(self, mode: Mode) -> bool:
        """Return whether the hand-written backward pass applies: gradients are needed, and step sizes are constant."""
        return wants_gradients() and self.chains[mode].num_steps > 0 and not self.settings.learn_step_size

    def _momentum_penalty(self, momentum: Tensor, alpha: Tensor) -> Tensor:
        """Return alpha beta_0 |rho_K|^2 / 2, (B,), the last term of eq. (12), with the beta_0 of training."""
        beta = self.settings.momentum_std_train**-2
        return 0.5 * beta * alpha * (momentum * momentum).sum(-1)

    def _clip(self, action: Tensor) -> Tensor:
        clipped = action.clamp(-1.0, 1.0)
        if self.settings.clip_gradient == "straight_through":
            return action + (clipped - action).detach()
        return clipped

    @torch.no_grad()
    def diagnose(
        self, obs: Tensor, noise: Noise, *, mode: Mode, critic: ActionValue, alpha: Tensor
    ) -> dict[str, Tensor]:
        """Return gate, gradient, gain in Q, clipping, momentum, and |a_K - a_0| split into drift and noise.

        Drift is the displacement of the chain with rho_0 = 0; noise is the distance between the two chains' ends.
        """
        gates, norms = [], []

        def observe(gradient: Tensor, gate: Tensor) -> None:
            gates.append(gate.mean())
            norms.append(torch.linalg.vector_norm(gradient, dim=-1).mean())

        initial_action, _ = self.initial_action(obs, noise)
        momentum = self.initial_momentum(initial_action, noise, mode)
        force = self.force(obs, critic, alpha, observe)
        action, momentum = self.evolve(initial_action, momentum, force, mode, final_kick=True)
        silent = self.force(obs, critic, alpha)
        drifted, _ = self.evolve(initial_action, torch.zeros_like(action), silent, mode, final_kick=False)
        clipped = action.clamp(-1.0, 1.0)
        nothing = torch.full((), math.nan, device=action.device)
        return {
            "gate_mean": torch.stack(gates).mean() if gates else nothing,
            "action_gradient_norm": torch.stack(norms).mean() if norms else nothing,
            "q_gain": (critic.minimum(clipped) - critic.minimum(initial_action)).mean(),
            "clipped_share": (action.abs() > 1).float().mean(),
            "momentum_norm": _mean_norm(momentum),
            "displacement": _mean_norm(action - initial_action),
            "displacement_drift": _mean_norm(drifted - initial_action),
            "displacement_noise": _mean_norm(action - drifted),
        }


def _mean_norm(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1).mean()

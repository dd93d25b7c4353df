"""Define targets of Hamiltonian steps that combine Q and the previous policy.

Johnson, "Markov Chain Monte Carlo Policy Optimization", eq. (12), (13), (18) and (19). The target of a chain is

    p(a, rho | s)  ~  exp(Q(s, a) / beta) pi_t(a|s) N(rho; 0, I)

with pi_t the previous policy, a tanh-Gaussian. `WhitenedTarget` uses the Gaussian's own coordinates, in which the
target is smooth and close to N(0, I). `ActionTarget` uses actions, as printed, where the force is singular at the
bounds. Each is constructed for B states and holds no learned parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from rllib_hpo.networks.critics import ActionValue
from rllib_hpo.networks.mlp import linear
from rllib_hpo.samplers.forces import SMALL
from rllib_hpo.samplers.gaussian import gaussian_log_prob, tanh_log_det

BORDER = 1e-6
"""Least distance from +-1 at which `ActionTarget` evaluates the density of an action."""


class Gaussian(NamedTuple):
    """A diagonal Gaussian before the tanh, at B states."""

    mean: Tensor
    """(B, A)."""
    log_std: Tensor
    """(B, A)."""

    def draw(self, noise: Tensor) -> Tensor:
        """Return u = mean + std * noise, (B, A)."""
        return self.mean + self.log_std.exp() * noise


class ForceParts(NamedTuple):
    """The two parts of a force; their sum is the gradient of -log p."""

    value: Tensor
    """-grad Q / beta, (B, A)."""
    prior: Tensor
    """-grad log pi_t, (B, A)."""


class ChainTarget(Protocol):
    """Define the coordinates and the force of a chain. Positions x are (B, A), in the target's own coordinates."""

    def position(self, pre_tanh: Tensor) -> Tensor:
        """Return x for u, (B, A)."""

    def action(self, position: Tensor) -> Tensor:
        """Return a for x, (B, A) in [-1, 1]."""

    def gate_input(self, position: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
        """Return position and force as inputs of a gate, each (B, A)."""

    def gradient(self, position: Tensor) -> Tensor:
        """Return the gradient of Q in x, (B, A). Autograd treats grad_a Q as constant, exact for ReLU critics."""

    def parts(self, position: Tensor, beta: Tensor) -> ForceParts:
        """Return the force at x, for a scalar beta."""

    def log_prior(self, position: Tensor) -> Tensor:
        """Return log pi_t, (B,), in the measure of `log_base`."""

    def log_base(self, base: Gaussian, noise: Tensor) -> Tensor:
        """Return log pi_theta, (B,), of the draw of `base` with `noise`."""


class WhitenedTarget:
    """Use x = (u - mu_t) / sigma_t with a = tanh(u), where the target is exp(Q / beta) N(x; 0, I) N(rho; 0, I).

    The tanh's Jacobian in log pi_t cancels that of the change of variables.

    Args:
        critic: Q at these states.
        previous: mu_t and sigma_t at these states, without gradient.
    """

    def __init__(self, critic: ActionValue, previous: Gaussian) -> None:
        self._critic, self._previous, self._std = critic, previous, previous.log_std.exp()

    def position(self, pre_tanh: Tensor) -> Tensor:
        """Return x for u."""
        return (pre_tanh - self._previous.mean) / self._std

    def pre_tanh(self, position: Tensor) -> Tensor:
        """Return u for x."""
        return self._previous.mean + self._std * position

    def action(self, position: Tensor) -> Tensor:
        """Return tanh(u)."""
        return torch.tanh(self.pre_tanh(position))

    def gate_input(self, position: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
        """Return u and g / (1 + |g|): an unbounded force g would saturate the gate's networks."""
        norm = torch.linalg.vector_norm(force, dim=-1, keepdim=True)
        return self.pre_tanh(position), force / (1 + norm)

    def gradient(self, position: Tensor) -> Tensor:
        """Return sigma_t (1 - a^2) grad_a Q, (B, A)."""
        action = self.action(position)
        _, gradient = self._critic.minimum_and_gradient(action.detach())
        return self._std * (1 - action * action) * gradient

    def parts(self, position: Tensor, beta: Tensor) -> ForceParts:
        """Return -sigma_t (1 - a^2) grad_a Q / beta, and x."""
        return ForceParts(-self.gradient(position) / beta, position)

    def log_prior(self, position: Tensor) -> Tensor:
        """Return log N(u; mu_t, sigma_t^2), (B,), without the tanh's Jacobian, which `log_base` also omits."""
        return gaussian_log_prob(position, self._previous.log_std)

    def log_base(self, base: Gaussian, noise: Tensor) -> Tensor:
        """Return log N(u; mu_theta, sigma_theta^2), (B,)."""
        return gaussian_log_prob(noise, base.log_std)


class ActionTarget:
    """Use x = a, eq. (12) and (13) as printed.

    grad log pi_t = (-(u - mu_t) / sigma_t^2 + 2a) / (1 - a^2) with u = atanh(a). A chain can leave the bounds;
    densities are then evaluated at a distance of 1e-6 inside the bound.

    Args:
        critic: Q at these states.
        previous: mu_t and sigma_t at these states, without gradient.
    """

    def __init__(self, critic: ActionValue, previous: Gaussian) -> None:
        self._critic, self._previous = critic, previous

    def position(self, pre_tanh: Tensor) -> Tensor:
        """Return tanh(u)."""
        return torch.tanh(pre_tanh)

    def action(self, position: Tensor) -> Tensor:
        """Return x, clipped to [-1, 1]."""
        return position.clamp(-1.0, 1.0)

    def gate_input(self, position: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
        """Return both unchanged."""
        return position, force

    def gradient(self, position: Tensor) -> Tensor:
        """Return grad_a Q, (B, A)."""
        return self._critic.minimum_and_gradient(self.action(position).detach())[1]

    def parts(self, position: Tensor, beta: Tensor) -> ForceParts:
        """Return -grad_a Q / beta and -grad_a log pi_t."""
        action, pre_tanh = self._inside(position)
        pull = (pre_tanh - self._previous.mean) / (2 * self._previous.log_std).exp() - 2 * action
        return ForceParts(-self.gradient(position) / beta, pull / (1 - action * action))

    def log_prior(self, position: Tensor) -> Tensor:
        """Return log pi_t(a|s), (B,)."""
        _, pre_tanh = self._inside(position)
        noise = (pre_tanh - self._previous.mean) / self._previous.log_std.exp()
        return gaussian_log_prob(noise, self._previous.log_std) - tanh_log_det(pre_tanh)

    def log_base(self, base: Gaussian, noise: Tensor) -> Tensor:
        """Return log pi_theta(a_0|s), (B,)."""
        return gaussian_log_prob(noise, base.log_std) - tanh_log_det(base.draw(noise))

    def _inside(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return a, clamped inside the bounds, and u = atanh(a)."""
        action = position.clamp(BORDER - 1, 1 - BORDER)
        return action, 0.5 * (torch.log1p(action) - torch.log1p(-action))


class ScalarGate(nn.Module):
    """Compute F = sigma_h g + (1 - sigma_h) T_h, eq. (18) and (19), with one scalar sigma_h per state.

    Args:
        obs_dim: Observation dimension S.
        action_dim: Action dimension A.
        num_layers: Hidden layers of each network.
        hidden_units: Units of each hidden layer.
        generator: Generator of the initial weights.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        num_layers: int,
        hidden_units: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        inputs = obs_dim + 2 * action_dim
        self.gate = _elu_network(inputs, num_layers, hidden_units, 1, generator)
        self.transform = _elu_network(inputs, num_layers, hidden_units, action_dim, generator)

    def forward(self, obs: Tensor, position: Tensor, seen_force: Tensor, force: Tensor) -> Tensor:
        """Return F (B, A) for a force (B, A) at obs (B, S).

        The networks see the state, and position and g as `ChainTarget.gate_input` gives them, each (B, A).
        """
        inputs = torch.cat([obs, position, seen_force], dim=-1)
        return torch.lerp(torch.tanh(self.transform(inputs)), force, torch.sigmoid(self.gate(inputs)))


def _elu_network(
    inputs: int, num_layers: int, hidden_units: int, outputs: int, generator: torch.Generator | None
) -> nn.Sequential:
    """Make linear layers with ELU between them and a small initial last layer."""
    layers: list[nn.Module] = []
    for k in range(num_layers):
        layers += [linear(hidden_units if k else inputs, hidden_units, generator), nn.ELU()]
    return nn.Sequential(*layers, linear(hidden_units, outputs, generator, scale=SMALL))


Part = Callable[[ForceParts], Tensor]
"""Function that selects the part of a force that moves a chain, (B, A)."""


def whole(parts: ForceParts) -> Tensor:
    """Return the whole force."""
    return parts.value + parts.prior


def joint_distance(
    log_base: Tensor, log_prior: Tensor, first_momentum: Tensor, last_momentum: Tensor
) -> Tensor:
    """Return D = log pi_theta(a_0) N(rho_0) / (pi_t(a_K) N(rho_K)), (B,), below eq. (17).

    Its mean is the distance of the paper's 4.1.

    Args:
        log_base: log pi_theta(a_0|s), (B,).
        log_prior: log pi_t(a_K|s), (B,).
        first_momentum: rho_0, (B, A).
        last_momentum: rho_K, (B, A).
    """
    kinetic = 0.5 * (last_momentum * last_momentum - first_momentum * first_momentum).sum(-1)
    return log_base - log_prior + kinetic


def inverse_softplus(values: Sequence[float] | Tensor) -> Tensor:
    """Return x with softplus(x) = `values`, for values above 0."""
    steps = torch.as_tensor(values)
    return steps + torch.log(-torch.expm1(-steps))

"""Improve deterministic actions by a learned flow of coupling layers that follow a force.

Johnson, "Markov Chain Monte Carlo Policy Optimization", eq. (6), (8) and (9); coupling layers as in Gu, Sun & Liu
2019, "Dynamical Sampling with Langevin Normalization Flows". A layer with mask m transforms x (B, A) to

    y = m x + (1 - m) ((x + (eps^2 / 2) F(x) + eps exp(sigma)) exp(S) + T)

with networks sigma, S and T of m x (and the state). Except in the literal form, exponents are bounded and
sigma starts at -5, so that a layer is initially close to the identity. A layer is invertible where (eps^2 / 2) F is a
contraction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from rllib_hpo.networks.critics import ActionValue
from rllib_hpo.networks.mlp import linear
from rllib_hpo.samplers.forces import SMALL

SMOOTHING = 1e-4
"""Added under the root of a distance, whose gradient is otherwise singular at 0."""
LARGEST_EXPONENT = 5.0
"""Bound of sigma and S, and minus the initial sigma; the exp of an unbounded network soon overflows."""

Force = Callable[[Tensor], Tensor]
"""Position (B, A) to force (B, A)."""


class ForceParts(NamedTuple):
    """The two parts of the force of a flow."""

    value: Tensor
    """Along the gradient of Q, (B, A)."""
    proximity: Tensor
    """Towards the previous policy's action, (B, A)."""


class FlowTarget(Protocol):
    """Define the coordinates and the force of a flow. Positions x are (B, A), in the target's own coordinates."""

    def position(self, pre_tanh: Tensor) -> Tensor:
        """Return x for u, (B, A)."""

    def action(self, position: Tensor) -> Tensor:
        """Return a for x, (B, A) in [-1, 1]."""

    def parts(self, position: Tensor) -> ForceParts:
        """Return the force at x. Autograd treats grad_a Q as constant, which is exact for ReLU critics."""


class PreTanhTarget:
    """Use x = u, before the tanh, so that no step leaves the bounds; Q's force has a norm below 1.

    Args:
        critic: Q at these states.
        previous: The previous policy's u at these states, (B, A), without gradient.
    """

    def __init__(self, critic: ActionValue, previous: Tensor) -> None:
        self._critic, self._previous = critic, previous

    def position(self, pre_tanh: Tensor) -> Tensor:
        """Return u."""
        return pre_tanh

    def action(self, position: Tensor) -> Tensor:
        """Return tanh(u)."""
        return torch.tanh(position)

    def parts(self, position: Tensor) -> ForceParts:
        """Return g / (1 + |g|) with g = (1 - a^2) grad_a Q, and -(x - x_t) / |x - x_t|."""
        action = torch.tanh(position)
        _, gradient = self._critic.minimum_and_gradient(action.detach())
        gradient = (1 - action * action) * gradient
        norm = smooth_norm(gradient).unsqueeze(-1)
        return ForceParts(gradient / (1 + norm), _towards(self._previous, position))


class ActionTarget:
    """Use x = a and eq. (9) as printed: -grad U, which descends U = Q / beta - |a - a_t|.

    Args:
        critic: Q at these states.
        previous: The previous policy's u at these states, (B, A), without gradient.
        beta: A scalar without gradient.
    """

    def __init__(self, critic: ActionValue, previous: Tensor, beta: Tensor) -> None:
        self._critic, self._previous, self._beta = critic, torch.tanh(previous), beta

    def position(self, pre_tanh: Tensor) -> Tensor:
        """Return tanh(u)."""
        return torch.tanh(pre_tanh)

    def action(self, position: Tensor) -> Tensor:
        """Return x, clipped to [-1, 1]."""
        return position.clamp(-1.0, 1.0)

    def parts(self, position: Tensor) -> ForceParts:
        """Return -grad_a Q / beta, and (a - a_t) / |a - a_t|."""
        _, gradient = self._critic.minimum_and_gradient(self.action(position).detach())
        return ForceParts(-gradient / self._beta, -_towards(self._previous, position))


def smooth_norm(vectors: Tensor) -> Tensor:
    """Return sqrt(|x|^2 + 1e-4), (B,), for x (B, A)."""
    return ((vectors * vectors).sum(-1) + SMOOTHING).sqrt()


def _towards(place: Tensor, position: Tensor) -> Tensor:
    """Return a vector of norm below 1 that points to a target, each (B, A)."""
    offset = place - position
    return offset / smooth_norm(offset).unsqueeze(-1)


def half_mask(action_dim: int, layer: int) -> Tensor:
    """Return the mask m of a layer, (A,): 1.0 at every other dimension, starting at the first or second in turn.

    With one dimension m is 0 in every layer: there is only the state to condition on.
    """
    return ((torch.arange(action_dim) + layer) % 2 == 0).float() if action_dim > 1 else torch.zeros(1)


class CouplingLayer(nn.Module):
    """Apply one layer of the flow, eq. (9).

    Args:
        obs_dim: Observation dimension S; 0 if the networks do not see the state.
        mask: The mask m, (A,).
        hidden_units: Units of the single hidden layer of sigma, S and T.
        step_size: The step size eps.
        literal: Whether sigma and S are the networks' raw outputs, as printed.
        generator: Generator of the initial weights.
    """

    mask: Tensor

    def __init__(
        self,
        obs_dim: int,
        mask: Tensor,
        hidden_units: int,
        step_size: float,
        literal: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self._step_size, self._literal, self._sees_state = step_size, literal, obs_dim > 0
        self.register_buffer("mask", mask, persistent=False)  # not learned: derived from the sizes
        inputs, outputs = len(mask) + obs_dim, len(mask)
        self.offset, self.scale, self.shift = (
            nn.Sequential(
                linear(inputs, hidden_units, generator),
                nn.ELU(),
                linear(hidden_units, outputs, generator, scale=SMALL),
            )
            for _ in range(3)
        )

    def forward(self, position: Tensor, obs: Tensor, force: Force) -> Tensor:
        """Return y (B, A) for x (B, A), at obs (B, S)."""
        kept, step_size = self.mask * position, self._step_size
        inputs = torch.cat([kept, obs], dim=-1) if self._sees_state else kept
        moved = position + 0.5 * step_size**2 * force(position)
        offset, scale = self._exponents(inputs)
        moved = moved + step_size * torch.exp(offset)
        moved = moved * torch.exp(scale) + self.shift(inputs)
        return kept + (1 - self.mask) * moved

    def _exponents(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return sigma and S, each (B, A)."""
        offset, scale = self.offset(inputs), self.scale(inputs)
        if self._literal:
            return offset, scale
        return _bounded(offset) - LARGEST_EXPONENT, _bounded(scale)


def _bounded(exponent: Tensor) -> Tensor:
    """Return c tanh(x / c) with c = 5, which is close to x for small x."""
    return LARGEST_EXPONENT * torch.tanh(exponent / LARGEST_EXPONENT)


class LangevinFlow(nn.Module):
    """Apply K coupling layers with complementary masks, eq. (8).

    Args:
        obs_dim: Observation dimension S; 0 if the networks do not see the state.
        action_dim: Action dimension A.
        num_layers: Number of layers K.
        hidden_units: Hidden units of each network.
        step_size: The step size eps.
        literal: See `CouplingLayer`.
        generator: Generator of the initial weights.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        num_layers: int,
        hidden_units: int,
        step_size: float,
        literal: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CouplingLayer(obs_dim, half_mask(action_dim, k), hidden_units, step_size, literal, generator)
            for k in range(num_layers)
        )

    def forward(self, position: Tensor, obs: Tensor, force: Force) -> Tensor:
        """Return x_K (B, A) for x_0 (B, A), at obs (B, S)."""
        for layer in self.layers:
            position = layer(position, obs, force)
        return position

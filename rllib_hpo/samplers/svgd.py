"""Move a sampling network's actions by Stein variational gradient descent (SVGD).

Liu & Wang 2016, arXiv 1608.04471; amortised as in Haarnoja et al. 2017, arXiv 1702.08165 (soft Q-learning), eqs. (12)
to (14).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rllib_hpo.networks.mlp import ReluMLP

Space = Literal["official", "pre_tanh", "action"]
Width = Literal["official", "paper"]

BORDER = 1e-6
"""Keeps log(1 - a^2) finite in the score of the authors' code."""


class SamplingNetwork(nn.Module):
    """Draw a = tanh(f(xi; s)) by a ReLU network of state and noise.

    Args:
        obs_dim: Observation dimension S.
        action_dim: Dimension A of actions and of the noise.
        hidden_units: Units of each hidden layer; a sequence has one number per layer.
        num_layers: Number of hidden layers.
        generator: Generator of the initial weights.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_units: int | Sequence[int],
        num_layers: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.obs_dim = obs_dim
        self.policy = ReluMLP(obs_dim + action_dim, hidden_units, num_layers, action_dim, generator)

    def forward(self, obs: Tensor, latent: Tensor) -> Tensor:
        """Return pre-tanh actions f(xi; s), (B, N, A), for obs (B, S) and noise (B, N, A)."""
        states = obs.unsqueeze(1).expand(-1, latent.shape[1], -1)
        outputs: Tensor = self.policy(torch.cat([states, latent], -1).flatten(0, 1))
        return outputs.view_as(latent)

    @torch.no_grad()
    def log_volume(self, obs: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions (B, N, A) and their log |det(d a / d xi)|, (B, N); -inf where the map is singular.

        The Jacobian is computed in forward mode; the layers are linear wherever they are differentiable.
        """
        states = obs.unsqueeze(1).expand(-1, latent.shape[1], -1)
        values = torch.cat([states, latent], -1).flatten(0, 1)
        linear = [layer for layer in self.policy if isinstance(layer, nn.Linear)]
        jacobian = linear[0].weight[:, self.obs_dim :].expand(len(values), -1, -1)
        values = linear[0](values)
        for layer in linear[1:]:
            jacobian = layer.weight @ (jacobian * (values > 0).unsqueeze(-1))
            values = layer(values.relu())
        action = torch.tanh(values)
        logdet = torch.linalg.slogdet(jacobian).logabsdet + log_slope(values).sum(-1)
        return action.view_as(latent), logdet.view(latent.shape[:2])


def log_slope(pre_tanh: Tensor) -> Tensor:
    """Return log(d tanh(u) / du) = 2 (log 2 - u - softplus(-2u)), elementwise."""
    return 2 * (math.log(2) - pre_tanh - nn.functional.softplus(-2 * pre_tanh))


def score(action: Tensor, gradient: Tensor, space: Space) -> Tensor:
    """Return the gradient of the particles' target log-density, (..., A).

    Args:
        action: a, (..., A), within (-1, 1).
        gradient: grad_a Q(s, a) / alpha, (..., A).
        space: Space of the particles. "action": the density is exp(Q / alpha) on the box, and the score is `gradient`.
            "pre_tanh": the density is that of u = artanh(a), and the score (1 - a^2) gradient - 2 a. "official": as the
            authors' code, which differentiates the factor prod(1 - a^2) of the density of u in a, so that border and
            corners repel.
    """
    if space == "action":
        return gradient
    if space == "pre_tanh":
        return (1 - action.square()) * gradient - 2 * action
    return gradient - 2 * action / (1 - action.square() + BORDER)


def kernel_width(squared_distances: Tensor, width: Width, floor: float) -> Tensor:
    """Return the width h of exp(-d^2 / h), one per state, (B,).

    Args:
        squared_distances: d^2 between M fixed and K moved particles, (B, M, K).
        width: "official": median / log M, as the authors' code; "paper": median / (2 log(M + 1)), as Haarnoja et al.
            2017, Appendix D.1. For an even number of distances the median is the lower middle one.
        floor: The least h.
    """
    num_fixed = squared_distances.shape[1]
    median = squared_distances.flatten(1).median(-1).values
    scale = math.log(num_fixed) if width == "official" else 2 * math.log(num_fixed + 1)
    return (median / scale).clamp(min=floor)


@torch.no_grad()
def direction(fixed: Tensor, fixed_score: Tensor, moved: Tensor, width: Width, floor: float) -> Tensor:
    """Return the direction in which SVGD moves particles, (B, K, A): Haarnoja et al. 2017, eq. (13).

    The direction is mean_i [k(x_i, y_j) score(x_i) + grad_{x_i} k(x_i, y_j)] with k(x, y) = exp(-|x - y|^2 / h).

    Args:
        fixed: x, (B, M, A).
        fixed_score: Gradients of the log-density at x, (B, M, A).
        moved: y, (B, K, A).
        width: See `kernel_width`.
        floor: See `kernel_width`.
    """
    differences = fixed.unsqueeze(2) - moved.unsqueeze(1)
    squared = differences.square().sum(-1)
    h = kernel_width(squared, width, floor)[:, None, None]
    kernel = torch.exp(-squared / h)
    attraction = torch.einsum("bmk,bma->bka", kernel, fixed_score)
    # Computed from differences, so that the repulsion of coincident particles is exactly 0.
    repulsion = torch.einsum("bmk,bmka->bka", -2 * kernel / h, differences)
    return (attraction + repulsion) / fixed.shape[1]

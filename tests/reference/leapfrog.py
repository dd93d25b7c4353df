"""Take leapfrog steps as loops over equation (9), with the package's variants as literal changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def leapfrog(
    action: Tensor,
    momentum: Tensor,
    force: Callable[[Tensor], Tensor],
    step_size: float | Tensor,
    num_steps: int,
    inverse_mass: float | Tensor = 1.0,
    momentum_scales: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run equation (9) (and the kicks of (13)): half kick, drift, half kick, 2 K force evaluations."""
    for k in range(num_steps):
        momentum_half = momentum - step_size / 2 * force(action)
        action = action + step_size * inverse_mass * momentum_half
        momentum = momentum_half - step_size / 2 * force(action)
        if momentum_scales is not None:
            momentum = momentum_scales[k] * momentum
    return action, momentum


def tempering_scales(beta_0: float, num_steps: int) -> list[float]:
    """Return equation (17) of Xu & Fekri's first version: the factors sqrt(beta_{k-1} / beta_k), k = 1..K."""
    betas = [
        ((1 - 1 / beta_0**0.5) * k**2 / num_steps**2 + 1 / beta_0**0.5) ** -2 for k in range(num_steps + 1)
    ]
    return [(betas[k - 1] / betas[k]) ** 0.5 for k in range(1, num_steps + 1)]


def linear_map(force_matrix: Tensor, step_size: float, num_steps: int, inverse_mass: float = 1.0) -> Tensor:
    """Return the (2 A, 2 A) matrix of K leapfrog steps under the linear force F(a) = P a, as a product of shears."""
    size = force_matrix.shape[0]
    identity, zero = torch.eye(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    kick = torch.cat(
        [torch.cat([identity, zero], 1), torch.cat([-step_size / 2 * force_matrix, identity], 1)]
    )
    drift = torch.cat(
        [torch.cat([identity, step_size * inverse_mass * identity], 1), torch.cat([zero, identity], 1)]
    )
    return torch.linalg.matrix_power(kick @ drift @ kick, num_steps)

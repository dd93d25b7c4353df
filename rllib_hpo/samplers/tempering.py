"""Compute the tempering schedule, which cools the momentum from its initial std to 1 along a chain."""

from __future__ import annotations

import itertools


def tempering_scales(momentum_std: float, num_steps: int) -> tuple[float, ...]:
    """Return the factors sqrt(beta_{k-1} / beta_k), k = 1..K, that multiply the momentum after step k.

    Xu & Fekri, first version of arXiv 2103.12020, eq. (17):
    1 / sqrt(beta_k) = (1 - 1 / sqrt(beta_0)) k^2 / K^2 + 1 / sqrt(beta_0), so that beta_K = 1.

    Args:
        momentum_std: Initial standard deviation 1 / sqrt(beta_0) > 0. Below 1 the factors exceed 1 and heat.
        num_steps: Number of steps K >= 0.
    """
    if num_steps == 0:
        return ()
    stds = [(1.0 - momentum_std) * (k / num_steps) ** 2 + momentum_std for k in range(num_steps + 1)]
    return tuple(new / old for old, new in itertools.pairwise(stds))

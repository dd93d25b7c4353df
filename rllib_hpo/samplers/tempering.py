"""The tempering schedule: how the momentum cools from its initial std to 1 along a chain."""

from __future__ import annotations

import itertools


def tempering_scales(momentum_std: float, num_steps: int) -> tuple[float, ...]:
    """Factors sqrt(beta_{k-1} / beta_k) for k = 1..K, by which the momentum is multiplied after step k.

    Xu & Fekri, first version of arXiv 2103.12020, eq. (17):
    1 / sqrt(beta_k) = (1 - 1 / sqrt(beta_0)) k^2 / K^2 + 1 / sqrt(beta_0), so that beta_K = 1.

    Args:
        momentum_std: 1 / sqrt(beta_0) > 0. Below 1 the factors exceed 1: they heat.
        num_steps: K >= 0.
    """
    if num_steps == 0:
        return ()
    stds = [(1.0 - momentum_std) * (k / num_steps) ** 2 + momentum_std for k in range(num_steps + 1)]
    return tuple(new / old for old, new in itertools.pairwise(stds))

"""Run Algorithm 3 of arXiv 2103.12020 for one state, as printed, with the package's variants as literal changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def algorithm_3(
    action: Tensor,
    momentum: Tensor,
    noise: Tensor,
    force: Callable[[Tensor], Tensor],
    cost: Callable[[Tensor], Tensor],
    reference: Tensor,
    cost_at_start: float,
    *,
    step_size: float,
    limit: float,
    gamma: float,
    test_initial: bool = False,
    momentum_refresh: str = "add",
    fallback: str = "last",
) -> tuple[Tensor, bool, int]:
    """Return the chosen action (A,), whether it passed, and the number of steps.

    Args:
        action: a_0, (A,), inside the bounds or not.
        momentum: rho_0, (A,).
        noise: Noise (K, A), already with the momentum's standard deviation.
        force: F(a), (A,) of (A,).
        cost: Q_C(s, a), a scalar of (A,).
        reference: b, (A,).
        cost_at_start: Q_C(s_0, b_0).
        step_size: eps.
        limit: d_0.
        gamma: Discount factor.
        test_initial: Whether a_0 is tested.
        momentum_refresh: "add", "replace" or "partial".
        fallback: "last" or "safest".
    """
    slack = (1 - gamma) * (limit - cost_at_start)
    seen = [reference, action.clamp(-1, 1)]

    def satisfies(candidate: Tensor) -> bool:  # eq. (14)
        return bool(cost(candidate) - cost(reference) <= slack)

    if test_initial and satisfies(seen[-1]):
        return seen[-1], True, 0
    for k in range(len(noise)):
        momentum = momentum - step_size / 2 * force(action)
        action = action + step_size * momentum
        momentum = momentum - step_size / 2 * force(action)
        seen.append(action.clamp(-1, 1))
        if satisfies(seen[-1]):
            return seen[-1], True, k + 1
        if momentum_refresh == "add":
            momentum = momentum + noise[k]
        elif momentum_refresh == "replace":
            momentum = noise[k]
        else:
            momentum = 0.9 * momentum + (1 - 0.81) ** 0.5 * noise[k]
    if fallback == "last":
        return seen[-1], False, len(noise)
    return seen[int(torch.stack([cost(one) for one in seen]).argmin())], False, len(noise)

"""Leapfrog steps until an action passes a test of its future costs (Xu & Fekri 2021, arXiv 2103.12020, Algorithm 3).

An action a of state s passes if it satisfies the Lyapunov constraint, eq. (14), of Chow et al. 2019, arXiv 1901.10031:

    Q_C(s, a) - Q_C(s, b) <= (1 - gamma) (d_0 - Q_C(s_0, b_0))

b and b_0 are the reference policy's actions in s and in the first state s_0 of the episode, d_0 the discounted limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rllib_hpo.samplers.leapfrog import LeapfrogState

MomentumRefresh = Literal["add", "replace", "partial"]
Fallback = Literal["last", "safest"]
KEPT = 0.9
"""c of the partial refresh rho <- c rho + sqrt(1 - c^2) z, which keeps the momentum's variance."""


class ShieldOptions(NamedTuple):
    """What Algorithm 3 leaves open, with what it says as defaults."""

    test_initial: bool = False
    """Whether the action before the first step may pass."""
    momentum_refresh: MomentumRefresh = "add"
    fallback: Fallback = "last"
    """What acts where no action passes: the last one, or the one that costs least, the reference's among them."""


class Shielded(NamedTuple):
    """What acts in each of B states."""

    action: Tensor
    """(B, A)."""
    accepted: Tensor
    """(B,), 1.0 where an action passed, else 0.0."""
    num_steps: Tensor
    """(B,), leapfrog steps to the action that acts, K where it is the fallback."""


def lyapunov_bound(cost: Tensor, cost_at_start: Tensor, limit: float, gamma: float) -> Tensor:
    """The most that an action may cost to satisfy eq. (14), (B,).

    Args:
        cost: Q_C(s, b), (B,).
        cost_at_start: Q_C(s_0, b_0), (B,).
        limit: d_0.
        gamma: Discount factor.
    """
    return cost + (1 - gamma) * (limit - cost_at_start)


def refresh(momentum: Tensor, noise: Tensor, how: MomentumRefresh) -> Tensor:
    """The momentum (B, A) before another step, of noise (B, A) with the variance of the first momentum."""
    if how == "add":
        return momentum + noise
    if how == "replace":
        return noise
    return KEPT * momentum + math.sqrt(1 - KEPT**2) * noise


def shielded(
    start: LeapfrogState,
    noise: Tensor,
    step: Callable[[LeapfrogState], LeapfrogState],
    cost: Callable[[Tensor], Tensor],
    bound: Tensor,
    reference: Tensor,
    options: ShieldOptions = ShieldOptions(),  # noqa: B008  (a constant)
) -> Shielded:
    """Algorithm 3 for B states at once: every chain makes all K steps, and the first action that passes is taken.

    So it branches on no value, and draws do not depend on what passes.

    Args:
        start: a_0, rho_0 and F(a_0).
        noise: (B, K, A), of the momentum's variance.
        step: One whole leapfrog step.
        cost: Q_C of actions (B, A) within [-1, 1], (B,).
        bound: The most that an action may cost, (B,).
        reference: b, (B, A).
        options: Variants of the algorithm.
    """
    state, num_steps = start, noise.shape[1]
    action = start.action.clamp(-1, 1)
    accepted = torch.zeros_like(bound, dtype=torch.bool)
    taken = torch.full_like(bound, float(num_steps))
    chosen, least, safest = action, cost(reference), reference
    for k in range(num_steps + 1):
        if k > 0:
            state = step(state)
            action = state.action.clamp(-1, 1)
            state = state._replace(
                momentum=refresh(state.momentum, noise[:, k - 1], options.momentum_refresh)
            )
        value = cost(action)
        safer = value < least
        least, safest = torch.where(safer, value, least), torch.where(safer[:, None], action, safest)
        if k == 0 and not options.test_initial:
            continue
        passes = (value <= bound) & ~accepted
        chosen = torch.where(passes[:, None], action, chosen)
        taken = torch.where(passes, torch.full_like(taken, float(k)), taken)
        accepted = accepted | passes
    fallback = action if options.fallback == "last" else safest
    return Shielded(torch.where(accepted[:, None], chosen, fallback), accepted.to(bound.dtype), taken)

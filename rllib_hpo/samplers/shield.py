"""Take leapfrog steps until an action passes a test of its future costs.

Xu & Fekri 2021, arXiv 2103.12020, Algorithm 3.

An action a of state s passes if it satisfies the Lyapunov constraint, eq. (14), of Chow et al. 2019, arXiv
1901.10031:

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
"""c of the partial refresh rho <- c rho + sqrt(1 - c^2) z, which preserves the momentum's variance."""


class ShieldOptions(NamedTuple):
    """Options that Algorithm 3 leaves open; the defaults are the algorithm's."""

    test_initial: bool = False
    """Whether the action before the first step may pass."""
    momentum_refresh: MomentumRefresh = "add"
    fallback: Fallback = "last"
    """The action where none passes: the last one, or the one of least cost, including the reference's."""


class Shielded(NamedTuple):
    """The actions at B states, and how the test chose them."""

    action: Tensor
    """(B, A)."""
    accepted: Tensor
    """(B,), 1.0 where an action passed, else 0.0."""
    num_steps: Tensor
    """(B,), leapfrog steps to the chosen action; K for the fallback."""


def lyapunov_bound(cost: Tensor, cost_at_start: Tensor, limit: float, gamma: float) -> Tensor:
    """Return the largest cost of an action that satisfies eq. (14), (B,).

    Args:
        cost: Q_C(s, b), (B,).
        cost_at_start: Q_C(s_0, b_0), (B,).
        limit: Discounted limit d_0.
        gamma: Discount factor.
    """
    return cost + (1 - gamma) * (limit - cost_at_start)


def refresh(momentum: Tensor, noise: Tensor, how: MomentumRefresh) -> Tensor:
    """Return the momentum (B, A) before another step, from noise (B, A) with the variance of the first momentum."""
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
    """Run Algorithm 3 for B states at once.

    Every chain takes all K steps, and the first action that passes is chosen. So the code never branches on values, and
    draws do not depend on what passes.

    Args:
        start: Initial state: a_0, rho_0 and F(a_0).
        noise: Noise (B, K, A) with the momentum's variance.
        step: Takes one whole leapfrog step.
        cost: Returns Q_C, (B,), of actions (B, A) within [-1, 1].
        bound: Largest cost that passes, (B,).
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

"""Compute the losses of a maximum-entropy actor-critic, one function per equation.

Soft actor-critic: Haarnoja et al. 2018, arXiv 1812.05905. Hamiltonian policy: Xu & Fekri, arXiv 2103.12020.
All arguments are (B,) unless noted; log_prob may be None if a sampler has no density.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bellman_target(
    reward: Tensor,
    terminated: Tensor,
    next_q: Tensor,
    next_log_prob: Tensor | None,
    alpha: Tensor | None,
    gamma: float,
) -> Tensor:
    """Return r + gamma (1 - terminated) (min target Q(s', a') - alpha log pi(a'|s')), (B,); SAC eq. (3) in (2).

    `terminated` is 1.0 at a terminal state. A time limit is not terminal, so its target bootstraps.
    """
    if next_log_prob is None or alpha is None:
        value = next_q
    else:
        value = torch.addcmul(next_q, alpha, next_log_prob, value=-1)
    return torch.addcmul(reward, 1.0 - terminated, value, value=gamma)


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared Bellman error, summed over N critics; q (N, B), target (B,) without gradient."""
    return F.mse_loss(q, target.expand_as(q), reduction="sum") / len(target)


def policy_loss(q: Tensor, log_prob: Tensor | None, penalty: Tensor | None, alpha: Tensor) -> Tensor:
    """Return -E[min Q(s, a_K) - alpha log pi(a_0|s) - penalty]: arXiv 2103.12020 eq. (12), and SAC's eq. (7)."""
    cost = -q if log_prob is None else alpha * log_prob - q
    if penalty is not None:
        cost = cost + penalty
    return cost.mean()


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Return -E[alpha (log pi(a_0|s) + target entropy)], SAC's eq. (18); log_alpha is a scalar."""
    return -(log_alpha.exp() * (log_prob.detach() + target_entropy)).mean()

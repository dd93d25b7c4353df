"""Test the losses: soft actor-critic (arXiv 1812.05905) with the Hamiltonian objective of arXiv 2103.12020."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rllib_hpo.algorithms.losses import bellman_target, critic_loss, policy_loss, temperature_loss

ROWS = 6


def _vectors(count: int, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, ROWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_bellman_target() -> None:
    """The target is r + gamma (1 - terminated) (min target Q - alpha log pi), row by row in plain numbers."""
    reward, next_q, log_prob = _vectors(3)
    terminated = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    target = bellman_target(reward, terminated, next_q, log_prob, torch.tensor(0.3), 0.9)
    for i in range(ROWS):
        value = 0.0 if terminated[i] else next_q[i].item() - 0.3 * log_prob[i].item()
        assert target[i].item() == pytest.approx(reward[i].item() + 0.9 * value, abs=1e-7)


def test_bellman_target_without_density() -> None:
    """A sampler whose log_prob is None has no entropy term."""
    reward, next_q = _vectors(2)
    target = bellman_target(reward, torch.zeros(ROWS), next_q, None, torch.tensor(0.3), 0.9)
    torch.testing.assert_close(target, reward + 0.9 * next_q)


def test_critic_loss() -> None:
    """It sums the twins' mean squared Bellman errors (not Huber, not halved, not averaged over twins)."""
    first, second, target = _vectors(3)
    expected = ((first - target) ** 2).mean() + ((second - target) ** 2).mean()
    torch.testing.assert_close(critic_loss(torch.stack([first, second]), target), expected)


def test_policy_loss() -> None:
    """The loss is -E[Q - alpha log pi - penalty], equation (12); without penalty SAC's."""
    q, log_prob, penalty = _vectors(3)
    alpha = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(
        policy_loss(q, log_prob, penalty, alpha), -(q - 0.3 * log_prob - penalty).mean()
    )
    torch.testing.assert_close(policy_loss(q, log_prob, None, alpha), -(q - 0.3 * log_prob).mean())
    torch.testing.assert_close(policy_loss(q, None, None, alpha), -q.mean())


@pytest.mark.parametrize(("entropy", "sign"), [(0.5, 1.0), (-3.0, -1.0)])
def test_temperature_moves_towards_the_target_entropy(entropy: float, sign: float) -> None:
    """Above the target entropy (-1 here) descent lowers alpha, below it raises alpha."""
    log_alpha = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    log_prob = torch.full((ROWS,), -entropy, dtype=torch.float64, requires_grad=True)
    temperature_loss(log_alpha, log_prob, -1.0).backward()
    assert torch.sign(log_alpha.grad) == sign
    assert log_prob.grad is None


def test_gradients() -> None:
    """Derivatives of every loss in every learned argument equal finite differences."""
    q, other_q, log_prob, penalty = (x.requires_grad_() for x in _vectors(4))
    alpha, log_alpha = torch.tensor(0.3).double(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    target = _vectors(1, seed=1)[0]
    assert torch.autograd.gradcheck(lambda a, b: critic_loss(torch.stack([a, b]), target), (q, other_q))
    assert torch.autograd.gradcheck(lambda *x: policy_loss(*x, alpha), (q, log_prob, penalty))
    assert torch.autograd.gradcheck(lambda x: temperature_loss(x, log_prob.detach(), -1.0), (log_alpha,))

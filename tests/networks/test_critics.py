"""Test the batched twin critic against two ordinary networks, and its action gradient against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rllib_hpo.kernels import q_networks
from rllib_hpo.kernels.q_networks import ROWS_WORTH_SPLITTING
from rllib_hpo.networks.critics import Critics
from tests.readout import critic_layers
from tests.reference import networks as reference


def _critic(obs_dim: int, action_dim: int, units: int, layers: int, seed: int) -> Critics:
    return Critics(obs_dim, action_dim, units, layers, torch.Generator().manual_seed(seed)).double()


def _batch(rows: int, obs_dim: int, action_dim: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + seed)
    obs = 2 * torch.randn(rows, obs_dim, generator=generator, dtype=torch.float64)
    action = 2 * torch.rand(rows, action_dim, generator=generator, dtype=torch.float64) - 1
    return obs, action


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_forward_equals_two_separate_networks(layers: int) -> None:
    """Row i of the batched product is critic i, and the two are drawn independently."""
    critic = _critic(5, 3, 16, layers, seed=0)
    obs, action = _batch(32, 5, 3, seed=0)
    q = critic(obs, action)
    assert q.shape == (2, 32)
    assert not torch.allclose(q[0], q[1])
    expected = torch.stack([reference.q_value(twin, obs, action) for twin in critic_layers(critic)])
    torch.testing.assert_close(q, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_forward_is_differentiable_in_everything(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check states, actions and parameters, for separate critics and for one product."""
    if at_a_time == 2:
        monkeypatch.setattr(q_networks, "separate", lambda w, b: [q_networks.Layers(list(w), list(b))])
    critic = _critic(4, 2, 5, 2, seed=6)
    inputs = [x.requires_grad_() for x in _batch(3, 4, 2, seed=6)]
    names, parameters = zip(*critic.named_parameters(), strict=True)

    def call(obs: Tensor, action: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(critic, dict(zip(names, values, strict=True)), (obs, action))

    assert torch.autograd.gradcheck(call, (*inputs, *parameters))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [ROWS_WORTH_SPLITTING - 1, ROWS_WORTH_SPLITTING + 1])
def test_analytic_gradient_equals_autograd(rows: int, layers: int, seed: int) -> None:
    """grad_a min(Q_1, Q_2) equals autograd's to 1e-10, masked (few rows) and row by row (many)."""
    obs_dim, action_dim, units = 1 + seed % 7, 1 + seed % 4, (4, 32, 256)[seed % 3]
    critic = _critic(obs_dim, action_dim, units, layers, seed)
    obs, action = _batch(rows, obs_dim, action_dim, seed)
    q, gradient = critic.condition(obs).minimum_and_gradient(action)
    twins = critic_layers(critic)
    assert not q.requires_grad
    assert not gradient.requires_grad
    torch.testing.assert_close(q, reference.min_q(twins, obs, action), rtol=0.0, atol=1e-10)
    torch.testing.assert_close(gradient, reference.action_gradient(twins, obs, action), rtol=0.0, atol=1e-10)


def test_either_twin_can_be_the_minimum() -> None:
    """In the batches above each critic is the smaller one somewhere, so both branches were compared."""
    critic = _critic(5, 3, 32, 2, seed=1)
    q = critic(*_batch(64, 5, 3, seed=1))
    assert 0 < int((q[0] < q[1]).sum()) < 64


def test_minimum_is_differentiable_in_the_action_only() -> None:
    """The policy's objective reaches the policy through the action; critic parameters and states get no gradient."""
    critic = _critic(5, 3, 16, 2, seed=2)
    obs, action = (x.requires_grad_() for x in _batch(8, 5, 3, seed=2))
    weights = torch.arange(8, dtype=torch.float64)
    (weights * critic.minimum(obs, action)).sum().backward()
    expected = weights[:, None] * reference.action_gradient(
        critic_layers(critic), obs.detach(), action.detach()
    )
    torch.testing.assert_close(action.grad, expected, rtol=0.0, atol=1e-10)
    assert obs.grad is None
    assert all(p.grad is None for p in critic.parameters())


def test_minimum_without_gradient() -> None:
    """Without gradients the value is the same."""
    critic = _critic(5, 3, 16, 2, seed=3)
    obs, action = _batch(8, 5, 3, seed=3)
    with_gradient = critic.minimum(obs, action.clone().requires_grad_())
    assert torch.equal(critic.minimum(obs, action), with_gradient.detach())


def test_gradient_is_piecewise_constant() -> None:
    """Within a linear piece of Q the gradient is constant, so the backward pass may treat it as constant."""
    critic = _critic(5, 3, 16, 2, seed=4)
    obs, action = _batch(32, 5, 3, seed=4)
    conditioned = critic.condition(obs)
    gradient = conditioned.minimum_and_gradient(action)[1]
    torch.testing.assert_close(
        conditioned.minimum_and_gradient(action + 1e-9)[1], gradient, rtol=0.0, atol=1e-12
    )
    far = conditioned.minimum_and_gradient(action + 0.5)[1]
    assert (far - gradient).abs().max() > 1e-3


def test_rows_of_a_conditioned_critic() -> None:
    """A slice of the states is the critic at those states, whether or not their part was computed before."""
    critic = _critic(5, 3, 16, 2, seed=5)
    obs, action = _batch(10, 5, 3, seed=5)
    fresh, used = critic.condition(obs), critic.condition(obs)
    used.minimum(action)
    for conditioned in (fresh, used):
        part = conditioned.rows(slice(3, 7)).minimum(action[3:7])
        torch.testing.assert_close(part, critic.minimum(obs[3:7], action[3:7]), rtol=1e-12, atol=1e-12)


def test_draws_from_its_generator() -> None:
    """Equal generators give equal critics; the global generator is unused."""
    before = torch.get_rng_state()
    first, second = (_critic(3, 2, 8, 2, seed=7) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(before, torch.get_rng_state())

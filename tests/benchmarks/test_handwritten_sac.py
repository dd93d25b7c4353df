import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from benchmarks.handwritten_sac import BATCH_SIZE, HandwrittenSAC, Ring


@pytest.fixture
def sac():
    return HandwrittenSAC("Pendulum-v1", warmup_steps=64, capacity=1_000)


def test_it_updates_once_per_step_after_the_warm_up(sac):
    before = copy.deepcopy(sac.policy.state_dict())
    for _ in range(64):
        sac.step()
    assert (sac.env_steps, sac.updates) == (64, 0)
    assert all(torch.equal(before[name], value) for name, value in sac.policy.state_dict().items())

    for _ in range(10):
        sac.step()

    assert (sac.env_steps, sac.updates) == (74, 10)
    assert not any(torch.equal(before[name], value) for name, value in sac.policy.state_dict().items())
    assert all(p.requires_grad for p in sac.critics.parameters())
    assert not any(p.requires_grad for p in sac.targets.parameters())


def test_log_density_is_that_of_a_squashed_gaussian(sac):
    sac.policy.double()
    obs = torch.randn(100, 3, dtype=torch.float64)
    action, log_prob = sac.sample(obs)

    mean, log_std = sac.policy(obs).chunk(2, dim=1)
    base = Independent(Normal(mean, log_std.exp()), 1)
    expected = TransformedDistribution(base, [TanhTransform()]).log_prob(action)
    torch.testing.assert_close(log_prob.squeeze(1), expected)


def test_the_rows_hold_what_happened(sac):
    for _ in range(250):  # beyond the time limit of 200 steps
        sac.step()

    rows = sac.replay.rows[: sac.replay.count]
    obs, action, terminated, next_obs = rows[:, :3], rows[:, 3:4], rows[:, 5], rows[:, 6:]
    assert np.abs(action).max() <= 1
    assert not terminated.any()  # Pendulum is only ever truncated, so it always bootstraps
    continues = (next_obs[:-1] == obs[1:]).all(axis=1)
    assert np.flatnonzero(~continues).tolist() == [199]


def test_actions_are_rescaled_to_the_environments_bounds(sac):
    env = gym.make("Pendulum-v1")
    env.reset(seed=0)
    sac.step()

    action = sac.replay.rows[0, 3:4]
    next_obs, *_ = env.step(2 * action)
    np.testing.assert_allclose(sac.replay.rows[0, 6:], next_obs, rtol=1e-6)


def test_the_ring_forgets_the_oldest():
    ring = Ring(1, 1, capacity=3, rng=np.random.default_rng(0))
    for k in range(5):
        ring.add(np.array([k]), np.array([0.5]), (2.0,), (0.0,), np.array([k + 1.0]))

    obs, _, reward, _, next_obs = ring.sample()
    assert obs.shape == (BATCH_SIZE, 1)
    assert set(obs[:, 0].tolist()) == {2.0, 3.0, 4.0}
    assert torch.equal(next_obs, obs + 1)
    assert (reward == 2).all()

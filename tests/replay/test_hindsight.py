"""Test relabelled transitions against Algorithm 1 of Andrychowicz et al. 2017, transition by transition."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from rllib_hpo.replay.hindsight import GoalPlaces, Hindsight, Strategy
from rllib_hpo.replay.layout import Column, RowLayout

LAYOUT = RowLayout(5, 2, (Column("cost"),))
PLACES = GoalPlaces(achieved=slice(0, 2), desired=slice(3, 5))
LENGTH = 6


def outcome(achieved: Any, desired: Any, was_terminated: bool) -> tuple[float, bool]:
    """Pay for the distance; terminate within 0.5 of the goal, or where the step did."""
    distance = float(np.abs(achieved - desired).sum())
    return -distance, was_terminated or distance < 0.5


@pytest.fixture
def episode() -> np.ndarray:
    """Return an episode whose achieved goals are [t, -t] and whose desired goal is [9, 9]."""
    steps = np.arange(LENGTH + 1, dtype=np.float32)
    obs = np.stack([steps, -steps, 0 * steps + 0.25, 0 * steps + 9, 0 * steps + 9], 1)
    rows = np.empty((LENGTH, LAYOUT.width), np.float32)
    action = np.random.default_rng(0).uniform(-1, 1, (LENGTH, 2))
    terminated = steps[1:] == LENGTH
    LAYOUT.pack(obs[:-1], action, -steps[1:], terminated, obs[1:], out=rows, extras=steps[:-1, None])
    return rows


@pytest.mark.parametrize(("strategy", "ratio"), [("future", 4), ("episode", 3), ("final", 1)])
def test_copies_differ_in_goal_reward_and_termination(
    episode: np.ndarray, strategy: Strategy, ratio: int
) -> None:
    before = episode.copy()
    copies = Hindsight(LAYOUT, PLACES, outcome, ratio, strategy).relabel(episode, np.random.default_rng(1))
    np.testing.assert_array_equal(episode, before)
    assert copies.shape == (ratio * LENGTH, LAYOUT.width)
    real, own = (LAYOUT.unpack(torch.from_numpy(rows)) for rows in (episode.repeat(ratio, 0), copies))
    for name in ("obs", "next_obs"):
        assert torch.equal(getattr(own, name)[:, :3], getattr(real, name)[:, :3])
    assert torch.equal(own.action, real.action)
    assert torch.equal(own.extras["cost"], real.extras["cost"])
    goal = own.obs[:, 3:]
    assert torch.equal(own.next_obs[:, 3:], goal)
    step, source = (
        torch.arange(LENGTH).repeat_interleave(ratio),
        goal[:, 0] - 1,
    )  # that achieved [t + 1, -t - 1]
    assert torch.equal(goal[:, 1], -goal[:, 0])
    first = {"future": step, "episode": 0 * step, "final": 0 * step + LENGTH - 1}[strategy]
    assert ((source >= first) & (source < LENGTH)).all()
    assert torch.equal(own.reward, -(own.next_obs[:, :2] - goal).abs().sum(1))
    assert torch.equal(own.terminated, ((own.reward > -0.5) | (step == LENGTH - 1)).float())


@pytest.mark.parametrize("strategy", ["future", "episode"])
def test_goals_are_drawn_uniformly(episode: np.ndarray, strategy: Strategy) -> None:
    ratio = 6_000
    copies = Hindsight(LAYOUT, PLACES, outcome, ratio, strategy).relabel(episode, np.random.default_rng(2))
    for step in range(LENGTH):
        first = step if strategy == "future" else 0
        drawn = Counter((copies[step * ratio : (step + 1) * ratio, 3] - 1).tolist())
        expected = ratio / (LENGTH - first)
        assert sorted(drawn) == list(range(first, LENGTH))
        assert all(abs(number - expected) < 5 * expected**0.5 for number in drawn.values())

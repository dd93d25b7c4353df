"""Test that soft Q-learning reaches all goals and the Q of soft value iteration; DDPG reaches one goal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from rllib_hpo.analysis.trajectories import STATES, roll_out
from rllib_hpo.experiments.storage.export import deployed
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.algorithms import make_config
from rllib_hpo.rllib.trained_policy import newest_policy
from tests.reference.multi_goal import GridValues
from tests.rllib.tiny import running, train_to

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(1800)]

STEPS = 10_000
COMMON = {
    "hidden_units": 128,
    "train_batch_size_per_learner": 64,
    "evaluation_every": STEPS,
    "checkpoint_every": STEPS,
}


def _trained(algorithm: str, **settings: object) -> Iterator[ActorCriticAlgorithm]:
    config = type(make_config(algorithm)).for_task("multi-goal").training(**COMMON | settings)
    with running(config.debugging(seed=0, log_level="ERROR", log_sys_usage=False)) as built:
        train_to(built, STEPS)
        yield built


def _shares(algorithm: ActorCriticAlgorithm) -> tuple[list[float], float]:
    """Return the shares of 400 evaluation episodes that reached each goal, and none."""
    numbers = roll_out(deployed(newest_policy(algorithm)), 400, explores=False).numbers()
    return [numbers[f"goal_reached_{k}"] for k in range(4)], 1 - numbers["goal_reached"]


@pytest.fixture(scope="module")
def soft_q() -> Iterator[ActorCriticAlgorithm]:
    yield from _trained("soft-q")


def test_soft_q_learning_reaches_every_goal(soft_q: ActorCriticAlgorithm) -> None:
    """With target copies ten times as frequent two goals are lost; a Gaussian policy has one goal in every state."""
    shares, none = _shares(soft_q)
    assert min(shares) >= 0.10
    assert none <= 0.15


def test_ddpg_commits_to_a_goal() -> None:
    for built in _trained("ddpg", hidden_units=64, exploration_process="ou", exploration_noise=0.3):
        shares, _ = _shares(built)
        assert max(shares) >= 0.60


def test_q_is_that_of_soft_value_iteration(soft_q: ActorCriticAlgorithm) -> None:
    """There are as many iterations as target copies; Q is compared over actions, in the states of the paper's Figure 1.

    The network's draws have the mean Q of exp(Q / alpha), to a tenth of alpha and a fifth of their gain over uniform
    actions.
    """
    grid = GridValues(alpha=10.0)
    grid.iterate(9)
    model, generator = soft_q.actor, np.random.default_rng(0)
    actions = generator.uniform(-1, 1, (2_000, 2))
    for state in STATES:
        expected = grid.q(np.array(state), actions)
        obs = torch.tensor([state]).expand(len(actions), -1)
        found = model.target_critics.minimum(obs, torch.from_numpy(actions).float()).numpy()
        assert np.corrcoef(expected, found)[0, 1] > 0.7
        weights = np.exp((expected - expected.max()) / 10)
        best = float((weights * expected).sum() / weights.sum())
        drawn = model.act(obs, memory={"latent": torch.randn(len(actions), 2)}).numpy()
        of_draws = float(grid.q(np.array(state), drawn.astype(np.float64)).mean())
        assert abs(of_draws - best) < 1 + 0.2 * (best - float(expected.mean()))


def test_value_iteration_contracts_to_a_fixed_point() -> None:
    grid = GridValues(alpha=10.0, states=29, actions=12)
    before = grid.iterate(20)
    for _ in range(3):
        after = grid.iterate(10)
        assert after < before * 0.99**9
        before = after

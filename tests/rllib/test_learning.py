"""Test that each algorithm learns Pendulum within 8,000 steps, and that non-learners fail the test."""

from __future__ import annotations

import numpy as np
import pytest

from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.algorithms import make_config
from rllib_hpo.rllib.evaluation import evaluate
from rllib_hpo.streams import seed_sequence
from rllib_hpo.tasks import ActionScaling, make_env
from tests.kinds import OF_VECTORS
from tests.rllib.tiny import EVERY_ALGORITHM_IN_TIME, IN_TIME, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, GOAL = 8_000, -250.0
GOALS = {"mcmc-po": -600.0}
"""Goals of algorithms that are held near their previous policy."""
FRESH_SEEDS = [int(state >> 1) for state in seed_sequence(0, "fresh episodes").generate_state(20)]


def train(algorithm: str, update_to_data: float = 1.0, api_stack: str = "new") -> ActorCriticAlgorithm:
    """Train for 8,000 steps with default settings, except learning rate, warm-up and intervals for so short a run."""
    config = make_config(algorithm).environment("Pendulum-v1").debugging(seed=0, log_level="ERROR")
    config.api_stack(api_stack == "new", api_stack == "new")
    config.training(
        warmup_steps=1_000,
        lr=1e-3,
        update_to_data=update_to_data,
        evaluation_every=STEPS,
        evaluation_episodes=1,
        checkpoint_every=STEPS,
    )
    with running(config) as built:
        while built.env_steps < STEPS:
            built.train()
        return built


def returns_of(algorithm: ActorCriticAlgorithm) -> list[float]:
    """Return the returns of twenty noise-free episodes that no evaluation of the run used."""
    return evaluate(algorithm.actor, lambda: make_env("Pendulum-v1"), FRESH_SEEDS).returns


def assert_learned(returns: list[float], algorithm: str = "") -> None:
    """Check the goal, which a random policy and a frozen learner miss."""
    assert np.mean(returns) > GOALS.get(algorithm, GOAL), np.mean(returns)


@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(name, marks=[] if name in IN_TIME else pytest.mark.exhaustive)
        for name in OF_VECTORS
        if name
        != "soft-q"  # whose targets are copied seven times in so short a run; see test_soft_q_learning.py
    ],
)
def test_it_learns(algorithm: str) -> None:
    assert_learned(returns_of(train(algorithm)), algorithm)


@pytest.mark.exhaustive
def test_it_learns_on_the_old_stack() -> None:
    assert_learned(returns_of(train("sac", api_stack="old")))


@EVERY_ALGORITHM_IN_TIME
def test_a_frozen_learner_does_not(algorithm: str) -> None:
    with pytest.raises(AssertionError, match="-"):
        assert_learned(returns_of(train(algorithm, update_to_data=0.0)), algorithm)


def test_a_random_policy_does_not() -> None:
    env, rng = make_env("Pendulum-v1"), np.random.default_rng(0)
    scaling, returns = ActionScaling.of(env.action_space), []
    for seed in FRESH_SEEDS:
        env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(scaling.to_env(rng.uniform(-1, 1, 1)))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    with pytest.raises(AssertionError, match="-"):
        assert_learned(returns)

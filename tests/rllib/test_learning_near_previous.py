"""Test that MCMC policy optimization learns and holds its distance, and that non-learners fail the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rllib_hpo.rllib.algorithms import make_config
from rllib_hpo.rllib.evaluation import evaluate
from rllib_hpo.streams import seed_sequence
from rllib_hpo.tasks import ActionScaling, make_env
from tests.rllib.tiny import running

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(1500)]

GOALS = {"Pendulum-v1": -600.0, "Reacher-v4": -10.0}
OVER_NOTHING = 1.5
"""Least gain of Reacher's return over zero torque in the same episodes."""
FRESH_SEEDS = [int(state >> 1) for state in seed_sequence(0, "fresh episodes").generate_state(50)]


def played(env_id: str, rng: np.random.Generator | None) -> list[float]:
    """Return the returns of the fresh episodes under zero torque, or under uniform random actions of `rng`."""
    env = make_env(env_id)
    scaling, returns = ActionScaling.of(env.action_space), []
    dims = env.action_space.shape[0]
    for seed in FRESH_SEEDS:
        env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action = np.zeros(dims) if rng is None else rng.uniform(-1, 1, dims)
            _, reward, terminated, truncated, _ = env.step(scaling.to_env(action))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


def trained(algorithm: str, env_id: str, steps: int, **settings: Any) -> tuple[list[float], dict[str, Any]]:
    """Return the returns of the fresh episodes after training, and the metrics of the last thousand updates."""
    config = make_config(algorithm).environment(env_id).debugging(seed=0, log_level="ERROR")
    config.training(
        warmup_steps=1_000, lr=1e-3, evaluation_every=steps, evaluation_episodes=1, checkpoint_every=steps
    ).training(**settings)
    with running(config) as built:
        result: dict[str, Any] = {}
        while built.env_steps < steps:
            result = built.train()
        returns = evaluate(built.actor, lambda: make_env(env_id), FRESH_SEEDS).returns
    return returns, result["learners"].get("default_policy", {})


def assert_learned(env_id: str, returns: list[float]) -> None:
    """Check the goal, which a random policy and a frozen learner miss."""
    assert np.mean(returns) >= GOALS[env_id], np.mean(returns)
    if env_id == "Reacher-v4":
        assert np.mean(returns) >= np.mean(played(env_id, None)) + OVER_NOTHING, np.mean(returns)


def test_hamiltonian_steps_learn_pendulum_at_a_distance_that_is_held() -> None:
    returns, metrics = trained("mcmc-po", "Pendulum-v1", 8_000, hidden_units=64)
    assert_learned("Pendulum-v1", returns)
    assert 0.05 <= metrics["prior_distance_mean"] <= 0.2


def test_a_langevin_flow_learns_reacher() -> None:
    returns, _ = trained("langevin-po", "Reacher-v4", 10_000, hidden_units=64)
    assert_learned("Reacher-v4", returns)


@pytest.mark.parametrize(("algorithm", "env_id"), [("mcmc-po", "Pendulum-v1"), ("langevin-po", "Reacher-v4")])
def test_a_frozen_learner_does_not(algorithm: str, env_id: str) -> None:
    returns, _ = trained(algorithm, env_id, 2_000, update_to_data=0.0)
    with pytest.raises(AssertionError, match="-"):
        assert_learned(env_id, returns)


@pytest.mark.parametrize("env_id", GOALS)
def test_a_random_policy_does_not(env_id: str) -> None:
    with pytest.raises(AssertionError, match="-"):
        assert_learned(env_id, played(env_id, np.random.default_rng(0)))

"""Test that SAC-Lagrangian keeps Pendulum's torques within a limit that SAC exceeds."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.algorithms import make_config
from rllib_hpo.rllib.evaluation import evaluate
from rllib_hpo.settings import Settings
from rllib_hpo.streams import seed_sequence
from rllib_hpo.tasks import make_env
from tests.rllib.tiny import running

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(1800)]

STEPS, LIMIT, EVERY = 12_000, 12.0, 2_000
ALPHA = 0.02
"""A tenth of the default too; with more, exploration costs far more than the evaluated noise-free policy."""
FRESH_SEEDS = [int(state >> 1) for state in seed_sequence(0, "fresh episodes").generate_state(20)]


class TenthReward(gym.RewardWrapper[Any, Any]):
    """Scale the reward by a tenth, so that a multiplier of about 1 balances it."""

    def reward(self, reward: Any) -> float:
        return 0.1 * float(reward)


def cost_of(algorithm: ActorCriticAlgorithm) -> float:
    """Return the mean discounted cost of twenty noise-free episodes that no evaluation of the run used."""
    settings: Settings = algorithm.settings
    played = evaluate(
        algorithm.actor,
        lambda: make_env("Pendulum-v1", step_cost=settings.cost),
        FRESH_SEEDS,
        cost_gamma=settings.gamma,
    )
    assert played.costs is not None
    return float(np.mean(played.costs.discounted))


def costs_late_in(algorithm: str, seed: int, **changes: Any) -> float:
    """Return the mean of the costs after the last two stretches of 2,000 steps."""
    config = make_config(algorithm).debugging(seed=seed, log_level="ERROR")
    config.environment("Pendulum-v1", env_config={"wrappers": [f"{__name__}:TenthReward"]})
    config.training(
        cost={"kind": "torque"},
        cost_limit=LIMIT,
        alpha=changes.pop("alpha", ALPHA),
        warmup_steps=1_000,
        lr=1e-3,
        hidden_units=64,
        evaluation_every=STEPS,
        evaluation_episodes=1,
        checkpoint_every=STEPS,
        **changes,
    )
    found = []
    with running(config) as built:
        while built.env_steps < STEPS:
            built.train()
            if built.env_steps > STEPS - 2 * EVERY and built.env_steps % EVERY == 0:
                found.append(cost_of(built))
    return float(np.mean(found))


LAGRANGE = {"lagrange_lr": 0.01, "lagrange_every": 200}


def assert_within_the_limit(cost: float) -> None:
    """Check the limit, which an unconstrained, a random and a frozen policy exceed."""
    assert 0.75 * LIMIT <= cost <= 1.25 * LIMIT, cost


@pytest.mark.parametrize("seed", [0, 1])
def test_sac_lagrangian_ends_at_the_limit(seed: int) -> None:
    assert_within_the_limit(costs_late_in("sac-lagrangian", seed, **LAGRANGE))


@pytest.mark.parametrize("seed", [0, 1])
def test_sac_does_not(seed: int) -> None:
    assert costs_late_in("sac", seed) > 20


def test_a_frozen_learner_does_not() -> None:
    with pytest.raises(AssertionError):
        assert_within_the_limit(costs_late_in("sac-lagrangian", 0, update_to_data=0.0, **LAGRANGE))


def test_a_random_policy_does_not() -> None:
    """Uniform torques have half of the largest cost in each step."""
    rng = np.random.default_rng(0)
    env, costs = make_env("Pendulum-v1"), []
    for seed in FRESH_SEEDS:
        env.reset(seed=seed)
        sizes = np.abs(rng.uniform(-1, 1, 200))
        costs.append(float((0.99 ** np.arange(200) * sizes).sum()))
    with pytest.raises(AssertionError):
        assert_within_the_limit(float(np.mean(costs)))

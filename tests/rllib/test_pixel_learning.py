"""Test that both algorithms learn from images: to push a dot to the centre, within 3,000 updates."""

from __future__ import annotations

import numpy as np
import pytest

from rllib_hpo.rllib.algorithms import make_config
from rllib_hpo.rllib.evaluation import evaluate
from rllib_hpo.streams import seed_sequence
from rllib_hpo.tasks import ActionScaling
from rllib_hpo.tasks.observations import flattened
from tests.rllib.tiny import running
from tests.tasks.pixels.dot import FRAMES, make_dot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SEEDS = [int(state >> 1) for state in seed_sequence(0, "fresh episodes").generate_state(20)]
WARMUP, UPDATES = 500, 2_500


def random_returns() -> list[float]:
    """Return the returns of uniformly random actions."""
    rng, returns = np.random.default_rng(0), []
    for seed in SEEDS:
        env = flattened(make_dot())
        env.reset(seed=seed)
        scaling, total, over = ActionScaling.of(env.action_space), 0.0, False
        while not over:
            _, reward, _, over, _ = env.step(scaling.to_env(rng.uniform(-1, 1, 2)))
            total += reward
        returns.append(total)
    return returns


@pytest.mark.parametrize("algorithm", [pytest.param("sac-ae", marks=pytest.mark.exhaustive), "sac-ae-hpo"])
def test_it_learns(algorithm: str) -> None:
    config = make_config(algorithm).environment(make_dot).debugging(seed=0, log_level="ERROR")
    config.training(
        frame_stack=FRAMES,
        conv_layers=3,
        conv_filters=8,
        latent_dim=16,
        hidden_units=64,
        train_batch_size_per_learner=32,
        warmup_steps=WARMUP,
        evaluation_every=10_000,
        evaluation_episodes=1,
        checkpoint_every=10_000,
    )
    with running(config) as built:
        while built.env_steps < WARMUP + UPDATES:
            built.train()
        returns = evaluate(built.actor, lambda: flattened(make_dot()), SEEDS).returns
    assert np.mean(returns) > 0.5 * np.mean(random_returns()), np.mean(returns)

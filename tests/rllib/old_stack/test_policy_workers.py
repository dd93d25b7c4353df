"""Test the old API stack with remote RolloutWorkers."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from ray import tune

from rllib_hpo.rllib.algorithms import SACHPO
from tests.rllib.environments import CountingEnv, NoisyEnv
from tests.rllib.old_stack.test_policy_stack import old_config, rows_of
from tests.rllib.tiny import SAC_HPO_OF_BOTH_STACKS_IN_TIME, assert_equal, loaded, running, train_to, tuned

pytestmark = pytest.mark.usefixtures("ray_session")


def assert_all_differ(rows: np.ndarray) -> None:
    """Check that no two workers drew the same; clipped actions are ignored."""
    actions = rows[:, 3][np.abs(rows[:, 3]) < 1]
    assert len(np.unique(actions)) == len(actions) > 20


@SAC_HPO_OF_BOTH_STACKS_IN_TIME
def test_workers_hold_the_learners_weights_and_targets(algorithm: str) -> None:
    config = old_config(algorithm, **tuned(algorithm)).env_runners(
        num_env_runners=2, rollout_fragment_length=4
    )
    with running(config) as built:
        train_to(built, 80)
        mine = built.get_policy().get_weights()
        theirs = built.env_runner_group.foreach_env_runner(
            lambda worker: worker.get_policy().get_weights(), local_env_runner=False
        )
        assert len(theirs) == 2
        for weights in theirs:
            assert_equal(weights, mine)
        assert any("target_critics" in name for name in mine)
        assert_all_differ(rows_of(built))


@pytest.mark.exhaustive
def test_policy_lag_counts_updates_since_the_weights_that_acted() -> None:
    config = old_config("sac", steps_per_iteration=4).env_runners(
        num_env_runners=2, rollout_fragment_length=4
    )
    with running(config) as built:
        lags = []
        for _ in range(8):
            built.train()
            lags.append(built.stack.policy_lag)
    # Each sampling yields eight steps, learned from in two iterations, after a warm-up of twenty.
    assert lags == [0, 0, 0, 0, 0, 4, 4, 8]


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced() -> None:
    config = old_config("sac-hpo", NoisyEnv).env_runners(num_env_runners=2, rollout_fragment_length=4)
    with running(config) as built:
        train_to(built, 80)
        built.env_runner_group.foreach_env_runner(
            lambda _: os._exit(1), remote_worker_ids=[1], local_env_runner=False
        )
        train_to(built, 400)
        assert built._num_updates == 380
        assert built.local_learner.replay.total_rows == 400
        indices = built.env_runner_group.foreach_env_runner(
            lambda worker: (worker.worker_index, worker.get_policy()._owner[2]), local_env_runner=False
        )
        weights = built.env_runner_group.foreach_env_runner(
            lambda worker: worker.get_policy().get_weights(), local_env_runner=False
        )
        for each in weights:
            assert_equal(each, built.get_policy().get_weights())
    assert sorted(index for index, _ in indices) == [1, 2]
    assert dict(indices)[1] >= 80  # the replacement does not repeat its predecessor's draws
    assert dict(indices)[2] == 0


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_worker_that_hangs_does_not_keep_a_run_from_ending(tmp_path: Path) -> None:
    hung = {"bad": "hung", "bad_step": 25, "hung": str(tmp_path / "hung"), "hung_runner": 1}
    config = old_config("sac", CountingEnv).environment(env_config={"length": 7, **hung})
    config.env_runners(num_env_runners=2, rollout_fragment_length=4, sample_timeout_s=0.5)
    with running(config) as built:
        while not (tmp_path / "hung").exists():
            built.train()
        began = time.monotonic()
    assert time.monotonic() - began < 60


@pytest.mark.exhaustive
@pytest.mark.slow
def test_resumed_workers_explore_apart(tmp_path: Path) -> None:
    config = old_config("sac-hpo").env_runners(num_env_runners=2, rollout_fragment_length=4)
    with running(config) as built:
        train_to(built, 40)
        built.save_to_path(tmp_path / "checkpoint")
    with loaded(tmp_path / "checkpoint") as resumed:
        owners = resumed.env_runner_group.foreach_env_runner(
            lambda worker: worker.get_policy()._owner, local_env_runner=False
        )
        assert owners == [("policy", 1, 40), ("policy", 2, 40)]
        train_to(resumed, 80)
        assert_all_differ(rows_of(resumed))


@pytest.mark.slow
def test_tune_runs_it(tmp_path: Path) -> None:
    tuner = tune.Tuner(
        SACHPO,
        param_space=old_config("sac-hpo").env_runners(num_env_runners=1),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            stop={"num_env_steps_sampled_lifetime": 80},
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            verbose=0,
        ),
    )
    result = tuner.fit()[0]
    assert result.error is None
    assert result.metrics["evaluation"]["env_steps"] == 80
    with loaded(result.checkpoint) as resumed:
        assert (resumed.env_steps, resumed._num_updates) == (80, 60)

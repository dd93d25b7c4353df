"""Test training on RLlib's old API stack: RolloutWorkers act, the driver's TorchPolicy learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.policy.policy import Policy

from rllib_hpo.errors import CheckpointError, NonFiniteError, SettingsError
from rllib_hpo.results import read_rows, without_volatile
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.algorithms import SACHPO, SACHPOConfig
from rllib_hpo.rllib.checkpointing import MANIFEST
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.rllib.old_stack.policy import SACHPOTorchPolicy
from tests.kinds import OF_VECTORS
from tests.rllib.environments import CountingEnv, NoisyEnv
from tests.rllib.tiny import (
    EVERY_ALGORITHM_OF_BOTH_STACKS_IN_TIME,
    IN_TIME,
    OF_BOTH_STACKS,
    REPEATS,
    assert_equal,
    loaded,
    running,
    tiny_config,
    train_to,
    tuned,
)

OLD = {"enable_rl_module_and_learner": False, "enable_env_runner_and_connector_v2": False}


def old_config(algorithm: str = "sac", env: Any = "Pendulum-v1", **settings: Any) -> ActorCriticConfig:
    """Make a tiny config on the old stack."""
    return tiny_config(algorithm, env, **settings).api_stack(**OLD)


def rows_of(algorithm: ActorCriticAlgorithm) -> np.ndarray:
    """Return the whole replay, oldest row first."""
    replay = algorithm.local_learner.replay
    return np.concatenate(replay.read(replay.total_rows - replay.num_rows, replay.total_rows))


def facts(algorithm: ActorCriticAlgorithm) -> dict[str, Any]:
    """Return everything that a checkpoint must restore."""
    state = algorithm.get_policy().get_state()
    return {
        **{
            name: state[name]
            for name in ("weights", "_optimizer_variables", "trainer", "exploration_streams")
        },
        "rows": rows_of(algorithm),
        "env_steps": algorithm.env_steps,
        "updates": algorithm._num_updates,
        "evaluation": algorithm.latest_evaluation,
    }


# --- training ---


@pytest.mark.parametrize(
    ("algorithm", "env"),
    [
        pytest.param(name, env, marks=[] if name in few else pytest.mark.exhaustive)
        for env, few in (("Hopper-v4", {*OF_VECTORS} - {*REPEATS}), (NoisyEnv, IN_TIME))
        for name in OF_BOTH_STACKS
    ],
)
def test_every_algorithm_trains_without_a_cluster(algorithm: str, env: Any, tmp_path: Path) -> None:
    import ray

    with running(old_config(algorithm, env).results(results_dir=str(tmp_path))) as built:
        before = built.get_policy().get_weights()
        result = train_to(built, 80)
        for name, value in built.get_policy().get_weights().items():
            assert np.isfinite(value).all()
            may_stay = "log_alpha" in name or "multiplier" in name
            assert may_stay or not np.array_equal(value, before[name]), name
    learned = result["learners"]["default_policy"]
    assert {"critic_loss", "policy_loss", "q_mean", "replay_rows"} <= learned.keys()
    assert learned == result["info"]["learner"]["default_policy"]["learner_stats"]
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] == 80
    assert result["timesteps_total"] == 80
    assert result["evaluation"]["env_steps"] == 80
    assert [row["env_steps"] for row in read_rows(tmp_path).to_pylist()] == [0, 40, 80]
    assert not ray.is_initialized()


@pytest.mark.parametrize("rate", [0.25, 1.0, 2.0])
@pytest.mark.parametrize(("num_envs", "fragment"), [(1, 1), (1, 7), (3, 4)])
def test_counts_are_exact(num_envs: int, fragment: int, rate: float) -> None:
    """Fragments end beyond the stops, which are at 20 (warm-up), 40, 80 and 120 steps."""
    config = old_config(update_to_data=rate)
    config.env_runners(num_envs_per_env_runner=num_envs, rollout_fragment_length=fragment)
    with running(config) as algorithm:
        for stop in (40, 80, 120):
            algorithm.train()
            trainer = algorithm.local_learner.trainer
            assert algorithm.env_steps == algorithm.local_learner.replay.total_rows == stop
            assert trainer.num_updates == algorithm._num_updates == int(rate * (stop - 20))
            assert algorithm.latest_evaluation is not None
            assert algorithm.latest_evaluation["env_steps"] == stop


def test_rows_are_transitions() -> None:
    """Actions are the policy's, successors are true, there are no autoreset rows, and time limits bootstrap."""
    with running(old_config(env=CountingEnv, warmup_steps=30)) as algorithm:
        train_to(algorithm, 40)
        rows = rows_of(algorithm)
    obs, action, reward, terminated, next_obs = rows[:, :3], rows[:, 3], rows[:, 4], rows[:, 5], rows[:, 6:]
    steps, episodes = np.arange(40) % 4, np.arange(40) // 4
    np.testing.assert_array_equal(obs[:, 1], steps)
    np.testing.assert_array_equal(next_obs[:, 1], steps + 1)
    np.testing.assert_array_equal(next_obs[:, 0], obs[:, 0])
    np.testing.assert_array_equal(np.diff(obs[:, 0]), np.diff(episodes))
    np.testing.assert_array_equal(reward, steps + 1)
    np.testing.assert_array_equal(terminated, (steps == 3) & (obs[:, 0] % 2 == 1))
    assert np.abs(action).max() <= 1
    # The environment was given the same actions within its own bounds, -3 to 5, unsquashed once.
    np.testing.assert_allclose(next_obs[:, 2], 1 + 4 * action, rtol=1e-5)
    # The warm-up is uniform, and not over once a fragment is.
    assert np.abs(action[:30]).mean() > 0.35
    assert len(np.unique(action)) == 40


@EVERY_ALGORITHM_OF_BOTH_STACKS_IN_TIME
def test_one_seed_is_one_run(algorithm: str, tmp_path: Path) -> None:
    rows = []
    for name in ("one", "other"):
        with running(old_config(algorithm).results(results_dir=str(tmp_path / name))) as built:
            train_to(built, 80)
        rows.append(without_volatile(read_rows(tmp_path / name)).to_pylist())
    assert rows[0] == rows[1]
    assert json.loads(rows[0][0]["config_json"])["api_stack"] == "old"


def test_evaluations_are_those_of_the_new_stack() -> None:
    """With equal initial weights and episodes, both stacks report the same at step 0."""
    evaluations = []
    for config in (tiny_config("sac-hpo"), old_config("sac-hpo")):
        with running(config) as built:
            evaluations.append(built.evaluate())
    assert evaluations[0] == evaluations[1]


def test_the_algorithm_unsquashes_once() -> None:
    with running(old_config("sac-hpo", env=CountingEnv)) as algorithm:
        train_to(algorithm, 40)
        obs = np.array([1.0, 2.0, 3.0], np.float32)
        action = algorithm.get_policy().compute_single_action(obs, explore=False)[0]
        np.testing.assert_allclose(
            algorithm.compute_single_action(obs, explore=False), 1 + 4 * action, rtol=1e-5
        )
        explored = {float(algorithm.compute_single_action(obs, explore=True)[0]) for _ in range(4)}
    assert len(explored) == 4


@pytest.mark.parametrize("bad", ["observation", "reward"])
def test_what_is_not_finite_stops_the_run(bad: str) -> None:
    config = old_config(env=CountingEnv)
    config.environment(env_config={"bad": bad, "bad_step": 50, "value": float("nan")})
    with running(config) as algorithm:
        train_to(algorithm, 40)
        # The row before it is still with RLlib's collector when the environment's step raises.
        with pytest.raises(NonFiniteError, match="not finite, after 48 environment steps"):
            algorithm.train()
        assert algorithm.local_learner.replay.total_rows == 48


def test_rollout_callbacks_are_called() -> None:
    class Watching(RLlibCallback):
        """Record the ends of episodes, which the new stack's runners do not report."""

        ended = 0

        def on_episode_end(self, **_: Any) -> None:
            Watching.ended += 1

    with running(old_config(env=CountingEnv).callbacks(Watching)) as algorithm:
        train_to(algorithm, 40)
    assert Watching.ended == 10


# --- configuration ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.learners(num_learners=1),
            r"num_learners=1 would have no effect here\. It is an option of RLlib's new",
        ),
        (lambda c: c.resources(num_gpus=2), r"num_gpus=2 must be from 0 to 1"),
        (lambda c: c.resources(num_gpus=1), r"num_gpus=1, but torch finds no CUDA device"),
        (lambda c: c.callbacks([RLlibCallback]), "accepts a single callbacks class"),
        (
            lambda c: c.env_runners(batch_mode="complete_episodes"),
            "batch_mode='complete_episodes' would have no",
        ),
        (
            lambda c: c.env_runners(observation_filter="MeanStdFilter"),
            "observation_filter='MeanStdFilter' would",
        ),
        (lambda c: c.api_stack(enable_rl_module_and_learner=True), "must both be True"),
    ],
)
def test_what_has_no_effect_is_refused(change: Any, message: str) -> None:
    config = old_config()
    change(config)
    with pytest.raises(SettingsError, match=message):
        config.build_algo()


def test_the_new_stack_refuses_the_old_ones_options() -> None:
    with pytest.raises(
        SettingsError, match=r"num_gpus=1 would have no effect here\. It is an option of RLlib's old"
    ):
        tiny_config().resources(num_gpus=1).validate()


def test_the_gpu_is_asked_for_where_the_policy_learns() -> None:
    config = SACHPOConfig().environment("Pendulum-v1").api_stack(**OLD)
    config.resources(num_gpus=0.5).env_runners(num_env_runners=2)
    request = SACHPO.default_resource_request(config.to_dict())
    assert [bundle.get("GPU", 0) for bundle in request.bundles] == [0.5, 0, 0]


# --- checkpoints ---


@pytest.mark.parametrize(
    ("algorithm", "way"),
    [
        pytest.param(name, way, marks=[] if name in few else pytest.mark.exhaustive)
        for way, few in (
            ("from_checkpoint", {*OF_VECTORS} - {*REPEATS}),
            ("restore_from_path", IN_TIME),
            ("restore", IN_TIME),
        )
        for name in OF_BOTH_STACKS
    ],
)
def test_a_checkpoint_brings_everything_back(algorithm: str, way: str, tmp_path: Path) -> None:
    config = old_config(algorithm, **tuned(algorithm))
    with running(config) as built:
        train_to(built, 80)
        before = facts(built)
        built.save_to_path(tmp_path / "checkpoint") if way != "restore" else built.save(
            tmp_path / "checkpoint"
        )
        expected = built.get_policy().compute_actions(np.ones((4, 3)), explore=False)[0]
    if way == "from_checkpoint":
        with loaded(tmp_path / "checkpoint") as resumed:
            assert type(resumed.get_policy()) is type(built.get_policy())
            assert_equal(before, facts(resumed))
            train_to(resumed, 120)
            assert resumed._num_updates == 100
        return
    with running(config) as fresh:
        getattr(fresh, way)(str(tmp_path / "checkpoint"))
        assert_equal(before, facts(fresh))
        assert np.array_equal(fresh.get_policy().compute_actions(np.ones((4, 3)), explore=False)[0], expected)
        train_to(fresh, 120)


def test_rllibs_own_functions_read_the_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(old_config("sac-hpo")) as built:
        train_to(built, 80)
        built.save_to_path(tmp_path / "checkpoint")
        before = facts(built)
        assert "durable policy name" not in caplog.text  # RLlib warns of policies that it does not know
        expected = built.get_policy().compute_actions(np.ones((4, 3)), explore=False)[0]
    policy = Policy.from_checkpoint(str(tmp_path / "checkpoint"))["default_policy"]
    assert isinstance(policy, SACHPOTorchPolicy)
    assert np.array_equal(policy.compute_actions(np.ones((4, 3)), explore=False)[0], expected)
    algorithm = Algorithm.from_checkpoint(str(tmp_path / "checkpoint"))
    assert_equal(before, facts(algorithm))
    train_to(algorithm, 120)
    algorithm.stop()


def test_checkpoints_of_earlier_versions_are_loaded(tmp_path: Path) -> None:
    """They lack the files by which RLlib's Algorithm calls our loading; it then refuses to train without a replay."""
    checkpoint = tmp_path / "checkpoint"
    with running(old_config("sac-hpo")) as built:
        train_to(built, 80)
        built.save_to_path(checkpoint)
        before = facts(built)
    (checkpoint / "class_and_ctor_args.pkl").unlink()
    about = checkpoint / "rllib_checkpoint.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "checkpoint_version": "1.1"}))
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    del manifest["files"]["class_and_ctor_args.pkl"], manifest["files"]["rllib_checkpoint.json"]
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    with loaded(checkpoint) as resumed:
        assert_equal(before, facts(resumed))
        train_to(resumed, 120)
    algorithm = Algorithm.from_checkpoint(str(checkpoint))
    assert algorithm.env_steps == 80
    with pytest.raises(CheckpointError, match=r"The replay of step 80 was not loaded.*SACHPO\.from_check"):
        algorithm.train()
    algorithm.stop()


def test_damage_and_the_other_stack_are_named(tmp_path: Path) -> None:
    with running(old_config()) as built:
        train_to(built, 40)
        built.save_to_path(tmp_path / "checkpoint")
    with (
        running(tiny_config()) as new,
        pytest.raises(CheckpointError, match=r"old API stack.*rllib-hpo convert"),
    ):
        new.restore_from_path(tmp_path / "checkpoint")
    state = tmp_path / "checkpoint" / "policies" / "default_policy" / "policy_state.pkl"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=r"policies/default_policy/policy_state\.pkl is missing or differs"
    ):
        ActorCriticAlgorithm.from_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="not a finished checkpoint"):
        ActorCriticAlgorithm.from_checkpoint(tmp_path / "checkpoint")


def test_the_global_generator_is_not_drawn_from() -> None:
    with running(old_config("sac-hpo")) as algorithm:
        train_to(algorithm, 40)
        before = torch.get_rng_state().clone()
        train_to(algorithm, 80)
        assert torch.equal(torch.get_rng_state(), before)

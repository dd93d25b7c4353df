"""Test several remote learners: equal models, a replay shard each, resharded checkpoints, and deaths."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rllib_hpo.errors import NonFiniteError, WorkerDiedError
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.algorithms import SACGaussianConfig
from rllib_hpo.rllib.checkpointing import read_manifest
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.rllib.converting import convert
from rllib_hpo.rllib.new_stack.learner import ActorCriticLearner
from rllib_hpo.rllib.trained_policy import load_policy
from tests.rllib.tiny import (
    assert_equal,
    facts,
    learner_facts,
    loaded,
    running,
    tiny_config,
    train_to,
    tuned,
)

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]

LEARNED = ("parameters", "optimizers", "num_updates")


def config_of(
    algorithm: str = "sac", num_learners: int = 2, num_env_runners: int = 0, **settings: Any
) -> ActorCriticConfig:
    """Make a tiny config whose runners deliver four steps at a time."""
    config = tiny_config(algorithm, "Hopper-v4", **settings).learners(num_learners=num_learners)
    return config.env_runners(num_env_runners=num_env_runners, rollout_fragment_length=4)


def on_learners(algorithm: ActorCriticAlgorithm, function: Any) -> list[Any]:
    """Return the result of `function` at each learner, in order."""
    results = algorithm.learner_group.foreach_learner(lambda learner, **_: function(learner))
    return [result.get() for result in results]


def all_facts(algorithm: ActorCriticAlgorithm) -> list[dict[str, Any]]:
    """Return everything that determines each learner's next steps; check that the shared part is equal."""
    found = on_learners(algorithm, learner_facts)
    for other in found[1:]:
        assert_equal({name: found[0][name] for name in LEARNED}, {name: other[name] for name in LEARNED})
    return found


def rows_of(found: list[dict[str, Any]]) -> np.ndarray:
    """Return the rows of all shards, sorted."""
    rows = np.concatenate([each["rows"] for each in found])
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("algorithm", ["sac-hpo", pytest.param("td3", marks=pytest.mark.exhaustive)])
def test_learners_train_one_model_on_shards_of_one_replay(algorithm: str) -> None:
    config = config_of(algorithm, 3 if algorithm == "sac-hpo" else 2, num_env_runners=1, **tuned(algorithm))
    with running(config) as built:
        result = train_to(built, 80)
        found = all_facts(built)
        assert [each["num_updates"] for each in found] == [60] * config.num_learners
        assert sum(each["total_rows"] for each in found) == 80
        assert all(each["total_rows"] >= 20 for each in found)
        assert len(np.unique(rows_of(found), axis=0)) == 80
        streams = [each["streams"] for each in found]
        for name in streams[0]:
            positions = {bytes(stream[name]) for stream in streams}
            assert len(positions) == config.num_learners
        learned = result["learners"]["default_policy"]
        assert (learned["num_updates"], learned["replay_rows"]) == (60, 80)
        if "alpha" in learned:
            alpha = float(np.exp(found[0]["parameters"]["log_alpha"]))
            assert learned["alpha"] == pytest.approx(alpha, abs=0.02)
        assert np.isfinite(learned["critic_loss"])
        built.evaluate()
        state = {name: value.numpy() for name, value in built.env_runner.module.model.state_dict().items()}
        assert_equal(state, {name: found[0]["parameters"][name] for name in state})
        assert "gpu_memory_bytes" not in learned
        assert built.stack.call_core("device_name") == "cpu"


def test_a_batch_of_each_learner_makes_an_update() -> None:
    """Metrics are means over the learners, whose batches differ."""

    def latest(learner: Any) -> dict[str, float]:
        sums: dict[str, torch.Tensor] = learner.core.trainer._sums
        return {name: float(value) / learner.core.trainer._num_summed[name] for name, value in sums.items()}

    with running(config_of(steps_per_iteration=24)) as algorithm:
        algorithm.train()
        algorithm.stack.collect_and_learn(28)
        own = on_learners(algorithm, latest)
        assert own[0]["critic_loss"] != own[1]["critic_loss"]
        flushed = algorithm.stack.call_core("flush_metrics")
        for name in own[0]:
            assert flushed[name] == pytest.approx((own[0][name] + own[1][name]) / 2, rel=1e-6)


def test_updates_wait_until_every_shard_has_rows() -> None:
    """After a warm-up of one block with three learners, updates due with the second block are made with the third."""
    with running(config_of(num_learners=3, warmup_steps=4, steps_per_iteration=4)) as algorithm:
        made = []
        for _ in range(4):
            algorithm.train()
            made.append([each["num_updates"] for each in all_facts(algorithm)])
        assert made == [[0] * 3, [0] * 3, [8] * 3, [12] * 3]


def test_resuming_goes_on_bitwise(tmp_path: Path) -> None:
    """Every learner's streams and shard are restored; later checkpoints write new rows only."""
    config = config_of("sac-hpo", num_env_runners=2, alpha="auto").env_runners(max_lead_steps=0)
    config.checkpointing(replay_dir=str(tmp_path / "replay"))
    with running(config) as whole:
        train_to(whole, 80)
        whole.save_to_path(tmp_path / "checkpoint")
        manifest = read_manifest(tmp_path / "checkpoint")
        at_checkpoint = facts(whole), all_facts(whole)
        train_to(whole, 120)
        expected = facts(whole), all_facts(whole)
    assert manifest["replay"]["shards"] == 2
    folders = {Path(segment["file"]).parent.name for segment in manifest["replay"]["segments"]}
    assert folders == {"shard-0", "shard-1"}
    with loaded(tmp_path / "checkpoint") as resumed:
        assert_equal(at_checkpoint, (facts(resumed), all_facts(resumed)))
        train_to(resumed, 120)
        assert_equal(expected, (facts(resumed), all_facts(resumed)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (2, 3),
        *(pytest.param(*more, marks=pytest.mark.exhaustive) for more in ((0, 2), (2, 0), (3, 2), (1, 2))),
    ],
)
def test_another_number_of_learners_goes_on(before: int, after: int, tmp_path: Path) -> None:
    """The model is equal and every row exists once; added learners draw from streams of their own."""
    with running(config_of(num_learners=before)) as algorithm:
        train_to(algorithm, 40)
        algorithm.save_to_path(tmp_path / "first")
        saved = all_facts(algorithm)
    with running(config_of(num_learners=after)) as algorithm:
        algorithm.restore_from_path(tmp_path / "first")
        found = all_facts(algorithm)
        assert_equal([saved[0][name] for name in LEARNED], [found[0][name] for name in LEARNED])
        assert_equal(rows_of(saved), rows_of(found))
        sizes = [each["total_rows"] for each in found]
        assert max(sizes) - min(sizes) <= 1
        assert_equal(saved[0]["streams"], found[0]["streams"])
        train_to(algorithm, 80)
        assert [each["num_updates"] for each in all_facts(algorithm)] == [60] * max(1, after)
        positions = [bytes(each["streams"]["replay"]) for each in all_facts(algorithm)]
        assert len(set(positions)) == max(1, after)
        algorithm.save_to_path(tmp_path / "second")
        expected = all_facts(algorithm)
    with loaded(tmp_path / "second") as algorithm:
        assert_equal(expected, all_facts(algorithm))


def test_checkpoints_convert_and_hand_out_their_policy(tmp_path: Path) -> None:
    with running(config_of()) as algorithm:
        train_to(algorithm, 40)
        algorithm.save_to_path(tmp_path / "checkpoint")
        found = all_facts(algorithm)
    policy = load_policy(tmp_path / "checkpoint")
    state = {name: value.numpy() for name, value in policy.actor.state_dict().items()}
    assert_equal(state, {name: found[0]["parameters"][name] for name in state})
    assert convert(tmp_path / "checkpoint", tmp_path / "old") == "old"
    with loaded(tmp_path / "old") as old:
        core = old.local_learner
        assert_equal(
            found[0]["parameters"], {n: v.numpy() for n, v in core.trainer.model.state_dict().items()}
        )
        assert core.replay.num_rows == 40
        train_to(old, 80)


def die_after(updates: int, signal_number: int) -> Any:
    """Make a learner kill itself during training."""

    def prepare(learner: Any) -> None:
        core, learn = learner.core, learner.core.trainer.learn

        def learn_or_die(batch: Any) -> Any:
            if core.trainer.num_updates == updates:
                os.kill(os.getpid(), signal_number)
            return learn(batch)

        core._learn = learn_or_die

    return prepare


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_a_learner_that_is_killed_ends_the_run_within_a_minute(rank: int) -> None:
    with running(config_of(update_to_data=10.0)) as algorithm:
        train_to(algorithm, 40)
        function = die_after(250, signal.SIGKILL)
        algorithm.learner_group.foreach_learner(
            lambda learner, **_: function(learner), remote_actor_ids=[rank]
        )
        began = time.monotonic()
        with pytest.raises(
            WorkerDiedError, match=r"^A remote learner died; resume the run from its last check"
        ):
            algorithm.train()
        assert time.monotonic() - began < 60
        with pytest.raises(WorkerDiedError):
            algorithm.save_to_path()


class StillbornLearner(ActorCriticLearner):
    """Kill the second learner before it is built, while the first waits for it."""

    def build(self) -> None:
        """Build, unless this is the second learner."""
        if self._learner_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        super().build()


class StillbornConfig(SACGaussianConfig):
    """Select that learner class; RLlib's option for it has no effect in a subclassed config."""

    def get_default_learner_class(self) -> type:
        """Return the learner class that dies."""
        return StillbornLearner


def test_a_learner_that_dies_while_it_starts_is_told_of() -> None:
    config = StillbornConfig().environment("Pendulum-v1").learners(num_learners=2)
    with pytest.raises(WorkerDiedError, match="A remote learner died"):
        config.debugging(log_level="ERROR").build_algo()


def test_a_learner_that_falls_silent_ends_the_run_within_a_minute() -> None:
    """If its machine is gone, the others wait until a timeout, and no process is left behind."""
    with running(config_of()) as algorithm:
        train_to(algorithm, 40)
        function = die_after(25, signal.SIGSTOP)
        algorithm.learner_group.foreach_learner(lambda learner, **_: function(learner), remote_actor_ids=[1])
        pids = on_learners(algorithm, lambda learner: os.getpid())
        began = time.monotonic()
        with pytest.raises(
            WorkerDiedError, match=r"^A remote learner died; resume the run from its last check"
        ):
            algorithm.train()
    assert time.monotonic() - began < 60  # stopped as well; 50 s as a rule
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_bad_loss_at_one_learner_stops_all() -> None:
    def poison(learner: Any) -> None:
        replay = learner.core.replay
        replay._rows[:, replay.layout.obs_dim + replay.layout.action_dim] = float("nan")

    with running(config_of()) as algorithm:
        train_to(algorithm, 40)
        before = all_facts(algorithm)[0]["parameters"]
        algorithm.learner_group.foreach_learner(lambda learner, **_: poison(learner), remote_actor_ids=[1])
        with pytest.raises(
            NonFiniteError, match=r"The critic loss is nan at update 21, after 4. environment"
        ):
            algorithm.train()
        assert_equal([before] * 2, [each["parameters"] for each in all_facts(algorithm)])

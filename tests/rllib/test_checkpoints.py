"""Test that a run resumed from a checkpoint is bitwise the uninterrupted run."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_hpo.errors import CheckpointError, StorageError
from rllib_hpo.results import read_rows, without_volatile
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.checkpointing import MANIFEST, read_manifest, verify
from tests.kinds import OF_VECTORS
from tests.rllib.environments import NoisyEnv
from tests.rllib.tiny import (
    EVERY_ALGORITHM,
    EVERY_ALGORITHM_IN_TIME,
    IN_TIME,
    REPEATS,
    assert_equal,
    facts,
    loaded,
    running,
    tiny_config,
    train_to,
    tuned,
)

ENVIRONMENTS = {
    "Pendulum-v1": "Pendulum-v1",
    "Hopper-v4": "Hopper-v4",
    "one that cannot be saved": NoisyEnv,
}


def module_path(checkpoint: Path) -> Path:
    """Return the path of the RLModule within a checkpoint."""
    return checkpoint / "learner_group" / "learner" / "rl_module" / "default_policy"


RESUMED = [
    pytest.param(
        name,
        env,
        way,
        id=f"{way}-{place}-{name}",
        marks=[]
        if name in IN_TIME or (place == "Pendulum-v1" and way == "from_checkpoint" and name not in REPEATS)
        else pytest.mark.exhaustive,
    )
    for way in ("from_checkpoint", "restore_from_path")
    for place, env in ENVIRONMENTS.items()
    for name in OF_VECTORS
]
"""Every algorithm in one way; those of `IN_TIME` in every way."""


@pytest.mark.parametrize(("algorithm", "env", "way"), RESUMED)
def test_a_resumed_run_is_the_uninterrupted_one(algorithm: str, env: Any, way: str, tmp_path: Path) -> None:
    """Parameters, optimizers, replay, streams, simulators, running episodes, counters and rows are equal."""

    def config(name: str) -> Any:
        made = tiny_config(algorithm, env, **tuned(algorithm)).env_runners(num_envs_per_env_runner=2)
        return made.results(results_dir=str(tmp_path / name), trial_id="t")

    with running(config("rows")) as whole:
        train_to(whole, 80)
        whole.save_to_path(tmp_path / "checkpoint")
        at_checkpoint = facts(whole)
        shutil.copytree(tmp_path / "rows", tmp_path / "other rows")
        last = train_to(whole, 160)
        expected = facts(whole)
    if way == "from_checkpoint":
        resumed = ActorCriticAlgorithm.from_checkpoint(tmp_path / "checkpoint", config=config("other rows"))
    else:
        resumed = config("other rows").build_algo()
        resumed.train()  # whatever it did before is forgotten
        resumed.restore_from_path(tmp_path / "checkpoint")
    try:
        assert_equal(at_checkpoint, facts(resumed))
        again = train_to(resumed, 160)
        assert_equal(expected, facts(resumed))
    finally:
        resumed.stop()
    assert again["learners"]["default_policy"] == last["learners"]["default_policy"]
    assert again["num_env_steps_sampled_lifetime"] == 160
    assert again["training_iteration"] == last["training_iteration"]
    first, second = (without_volatile(read_rows(tmp_path / name)) for name in ("rows", "other rows"))
    assert first.equals(second)
    assert second["env_steps"].to_pylist() == [0, 40, 80, 120, 160]


@EVERY_ALGORITHM_IN_TIME
def test_saving_changes_nothing(algorithm: str, tmp_path: Path) -> None:
    with running(tiny_config(algorithm, NoisyEnv)) as one, running(tiny_config(algorithm, NoisyEnv)) as other:
        for steps in (40, 80, 120):
            train_to(one, steps)
            one.save_to_path(tmp_path / str(steps))
        train_to(other, 120)
        assert_equal(facts(one), facts(other))


def test_pybullet_resumes_exactly(tmp_path: Path) -> None:
    pytest.importorskip("pybullet_envs_gymnasium")
    config = tiny_config("sac-hpo", "HumanoidPyBulletEnv-v0", evaluation_episodes=1)
    with running(config) as whole:
        train_to(whole, 40)
        whole.save_to_path(tmp_path / "checkpoint")
        train_to(whole, 80)
        expected = facts(whole)
    with loaded(tmp_path / "checkpoint") as resumed:
        train_to(resumed, 80)
        assert_equal(expected, facts(resumed))


def test_the_warm_up_can_be_interrupted(tmp_path: Path) -> None:
    settings = {"warmup_steps": 60, "steps_per_iteration": 20, "checkpoint_every": 20}
    with running(tiny_config("sac", "Hopper-v4", **settings)) as whole:
        train_to(whole, 20)
        whole.save_to_path(tmp_path / "checkpoint")
        train_to(whole, 100)
        expected = facts(whole)
    with loaded(tmp_path / "checkpoint") as resumed:
        train_to(resumed, 100)
        assert_equal(expected, facts(resumed))


def test_an_evaluation_at_the_start_is_not_repeated(tmp_path: Path) -> None:
    evaluated: list[int] = []
    config = tiny_config().callbacks(
        on_evaluate_end=lambda algorithm, **_: evaluated.append(algorithm.env_steps)
    )
    with running(config) as algorithm:
        algorithm.save_to_path(tmp_path / "untouched")
    with running(config) as algorithm:
        algorithm.restore_from_path(tmp_path / "untouched")
        algorithm.train()
        assert evaluated == [0, 40]
        algorithm.save_to_path(tmp_path / "later")
    with running(config) as algorithm:
        algorithm.restore_from_path(tmp_path / "later")
        assert algorithm.latest_evaluation is not None
        algorithm.train()
    assert evaluated == [0, 40, 80]


# --- the replay's segments ---


def segment_files(checkpoint: Path) -> list[str]:
    """Return the names of the segments that a checkpoint lists."""
    return [segment["file"] for segment in read_manifest(checkpoint)["replay"]["segments"]]


def test_only_new_rows_are_written(tmp_path: Path) -> None:
    replay_dir = tmp_path / "replay"
    config = tiny_config(replay_capacity=100).checkpointing(replay_dir=str(replay_dir))
    with running(config) as algorithm:
        listed = []
        for steps in (40, 80, 120, 160, 200):
            train_to(algorithm, steps)
            algorithm.save_to_path(tmp_path / str(steps))
            listed.append(segment_files(tmp_path / str(steps)))
        expected = facts(algorithm)
    assert listed[1] == [*listed[0], listed[1][-1]]
    assert listed[2] == [*listed[1], listed[2][-1]]
    # Rows 0 to 59 and then 0 to 99 are overwritten: their segments are not listed any more.
    assert listed[3] == [*listed[2][1:], listed[3][-1]]
    assert listed[4] == [*listed[3][1:], listed[4][-1]]
    assert not (tmp_path / "40" / "replay").exists()
    for path in replay_dir.iterdir():
        assert np.load(path).shape == (40, 9)
    with loaded(tmp_path / "200") as resumed:
        assert_equal(expected, facts(resumed))
        # And goes on with the same segments.
        train_to(resumed, 240)
        resumed.save_to_path(tmp_path / "240")
    assert segment_files(tmp_path / "240")[:-1] == listed[4][1:]


def test_a_checkpoint_can_hold_its_replay(tmp_path: Path) -> None:
    with running(tiny_config()) as algorithm:
        for steps in (40, 80):
            train_to(algorithm, steps)
            algorithm.save_to_path(tmp_path / str(steps))
        expected = facts(algorithm)
    assert len(segment_files(tmp_path / "80")) == 1
    shutil.rmtree(tmp_path / "40")
    (tmp_path / "80").rename(tmp_path / "elsewhere")
    with loaded(tmp_path / "elsewhere") as resumed:
        assert_equal(expected, facts(resumed))


def test_a_run_directory_can_be_moved(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with running(tiny_config().checkpointing(replay_dir=str(run / "replay"))) as algorithm:
        for steps in (40, 80):
            train_to(algorithm, steps)
            algorithm.save_to_path(run / "checkpoints" / str(steps))
        expected = facts(algorithm)
    run.rename(tmp_path / "moved")
    with loaded(tmp_path / "moved" / "checkpoints" / "80") as resumed:
        assert_equal(expected, facts(resumed))


def test_a_run_directory_can_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "deep")
    config = tiny_config().checkpointing(replay_dir=str(tmp_path / "replay"))
    with running(config) as algorithm:
        train_to(algorithm, 40)
        algorithm.save_to_path(tmp_path / "run" / "checkpoint")
        expected = facts(algorithm)
    with loaded(tmp_path / "run" / "checkpoint") as resumed:
        assert_equal(expected, facts(resumed))


def test_a_checkpoint_can_be_written_twice_to_one_place(tmp_path: Path) -> None:
    """This holds also if somebody deleted it in between."""
    with running(tiny_config()) as algorithm:
        for steps in (40, 80, 120):
            train_to(algorithm, steps)
            if steps == 120:
                shutil.rmtree(tmp_path / "checkpoint")
            algorithm.save_to_path(tmp_path / "checkpoint")
            with loaded(tmp_path / "checkpoint") as resumed:
                assert_equal(facts(algorithm), facts(resumed))


# --- what can be wrong with a checkpoint ---


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a checkpoint of SAC on Pendulum."""
    path = tmp_path_factory.mktemp("pristine") / "checkpoint"
    with running(tiny_config()) as algorithm:
        train_to(algorithm, 40)
        algorithm.save_to_path(path)
    return path


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    """Copy the checkpoint, to be damaged."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoint"))


@pytest.fixture
def fresh() -> Any:
    """Make an algorithm that fits the checkpoint."""
    with running(tiny_config()) as algorithm:
        yield algorithm


def refusal(path: Path, algorithm: ActorCriticAlgorithm) -> str:
    """Return the sentence that rejects `path`, by both calls; the algorithm must not change."""
    before = facts(algorithm)
    with pytest.raises(CheckpointError) as caught:
        algorithm.restore_from_path(path)
    assert_equal(before, facts(algorithm))
    with pytest.raises(CheckpointError):
        ActorCriticAlgorithm.from_checkpoint(path)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def test_an_unfinished_checkpoint_is_none(checkpoint: Path, fresh: ActorCriticAlgorithm) -> None:
    (checkpoint / MANIFEST).unlink()
    assert "is not a finished checkpoint" in refusal(checkpoint, fresh)


def test_a_directory_that_is_not_there(tmp_path: Path, fresh: ActorCriticAlgorithm) -> None:
    assert "is not a finished checkpoint" in refusal(tmp_path / "nothing", fresh)


@pytest.mark.parametrize("content", ["", "{", '{"format": 1', '{"format": 99}', "[]", "{}", '{"format": 1}'])
def test_a_damaged_manifest_is_named(checkpoint: Path, fresh: ActorCriticAlgorithm, content: str) -> None:
    (checkpoint / MANIFEST).write_text(content)
    assert str(checkpoint) in refusal(checkpoint, fresh)


def files_of(manifest: dict[str, Any]) -> list[str]:
    """Return the files that a manifest lists, segments last."""
    return [*manifest["files"], *(f"replay/{segment['file']}" for segment in manifest["replay"]["segments"])]


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_every_damaged_file_is_named(checkpoint: Path, fresh: ActorCriticAlgorithm, damage: str) -> None:
    """Each file is damaged in turn; nothing is unpickled before."""
    for name in files_of(read_manifest(checkpoint)):
        path = checkpoint / name
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        elif damage == "truncated":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert path.name in refusal(checkpoint, fresh)
        path.write_bytes(content)
    verify(checkpoint)


def test_nothing_but_the_manifest_is_unlisted(checkpoint: Path) -> None:
    found = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    assert found == {MANIFEST, *files_of(read_manifest(checkpoint))}


@pytest.mark.parametrize(
    ("other", "env", "phrase"),
    [
        ("sac-hpo", "Pendulum-v1", "has algorithm 'sac', but this run has 'sac-hpo'"),
        ("sac", "Hopper-v4", "has env 'Pendulum-v1', but this run has 'Hopper-v4'"),
    ],
)
def test_checkpoints_of_other_runs_are_refused(checkpoint: Path, other: str, env: str, phrase: str) -> None:
    with running(tiny_config(other, env)) as algorithm:
        with pytest.raises(CheckpointError, match=phrase):
            algorithm.restore_from_path(checkpoint)
        assert algorithm.env_steps == 0


@pytest.mark.parametrize("when", ["fresh", "overwriting"])
def test_a_full_disk_leaves_no_checkpoint(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one clear error, and the partial files do not count; the run itself can continue."""
    from rllib_hpo.rllib import checkpointing

    def full(*_: Any) -> None:
        raise StorageError("Cannot write: No space left on device.")

    with running(tiny_config()) as algorithm:
        train_to(algorithm, 40)
        if when == "overwriting":
            algorithm.save_to_path(tmp_path / "checkpoint")
            train_to(algorithm, 80)
        monkeypatch.setattr(checkpointing, "write_atomically", full)
        with pytest.raises(StorageError, match="No space left"):
            algorithm.save_to_path(tmp_path / "checkpoint")
        with pytest.raises(CheckpointError, match="not a finished checkpoint"):
            verify(tmp_path / "checkpoint")
        monkeypatch.undo()
        algorithm.save_to_path(tmp_path / "checkpoint")
        verify(tmp_path / "checkpoint")


def test_the_manifest_says_what_the_checkpoint_is(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    assert (manifest["algorithm"], manifest["env"], manifest["env_steps"]) == ("sac", "Pendulum-v1", 40)
    assert manifest["config"]["seed"] == 3
    assert manifest["evaluation"]["env_steps"] == 40
    assert {"torch", "ray", "rllib_hpo"} <= manifest["versions"].keys()


# --- what others read ---


@EVERY_ALGORITHM
def test_the_rl_module_acts_as_the_algorithm_does(algorithm: str, tmp_path: Path) -> None:
    """RLlib serves policies this way: rescaled, noise-free actions in [-1, 1]."""
    obs = torch.randn((6, 3), generator=torch.Generator().manual_seed(0))
    with running(tiny_config(algorithm)) as built:
        train_to(built, 80)
        expected = built.actor.act(obs)
        direct = built.get_module().forward_inference({Columns.OBS: obs})[Columns.ACTIONS]
        built.save_to_path(tmp_path / "checkpoint")
    module = RLModule.from_checkpoint(module_path(tmp_path / "checkpoint"))
    actions = module.forward_inference({Columns.OBS: obs})[Columns.ACTIONS]
    assert torch.equal(actions, expected)
    assert torch.equal(direct, expected)
    explored = module.forward_exploration({Columns.OBS: obs})[Columns.ACTIONS]
    assert not torch.equal(explored, expected)
    assert explored.abs().max() <= 1


def test_the_replay_is_not_pickled(checkpoint: Path) -> None:
    """Rows are in segments only; RLlib's own files stay small however long the run."""
    for path in checkpoint.rglob("*.pkl"):
        assert b"numpy" not in path.name.encode()
        with path.open("rb") as file:
            state = pickle.load(file)
        assert "replay" not in (state if isinstance(state, dict) else {})
    rows = sum(path.stat().st_size for path in (checkpoint / "replay").iterdir())
    assert rows == 40 * 9 * 4 + 128

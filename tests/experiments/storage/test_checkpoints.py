"""Test which checkpoints are kept, which one a run resumes, and that damage or a full disk loses nothing."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rllib_hpo.errors import CheckpointError, StorageError
from rllib_hpo.experiments.storage.checkpoints import CheckpointStore, find_checkpoint
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.checkpointing import verify
from rllib_hpo.rllib.trained_policy import load_policy
from tests.experiments.lives import (
    CLI,
    REPOSITORY,
    checkpoints,
    evaluated,
    new_run,
    resumed,
)
from tests.rllib.tiny import EVERY_ALGORITHM, assert_equal, facts, loaded, running, tiny_config, train_to
from tests.test_cli import run as run_here

EVERY = 40


@contextmanager
def a_run(directory: Path, algorithm: str = "sac", **settings: Any) -> Iterator[ActorCriticAlgorithm]:
    """Make an algorithm whose replay is in the run's directory."""
    config = tiny_config(algorithm, **settings).checkpointing(
        replay_dir=str(CheckpointStore(directory).replay_dir)
    )
    with running(config) as built:
        yield built


def trained(
    directory: Path, num: int, keep: int = 2, algorithm: str = "sac", **settings: Any
) -> dict[str, Any]:
    """Train a run with `num` checkpoints, one every 40 steps; return the state at the last."""
    store = CheckpointStore(directory, keep)
    with a_run(directory, algorithm, **settings) as built:
        for number in range(1, num + 1):
            train_to(built, number * EVERY)
            store.save(built)
        return facts(built)


def restored(directory: Path, algorithm: str = "sac", **settings: Any) -> tuple[Path | None, dict[str, Any]]:
    """Return what a new process would resume: the checkpoint, and the state it gives."""
    with a_run(directory, algorithm, **settings) as built:
        return CheckpointStore(directory).restore_newest(built), facts(built)


def flip_a_byte(path: Path) -> None:
    """Flip one byte, the smallest possible damage."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def newest_segment(checkpoint: Path) -> Path:
    """Return the file with the checkpoint's newest replay rows."""
    manifest = verify(checkpoint)
    return (
        checkpoint / manifest["replay"]["directory"] / manifest["replay"]["segments"][-1]["file"]
    ).resolve()


DAMAGES = {
    "no manifest": lambda checkpoint: (checkpoint / "manifest.json").unlink(),
    "a manifest cut short": lambda checkpoint: os.truncate(checkpoint / "manifest.json", 100),
    "a manifest of another format": lambda checkpoint: (checkpoint / "manifest.json").write_text(
        '{"format": 99}'
    ),
    "a flipped byte": lambda checkpoint: flip_a_byte(checkpoint / "learner_group/learner/state.pkl"),
    "a missing file": lambda checkpoint: (checkpoint / "algorithm_state.pkl").unlink(),
    "a flipped byte in the replay": lambda checkpoint: flip_a_byte(newest_segment(checkpoint)),
    "a missing replay segment": lambda checkpoint: newest_segment(checkpoint).unlink(),
}


@EVERY_ALGORITHM
def test_the_newest_comes_back(algorithm: str, tmp_path: Path) -> None:
    saved = trained(tmp_path, 2, algorithm=algorithm)
    path, state = restored(tmp_path, algorithm)
    assert path == tmp_path / "checkpoints" / "step-0000000080"
    assert_equal(state, saved)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over_with_a_message(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = trained(tmp_path / "a", 2)
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)
    with a_run(tmp_path / "b") as built:
        CheckpointStore(tmp_path / "b").restore_newest(built)
        train_to(built, 3 * EVERY)
        CheckpointStore(tmp_path / "b").save(built)
        after = facts(built)
    third = tmp_path / "b" / "checkpoints" / "step-0000000120"
    DAMAGES[damage](third)
    with a_run(tmp_path / "b") as built, caplog.at_level(logging.WARNING):
        store = CheckpointStore(tmp_path / "b")
        assert store.restore_newest(built) == third.with_name("step-0000000080")
        assert_equal(facts(built), before)
        (message,) = [
            record.getMessage() for record in caplog.records if "Using the previous" in record.getMessage()
        ]
        assert str(third) in message or "rows-0000000080-0000000120" in message
        # And the run makes it anew, whole.
        train_to(built, 3 * EVERY)
        assert store.save(built) == third
        assert_equal(facts(built), after)
    assert_equal(restored(tmp_path / "b")[1], after)


def test_a_damaged_one_never_displaces_an_intact_one(tmp_path: Path) -> None:
    """It is off the schedule, so the resumed run does not replace it."""
    trained(tmp_path, 2)
    with a_run(tmp_path) as built:
        store = CheckpointStore(tmp_path)
        store.restore_newest(built)
        built.max_env_steps = 95
        train_to(built, 95)
        store.save(built)
    DAMAGES["a flipped byte in the replay"](tmp_path / "checkpoints" / "step-0000000095")
    with a_run(tmp_path) as built:
        store = CheckpointStore(tmp_path)
        store.restore_newest(built)
        train_to(built, 3 * EVERY)
        store.save(built)
    kept = {path.name for path in tmp_path.glob("checkpoints/step-*")}
    assert {"step-0000000080", "step-0000000120"} <= kept
    assert "step-0000000095" not in kept


def test_a_run_whose_only_checkpoint_was_never_finished_begins_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, 1)
    DAMAGES["no manifest"](tmp_path / "checkpoints" / "step-0000000040")
    with caplog.at_level(logging.WARNING):
        path, state = restored(tmp_path)
    assert path is None
    assert state["env_steps"] == 0
    assert "Starting from the beginning." in caplog.text


@pytest.mark.parametrize("damage", ["a flipped byte", "a flipped byte in the replay"])
def test_damage_to_all_is_an_error_and_removes_nothing(damage: str, tmp_path: Path) -> None:
    trained(tmp_path, 1)
    DAMAGES[damage](tmp_path / "checkpoints" / "step-0000000040")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        CheckpointError, match=rf"damaged.*To start the run again, remove {tmp_path}/checkpoints\.$"
    ):
        restored(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_algorithm_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, 1, algorithm="sac")
    with pytest.raises(CheckpointError, match="has algorithm 'sac', but this run has 'sac-hpo'"):
        restored(tmp_path, "sac-hpo")


@pytest.mark.parametrize("keep", [1, 3])
def test_disk_is_bounded(keep: int, tmp_path: Path) -> None:
    """The newest few and the best are kept, with the replay rows they hold."""
    capacity = 100  # the ring goes round after 2.5 checkpoints
    trained(tmp_path, 8, keep, replay_capacity=capacity)
    newest = [EVERY * number for number in range(9 - keep, 9)]
    best = int((tmp_path / "checkpoints" / "best").resolve().name.removeprefix("step-"))
    assert checkpoints(tmp_path) == sorted({*newest, best})
    listed = set()
    for step in checkpoints(tmp_path):
        manifest = verify(tmp_path / "checkpoints" / f"step-{step:010d}")
        segments = manifest["replay"]["segments"]
        assert sum(s["end"] - s["start"] for s in segments) < capacity + EVERY
        listed |= {segment["file"] for segment in segments}
    assert {path.name for path in (tmp_path / "replay").iterdir()} == listed


def test_what_killed_writers_left_goes_at_the_next_save(tmp_path: Path) -> None:
    trained(tmp_path, 1)
    (tmp_path / "checkpoints" / ".step-0000000033.tmp" / "learner_group").mkdir(parents=True)
    (tmp_path / "replay" / ".rows-0000000000-0000000033-00000000.npy.tmp").write_bytes(b"half")
    with a_run(tmp_path) as built:
        store = CheckpointStore(tmp_path)
        store.restore_newest(built)
        train_to(built, 2 * EVERY)
        store.save(built)
    assert not list(tmp_path.rglob(".*"))


def test_best_is_kept_apart_from_last(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    returns = [-300.0, -100.0, -200.0, -100.0, -150.0]
    with a_run(tmp_path) as built:
        for number, value in enumerate(returns, start=1):
            train_to(built, number * EVERY)
            assert built.latest_evaluation is not None
            built.latest_evaluation["env_runners"]["episode_return_mean"] = value
            store.save(built)
    links = {name: os.readlink(tmp_path / "checkpoints" / name) for name in ("last", "best")}
    assert links == {"last": "step-0000000200", "best": "step-0000000080"}  # the first of equals
    assert checkpoints(tmp_path) == [80, 200]
    for name in links:
        verify(tmp_path / "checkpoints" / name)
        assert find_checkpoint(tmp_path / "checkpoints" / name).name == links[name]
    assert find_checkpoint(tmp_path).name == links["last"]


def test_best_goes_by_a_checkpoints_own_weights(tmp_path: Path) -> None:
    """With evaluations beside training, the return is known only after the checkpoint was saved."""
    returns = [-300.0, -100.0, -200.0, -100.0, -150.0]
    with a_run(tmp_path) as built:
        for number in range(1, len(returns) + 1):
            store = CheckpointStore(tmp_path, keep=1)  # of another process, say
            train_to(built, number * EVERY)
            assert built.latest_evaluation is not None
            if number > 1:
                store.evaluated((number - 1) * EVERY, returns[number - 2])
                built.latest_evaluation["env_runners"]["episode_return_mean"] = returns[number - 2]
            store.save(built)
    assert os.readlink(tmp_path / "checkpoints" / "best") == "step-0000000080"
    assert checkpoints(tmp_path) == [80, 200]


def a_folder(link: Path) -> None:
    """Replace links by copies of their targets, as `cp -rL` and uploads do."""
    shutil.copytree(link.with_name("step-0000000080"), link)


STALE = {
    "an older checkpoint": (lambda link: link.symlink_to("step-0000000040"), "step-0000000040"),
    "nothing": (lambda link: None, None),
    "a checkpoint that is gone": (lambda link: link.symlink_to("step-0000000020"), None),
    "a file of an older checkpoint": (lambda link: link.write_text("step-0000000040\n"), "step-0000000040"),
    "half a file": (lambda link: link.write_text("step-"), None),
    "a folder": (a_folder, None),
}


@pytest.fixture(scope="module")
def twice_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run with two checkpoints."""
    directory = tmp_path_factory.mktemp("twice saved") / "run"
    trained(directory, 2)
    return directory


@pytest.mark.parametrize("stale", STALE)
def test_a_link_that_a_killed_writer_left_is_repaired(stale: str, twice_saved: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(twice_saved, directory, symlinks=True)
    link, (make, before) = directory / "checkpoints" / "last", STALE[stale]
    best = os.readlink(link.with_name("best"))
    link.unlink()
    make(link)
    store = CheckpointStore(directory)
    with a_run(directory) as built:
        assert store.restore_newest(built) == link.with_name("step-0000000080")
    assert store.repaired == {"last": before}
    assert os.readlink(link) == store.linked("last") == "step-0000000080"
    assert os.readlink(link.with_name("best")) == best
    assert sorted(path.name for path in link.parent.iterdir() if not path.name.startswith(".")) == [
        "best",
        "last",
        "step-0000000040",
        "step-0000000080",
    ]


def test_a_damaged_newest_one_takes_the_links_with_it(twice_saved: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(twice_saved, directory, symlinks=True)
    DAMAGES["a flipped byte"](directory / "checkpoints" / "step-0000000080")
    (directory / "checkpoints" / "best").unlink()
    (directory / "checkpoints" / "best").symlink_to("step-0000000080")
    with a_run(directory) as built:
        store = CheckpointStore(directory)
        store.restore_newest(built)
    assert store.repaired == {"last": "step-0000000080", "best": "step-0000000080"}
    assert {store.linked(name) for name in ("last", "best")} == {"step-0000000040"}


def test_without_symbolic_links_files_stand_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def symlink(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", symlink)
    saved = trained(tmp_path, 2)
    last = tmp_path / "checkpoints" / "last"
    assert (last.is_symlink(), last.read_text()) == (False, "step-0000000080\n")
    assert CheckpointStore(tmp_path).linked("last") == find_checkpoint(last).name == "step-0000000080"
    with loaded(last) as again:
        assert_equal(facts(again)["learner"], saved["learner"])
    with a_run(tmp_path) as built:
        built.restore_from_path(last)
        assert built.env_steps == 80
    assert load_policy(last).manifest["env_steps"] == 80


def test_a_moved_run_goes_on_where_it_is_now(tmp_path: Path) -> None:
    saved = trained(tmp_path / "old", 2)
    (tmp_path / "old").rename(tmp_path / "new")
    with a_run(tmp_path / "new") as built:
        store = CheckpointStore(tmp_path / "new")
        assert store.restore_newest(built) == tmp_path / "new" / "checkpoints" / "step-0000000080"
        assert_equal(facts(built), saved)
        train_to(built, 3 * EVERY)
        segments = {path.name for path in (tmp_path / "new" / "replay").iterdir()}
        store.save(built)
    assert (
        len({path.name for path in (tmp_path / "new" / "replay").iterdir()} - segments) == 1
    )  # new rows only
    assert not (tmp_path / "old").exists()


def test_a_relative_directory_is_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved = trained(Path("some run"), 1)
    assert_equal(restored(Path("some run"))[1], saved)
    assert find_checkpoint(Path("some run")).is_dir()


def test_there_is_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        find_checkpoint(tmp_path / "missing")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no finished checkpoint yet"):
        find_checkpoint(tmp_path)


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with (
        a_run(tmp_path) as built,
        pytest.raises(StorageError, match=r"^Could not write the checkpoint .*\.$"),
    ):
        CheckpointStore(tmp_path).save(built)


def test_a_moved_and_damaged_run_resumes_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_here(*new_run(Path("first"), "sac", steps=150)) == 0
    (tmp_path / "first").rename(tmp_path / "second")
    flip_a_byte(tmp_path / "second" / "checkpoints" / "step-0000000150" / "env_runner" / "state.pkl")
    assert run_here(*resumed(Path("second"), "--steps", "250")) == 0
    assert "env_runner/state.pkl is missing or differs. Using the previous checkpoint." in caplog.text
    assert evaluated(tmp_path / "second") == [0, 100, 150, 200, 250]
    assert checkpoints(tmp_path / "second")[-1] == 250
    assert not (tmp_path / "first").exists()


FULL_DISK = """
    import json, subprocess, sys
    from pathlib import Path
    from rllib_hpo.errors import UserError
    from rllib_hpo.experiments.storage.checkpoints import find_checkpoint
    from rllib_hpo.results import read_rows

    mount, cli, start, resume = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
    filler = mount / "filler"

    def run(arguments):
        done = subprocess.run([*cli, *arguments], capture_output=True, text=True, cwd=mount)
        steps = read_rows(mount / "run" / "results")["env_steps"].to_pylist()
        hidden = sorted(path.name for path in mount.rglob(".*") if path.name != ".lock")
        newest = find_checkpoint(mount / "run").name
        print(json.dumps([done.returncode, done.stderr, steps, newest, hidden]), flush=True)

    run(start)
    for free in (0, 4096, 65536):
        try:
            with filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        except OSError:
            pass
        with filler.open("r+b") as file:
            file.truncate(filler.stat().st_size - free)
        run(resume)
        filler.unlink()
    run(resume)
"""


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    """A real file system of 4 MiB is full; then it has no room for a row, then none for a checkpoint."""
    mount = f"mount -t tmpfs -o size=4m tmpfs '{tmp_path}' && exec \"$@\""
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    try:
        probe = subprocess.run([*prefix, "true"], capture_output=True, timeout=30, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare (util-linux) to mount a tiny file system")
    if probe.returncode:
        pytest.skip("this kernel or container does not allow mounting in a user namespace")
    directory = tmp_path / "run"
    start = new_run(directory, "sac", steps=100, evaluation_every=100)
    resume = resumed(directory, "--steps", "200")
    arguments = [str(tmp_path), *(json.dumps(value) for value in (CLI, start, resume))]
    result = subprocess.run(
        [*prefix, sys.executable, "-c", textwrap.dedent(FULL_DISK), *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    first, *full, last = map(json.loads, result.stdout.splitlines())
    assert first == [0, "", [0, 100], "step-0000000100", []]
    for code, err, _, newest, hidden in full:
        assert code == 2, err
        assert err.endswith(": No space left on device.\n")
        assert err.count("\n") == 1, err
        assert (newest, hidden) == ("step-0000000100", [])
    failed = [(err.partition(str(tmp_path))[0], steps) for _, err, steps, _, _ in full]
    file, checkpoint = "Error: Cannot write ", "Error: Could not write the checkpoint "
    assert failed == [(file, [0, 100]), (file, [0, 100]), (checkpoint, [0, 100, 200])]
    assert ".parquet" in full[1][1]
    assert last == [0, "", [0, 100, 200], "step-0000000200", []]

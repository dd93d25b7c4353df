"""Test the events of a run, read back: complete, killed and failed sessions."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rllib_hpo.errors import CheckpointError, NonFiniteError
from rllib_hpo.experiments.config.run_config import RunConfig, resolve
from rllib_hpo.experiments.runs.files import RunFiles
from rllib_hpo.experiments.runs.train import TrainingRun
from rllib_hpo.experiments.tracking.events import EVENTS_FILE, EventLog, read_events
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions

TINY = {
    "algorithm": "sac",
    "task": "Pendulum-v1",
    "hidden_units": 8,
    "train_batch_size_per_learner": 8,
    "warmup_steps": 20,
    "evaluation_every": 40,
    "evaluation_episodes": 1,
    "checkpoint_every": 40,
    "steps_per_iteration": 40,
}


def configured(steps: int) -> RunConfig:
    return resolve({**TINY, "steps": steps})


def training(directory: Path, steps: int = 80) -> TrainingRun:
    return TrainingRun(configured(steps), RunFiles(directory), wandb=WandbOptions("disabled"))


def lives(directory: Path) -> list[list[tuple[str, int]]]:
    """Return events with their steps, one list per session."""
    found: list[list[tuple[str, int]]] = []
    for event in read_events(directory / EVENTS_FILE):
        if event["event"] in {"started", "resumed"}:
            found.append([])
        found[-1].append((event["event"], event["env_steps"]))
    return found


def test_a_run_that_was_stopped_and_resumed(tmp_path: Path) -> None:
    with training(tmp_path / "run") as run:
        run.iterate()
    with training(tmp_path / "run") as run:
        while not run.is_complete:
            run.iterate()
    assert lives(tmp_path / "run") == [
        [("started", 0), ("evaluated", 0), ("evaluated", 40), ("checkpoint", 40), ("stopped", 40)],
        [("resumed", 40), ("evaluated", 80), ("checkpoint", 80), ("finished", 80)],
    ]


def test_what_belongs_to_an_event(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    with training(tmp_path / "run", steps=40) as run:
        run.iterate()
        return_mean = run.algorithm.latest_evaluation["env_runners"]["episode_return_mean"]
    events = read_events(tmp_path / "run" / EVENTS_FILE)
    times = [datetime.fromisoformat(event["time"]) for event in events]
    assert before.timestamp() - 0.001 <= times[0].timestamp()  # written in milliseconds
    assert times == sorted(times)
    assert {time.utcoffset().total_seconds() for time in times} == {0}
    started, _, evaluated, checkpoint, _ = events
    assert started["pid"] == os.getpid()
    assert {"host", "git_commit", "sweep", "trial", "algorithm", "task", "seed", "steps"} <= started.keys()
    assert {"python", "ray", "torch"} <= started["versions"].keys()
    assert evaluated["return_mean"] == return_mean
    assert Path(evaluated["path"]).is_file()
    assert Path(checkpoint["path"]).is_dir()


def test_a_checkpoint_that_is_damaged(tmp_path: Path) -> None:
    with training(tmp_path / "run") as run:
        while not run.is_complete:
            run.iterate()
    (tmp_path / "run/checkpoints/step-0000000080/algorithm_state.pkl").write_bytes(b"")
    with training(tmp_path / "run"):
        pass
    *_, passed_over, resumed, stopped = read_events(tmp_path / "run" / EVENTS_FILE)
    assert (passed_over["event"], passed_over["env_steps"]) == ("checkpoint_passed_over", 80)
    assert "step-0000000080" in passed_over["error"]
    assert (resumed["event"], resumed["env_steps"], stopped["event"]) == ("resumed", 40, "stopped")


def test_a_link_that_was_repaired(tmp_path: Path) -> None:
    with training(tmp_path / "run") as run:
        while not run.is_complete:
            run.iterate()
        assert run.resume_line is None
    last = tmp_path / "run/checkpoints/last"
    last.unlink()
    last.symlink_to("step-0000000040")
    with training(tmp_path / "run") as run:
        line = run.resume_line
    assert line == (
        "Resumed at step 80; repaired the link checkpoints/last, which pointed to step-0000000040."
    )
    (resumed,) = [e for e in read_events(tmp_path / "run" / EVENTS_FILE) if e["event"] == "resumed"]
    assert resumed["repaired_links"] == {"last": "step-0000000040"}
    assert resumed["environments"] == "saved"


def test_a_run_that_cannot_go_on(tmp_path: Path) -> None:
    with training(tmp_path / "run", steps=40) as run:
        run.iterate()
    (tmp_path / "run/checkpoints/step-0000000040/algorithm_state.pkl").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        training(tmp_path / "run")
    failed = read_events(tmp_path / "run" / EVENTS_FILE)[-1]
    assert (failed["event"], failed["env_steps"], failed["error"]) == ("failed", 0, str(caught.value))


def test_a_failure_while_training(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError), training(tmp_path / "run") as run:  # noqa: PT012
        run.iterate()
        raise NonFiniteError("A loss is not finite.")
    failed = read_events(tmp_path / "run" / EVENTS_FILE)[-1]
    assert (failed["event"], failed["env_steps"], failed["error"]) == ("failed", 40, "A loss is not finite.")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ZeroDivisionError("division by zero"), ("failed", "ZeroDivisionError: division by zero")),
        (KeyboardInterrupt(), ("stopped", None)),
        (None, ("stopped", None)),
    ],
)
def test_the_end_is_written_once(
    tmp_path: Path, error: BaseException | None, expected: tuple[str, str | None]
) -> None:
    log = EventLog(tmp_path)
    log.end(40, complete=False, error=error)
    log.end(40, complete=True)
    (event,) = read_events(log.path)
    assert (event["event"], event.get("error")) == expected


@pytest.mark.parametrize("keep", [1, 3, 20, -1])
def test_a_killed_line_harms_no_other(tmp_path: Path, keep: int) -> None:
    """The line has only its first characters, or everything except the newline."""
    log = EventLog(tmp_path)
    log.write("started", 0)
    whole = log.path.read_bytes()
    log.write("evaluated", 40, return_mean=-1.5)
    half = log.path.read_bytes()[len(whole) :][:keep]
    log.path.write_bytes(whole + half)
    complete = keep == -1
    assert len(read_events(log.path)) == 1 + complete
    EventLog(tmp_path).write("resumed", 40, error="two\nlines, and a \u2028")
    events: list[dict[str, Any]] = read_events(log.path)
    assert [event["event"] for event in events] == ["started", *["evaluated"] * complete, "resumed"]
    assert events[-1]["error"] == "two\nlines, and a \u2028"


def test_each_event_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: written.append(data) or write(fd, data))
    EventLog(tmp_path).write("checkpoint", 40, path="here")
    EventLog(tmp_path).write("finished", 80)
    assert b"".join(written) == (tmp_path / EVENTS_FILE).read_bytes()
    assert [data.count(b"\n") for data in written] == [1, 1]


def test_a_log_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(tmp_path / "nowhere")
    log.write("started", 0)
    log.write("finished", 0)
    (record,) = caplog.records
    assert record.getMessage() == f"Cannot write {log.path}: No such file or directory."


def test_a_full_disk_is_left_to_the_rows_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    EventLog(tmp_path).write("started", 0)
    assert not caplog.records

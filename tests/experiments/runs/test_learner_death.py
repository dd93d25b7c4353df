"""Test the death of one of two learners: a run ends with a sentence and resumes, a trial restarts by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from rllib_hpo.experiments.tracking.events import EVENTS_FILE, read_events
from rllib_hpo.results import read_rows
from tests.experiments.lives import TIMEOUT_S, ended, evaluated, life, new_run, resumed, run, wait_for
from tests.experiments.sweeps import test_sweep as sweeps

SENTENCE = "A remote learner died; resume the run from its last checkpoint."

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def learners(process: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of a command's learners, by Ray's name for RLlib's actors."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "ray::_WrappedExecutable" in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def kill_a_learner(process: subprocess.Popen[str], directory: Path, after: int) -> None:
    """Send SIGKILL to one of two learners, when the evaluation at step `after` is on disk."""
    assert wait_for(lambda: after in evaluated(directory), process, poll_s=0.05), ended(process)
    pids = learners(process)
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGKILL)


def steps_of_rows(directory: Path) -> list[int]:
    """Return the steps of the local rows of a complete run or sweep."""
    return sorted(read_rows(directory / "results")["env_steps"].to_pylist())


@pytest.mark.exhaustive
def test_a_run_ends_with_a_sentence_and_is_resumed(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    arguments = new_run(directory, "sac-hpo", steps=1_000, num_learners=2, evaluation_every=200)
    with life(arguments, tmp_path) as process:
        kill_a_learner(process, directory, after=400)
        began = time.monotonic()
        code, out, err = ended(process)
        assert time.monotonic() - began < 60  # the minute that users are promised
    assert code == 2, (out, err)
    assert err.strip().splitlines() == [f"Error: {SENTENCE}"]
    failed = read_events(directory / EVENTS_FILE)[-1]
    assert (failed["event"], failed["error"]) == ("failed", SENTENCE)
    run(resumed(directory), tmp_path)
    assert steps_of_rows(directory) == list(range(0, 1_001, 200))


def test_a_trial_starts_again_from_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 4}')  # a trial of two learners asks for three
    text = sweeps.SWEEP.replace("[sac, sac-hpo]", "[sac]").replace("seeds: 0-1", "seeds: 0")
    text = text.replace("steps: 600", "steps: 1000\n  num_learners: 2")
    directory = tmp_path / "sweep"
    where = ["--out", str(directory), "--storage", f"file://{tmp_path}/storage"]
    process = sweeps.started(str(sweeps.written(tmp_path, text)), *where, cwd=tmp_path)
    try:
        kill_a_learner(process, directory, after=300)
        out, err = process.communicate(timeout=2 * TIMEOUT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, (out, err)
    (trial,) = (directory / "trials").iterdir()
    happened = [(event["event"], event["env_steps"]) for event in read_events(trial / EVENTS_FILE)]
    lives = [(name, steps) for name, steps in happened if name not in {"evaluated", "checkpoint"}]
    assert [name for name, _ in lives] == ["started", "failed", "resumed", "finished"]
    assert lives[2][1] >= 200
    assert steps_of_rows(directory) == list(range(0, 1_001, 100))
    # Both shards are on storage, too: another machine goes on from there, not from the beginning.
    again = [
        "--resume",
        f"file://{tmp_path}/storage/little",
        "--out",
        str(tmp_path / "there"),
        "--steps",
        "1200",
    ]
    sweeps.run(*again, cwd=tmp_path)
    assert steps_of_rows(tmp_path / "there") == [1_100, 1_200]

"""Test real sweeps: run, killed, interrupted, resumed, extended; failing trials and trials that never fit."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rllib_hpo.experiments.tracking.events import EVENTS_FILE, read_events
from rllib_hpo.results import read_rows, without_volatile
from tests.experiments.lives import CLI, REPOSITORY, last_state
from tests.rllib.tiny import assert_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SWEEP = """\
sweep: little
algorithms: [sac, sac-hpo]
tasks: [Pendulum-v1]
seeds: 0-1
settings:
  steps: 600
  hidden_units: 16
  train_batch_size_per_learner: 16
  warmup_steps: 60
  evaluation_every: 100
  evaluation_episodes: 1
  checkpoint_every: 200
  steps_per_iteration: 50
"""
TRIALS = [
    "sac-Pendulum-v1-seed0",
    "sac-Pendulum-v1-seed1",
    "sac-hpo-Pendulum-v1-seed0",
    "sac-hpo-Pendulum-v1-seed1",
]
EVALUATIONS = list(range(0, 601, 100))


def written(tmp_path: Path, text: str = SWEEP) -> Path:
    """Write a sweep file."""
    path = tmp_path / "little.yaml"
    path.write_text(text)
    return path


def started(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """Start `rllib-hpo sweep WORDS` in a session of its own."""
    return subprocess.Popen(
        [*CLI, "sweep", *words, "--wandb", "disabled"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*words: str, cwd: Path, code: int = 0) -> str:
    """Run to the end; return the output."""
    process = started(*words, cwd=cwd)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, (out, err)
    return out + err


def nothing_left(session: int) -> bool:
    """Return whether no process of the session lives; Ray's workers may notice its end with a delay."""
    for _ in range(100):
        if (
            subprocess.run(["pgrep", "-s", str(session)], stdout=subprocess.DEVNULL, check=False).returncode
            == 1
        ):
            return True
        time.sleep(0.1)
    return False


def rows(directory: Path, seeds: Sequence[int] = (0, 1)) -> pa.Table:
    """Return the rows of a sweep, without clock times."""
    table = without_volatile(read_rows(directory / "results"))
    return table.filter(pc.is_in(table["seed"], pa.array(seeds)))


def keys(directory: Path, seeds: Sequence[int] = (0, 1)) -> list[tuple[str, int, int]]:
    """Return algorithm, seed and step of every row."""
    return [(row["algorithm"], row["seed"], row["env_steps"]) for row in rows(directory, seeds).to_pylist()]


ONE_SEED = ("--seeds", "0")
"""Options of tests for which two trials of the sweep suffice."""


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], poll_s: float = 0.05) -> None:
    """Poll until a condition holds, while the process lives."""
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(poll_s)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the sweep without interruption."""
    work = tmp_path_factory.mktemp("reference")
    printed = run(str(written(work)), "--out", str(work / "sweep"), cwd=work)
    assert "trials:         4 done, 0 failed, 0 unfinished" in printed
    assert all(name in printed for name in TRIALS)
    return work / "sweep"


def test_every_trial_has_every_row_once(reference: Path) -> None:
    expected = [(a, seed, step) for a in ("sac", "sac-hpo") for seed in (0, 1) for step in EVALUATIONS]
    assert sorted(keys(reference)) == sorted(expected)
    table = rows(reference)
    assert set(table["sweep"].to_pylist()) == {"little"}
    assert set(table["variant"].to_pylist()) == {"default"}
    assert sorted(path.name for path in (reference / "trials").iterdir()) == TRIALS


def test_a_finished_sweep_runs_nothing_again(reference: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("step-*/manifest.json")}
    printed = run("--resume", str(reference), cwd=reference.parent)
    assert "4 done, 0 failed, 0 unfinished" in printed
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("step-*/manifest.json")} == before


@pytest.mark.parametrize(
    "how", ["the driver is killed", "a trial is killed", pytest.param("ctrl-C", marks=pytest.mark.exhaustive)]
)
def test_what_is_interrupted_goes_on_as_if_nothing_had_happened(
    how: str, reference: Path, tmp_path: Path
) -> None:
    """Local trials are exact: every row of the resumed sweep is bitwise that of the uninterrupted one."""
    directory = tmp_path / "sweep"
    process = started(str(written(tmp_path)), "--out", str(directory), *ONE_SEED, cwd=tmp_path)
    wait_until(lambda: any((directory / "trials").glob("*/checkpoints/step-*200")), process)
    if how == "a trial is killed":
        last = max((directory / "trials").glob("*/.lock"), key=lambda path: path.stat().st_mtime)
        os.kill(int(last.read_text()), signal.SIGKILL)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, (out, err)
    elif how == "the driver is killed":
        process.kill()
        process.communicate()
        assert len(keys(directory)) < len(keys(reference, [0]))
    else:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 130, (out, err)
        assert f"rllib-hpo sweep --resume {directory}" in out
        assert "Traceback" not in out + err
    run("--resume", str(directory), cwd=tmp_path)
    assert rows(directory).equals(rows(reference, [0]))


def two_seeds_in_a_process(work: Path) -> tuple[Path, subprocess.Popen[str]]:
    """Start the sweep with both seeds in one process; return its directory, and it, when a checkpoint is there."""
    directory = work / "sweep"
    options = ("--seeds-per-trial", "2", "--max-concurrent", "1")
    process = started(str(written(work)), "--out", str(directory), *options, cwd=work)
    wait_until(lambda: any((directory / "trials").glob("*/checkpoints/step-*200")), process)
    return directory, process


def test_seeds_that_share_a_process_are_those_of_separate_trials(reference: Path, tmp_path: Path) -> None:
    """On a CPU bitwise, rows and final states, also where their process is killed and restarts both."""
    directory, process = two_seeds_in_a_process(tmp_path)
    holders = {int(path.read_text()) for path in (directory / "trials").glob("*/.lock")}
    assert len(holders) == 1
    os.kill(holders.pop(), signal.SIGKILL)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, (out, err)
    assert out.count("it died and restarts from its last checkpoint") == 2
    assert "trials:         4 done, 0 failed, 0 unfinished" in out
    assert [out.count(f" done   {name} ") for name in TRIALS] == [1] * 4
    assert rows(directory).equals(rows(reference))
    for name in TRIALS:
        assert_equal(*(last_state(sweep / "trials" / name) for sweep in (directory, reference)))
    assert sorted(path.name for path in (directory / "tune").iterdir() if path.is_dir()) == [
        "sac-Pendulum-v1-seeds0-1",
        "sac-hpo-Pendulum-v1-seeds0-1",
    ]


@pytest.mark.exhaustive
def test_a_stop_saves_all_seeds_of_a_process(reference: Path, tmp_path: Path) -> None:
    """The command that goes on is printed with the option; seeds may also go on apart."""
    directory, process = two_seeds_in_a_process(tmp_path)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, (out, err)
    assert out.count("saved   sac-Pendulum-v1-seed") == 2
    assert f"rllib-hpo sweep --resume {directory} --seeds-per-trial 2" in out
    run("--resume", str(directory), cwd=tmp_path)
    assert rows(directory).equals(rows(reference))


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.exhaustive)]
)
def test_a_signal_saves_every_trial(number: int, reference: Path, tmp_path: Path) -> None:
    """Also off the schedule. Signals reach the whole process group, as from a lost terminal or GNU `timeout`."""
    directory = tmp_path / "sweep"
    text = SWEEP.replace("checkpoint_every: 200", "checkpoint_every: 600")
    process = started(str(written(tmp_path, text)), "--out", str(directory), *ONE_SEED, cwd=tmp_path)
    wait_until(lambda: len(list(directory.rglob("*0000000100.parquet"))) == 2, process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (143, ""), (out, err)
    assert f"{signal.Signals(number).name}: stopping and saving" in out
    begun = [path for path in (directory / "trials").iterdir() if (path / EVENTS_FILE).exists()]
    lives = {path: [event["event"] for event in read_events(path / EVENTS_FILE)] for path in begun}
    assert len(begun) == 2
    assert sum("checkpoint" in life for life in lives.values()) == 2
    assert {life[-1] for life in lives.values() if "evaluated" in life} <= {"stopped", "finished"}
    assert nothing_left(process.pid)
    run("--resume", str(directory), cwd=tmp_path)
    assert keys(directory) == keys(reference, [0])


def test_a_sweep_can_be_extended(reference: Path, tmp_path: Path) -> None:
    """Seeds and steps can be added; existing rows do not change."""
    directory, expected = tmp_path / "sweep", rows(reference)
    file = written(tmp_path, SWEEP.replace("[sac, sac-hpo]", "[sac]"))
    run(str(file), "--out", str(directory), "--seeds", "0", "--steps", "400", cwd=tmp_path)
    assert {step for _, _, step in keys(directory)} == set(range(0, 401, 100))
    run("--resume", str(directory), "--seeds", "0-1", "--steps", "600", cwd=tmp_path)
    assert rows(directory).equals(expected.filter(pc.equal(expected["algorithm"], "sac")))
    printed = run("--resume", str(directory), "--steps", "100", cwd=tmp_path, code=2)
    assert "has steps=600, not 100: a sweep can only be extended by seeds and steps" in printed


@pytest.mark.parametrize("seeds_per_trial", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_failures_are_named_and_others_go_on(seeds_per_trial: int, tmp_path: Path) -> None:
    text = SWEEP.replace("[Pendulum-v1]", "[Pendulum-v1, NaNReward-v0]").replace("seeds: 0-1", "seeds: 0")
    directory = tmp_path / "sweep"
    bad = str(REPOSITORY / "tests")
    options = ["--out", str(directory), "--wandb", "disabled", "--import", "bad_environments"]
    process = subprocess.run(
        [*CLI, "sweep", str(written(tmp_path, text)), *options, "--seeds-per-trial", str(seeds_per_trial)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{bad}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 2, (process.stdout, process.stderr)
    (line,) = process.stderr.strip().splitlines()
    for algorithm in ("sac", "sac-hpo"):
        log = directory / "trials" / f"{algorithm}-NaNReward-v0-seed0" / "error.txt"
        assert f"{algorithm}-NaNReward-v0-seed0 ({log})" in line
        assert "reward" in log.read_text()
        failed = read_events(log.with_name(EVENTS_FILE))[-1]  # and no "stopped" after it
        assert (failed["event"], f"{failed['error']}\n") == ("failed", log.read_text())
    assert len(keys(directory)) > len(EVALUATIONS) * 2


def test_what_never_fits_is_refused_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    printed = run(
        str(written(tmp_path)),
        "--out",
        str(tmp_path / "sweep"),
        "--num-env-runners",
        "500",
        cwd=tmp_path,
        code=2,
    )
    assert "requests 501 CPUs, but there are" in printed
    assert "so it would wait forever" in printed
    assert not (tmp_path / "sweep").exists()
    printed = run(str(written(tmp_path)), "--dry-run", "--gpus-per-learner", "1", cwd=tmp_path, code=2)
    assert "requests 1 GPUs, but there are 0 in total" in printed
    assert time.monotonic() - began < 240  # two starts of the command; waiting for room has no end


def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    printed = run(str(written(tmp_path)), "--out", str(tmp_path / "sweep"), "--dry-run", cwd=tmp_path)
    assert "4 trials, 2,400 environment steps" in printed
    assert all(name in printed for name in TRIALS)
    assert not (tmp_path / "sweep").exists()


def test_tempering_that_changes_nothing_is_said_once(tmp_path: Path) -> None:
    """A dry run and a start each print the notice once, with its trials."""
    file = tmp_path / "idle.yaml"
    file.write_text(
        "sweep: idle\nalgorithms: [sac-hpo]\ntasks: [Pendulum-v1]\nseeds: 0-1\n"
        "settings: {steps: 40, tempering: true, momentum_std_train: 1.0, momentum_std_explore: 1.5}\n"
    )
    printed = run(str(file), "--dry-run", cwd=tmp_path)
    assert printed.count("Note: tempering=true has no effect in training (momentum_std_train is 1") == 1
    assert "trial sac-hpo-Pendulum-v1-seed0 and 1 more" in printed

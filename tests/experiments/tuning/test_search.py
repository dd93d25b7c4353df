"""Test real searches: run, killed again and again, interrupted, resumed, extended, confirmed and reported."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from rllib_hpo.experiments.config.search_config import read_search
from rllib_hpo.experiments.tuning.scores import Score
from rllib_hpo.experiments.tuning.study import Study
from rllib_hpo.results import read_rows, without_volatile
from tests.experiments.lives import CLI, REPOSITORY
from tests.experiments.sweeps.test_sweep import nothing_left, wait_until

pytest.importorskip("optuna")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SEARCH = """\
search: little
algorithm: sac-hpo
task: Pendulum-v1
steps: 300
trials: 4
settings:
  hidden_units: 16
  train_batch_size_per_learner: 16
  replay_capacity: 10_000
  warmup_steps: 40
  evaluation_every: 100
  evaluation_episodes: 1
  checkpoint_every: 100
  steps_per_iteration: 50
space:
  step_size: {low: 0.02, high: 0.5, log: true}
  leapfrog_steps: {low: 1, high: 4}
"""
ASHA = f"{SEARCH}scheduler: asha\nasha: {{first_rung: 100, reduction_factor: 2}}\n"
LIMITED = SEARCH.replace(
    "settings:\n", "settings:\n  cost: {kind: torque}\n  cost_limit: 0.0\n  cost_discounting: undiscounted\n"
)
PBT = f"{SEARCH}scheduler: pbt\npbt: {{quantile: 0.25}}\n"


def started(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """Start `rllib-hpo tune WORDS`, one trial at a time, in a session of its own."""
    return subprocess.Popen(
        [*CLI, "tune", *words, "--wandb", "disabled", "--max-concurrent", "1"],
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
    out, err = process.communicate(timeout=900)
    assert process.returncode == code, (out, err)
    return out + err


def written(folder: Path, text: str) -> Path:
    """Write a search file."""
    path = folder / "little.yaml"
    path.write_text(text)
    return path


def rows(directory: Path) -> list[dict[str, Any]]:
    """Return all rows with their searched settings, without clock times and ids."""
    table = without_volatile(read_rows(directory / "results")).to_pylist()
    return sorted(table, key=lambda row: (row["seed"], row["env_steps"]))


def killed_and_resumed(text: str, folder: Path, stages: int) -> Path:
    """Kill the driver at `stages` moments, each after new rows, then run to the end; check that nothing is redone."""
    directory, words = folder / "search", [str(written(folder, text)), "--out", str(folder / "search")]
    for stage in range(stages):
        process = started(*words, cwd=folder)
        wait_until(partial(has_rows, directory, 4 * stage + 2), process, poll_s=0.2)
        process.kill()  # its trials may outlive it for a while
        process.communicate()
        words = ["--resume", str(directory)]
    ended = finished(directory)
    printed = run(*words, cwd=folder)
    assert "4 done, 0 failed, 0 unfinished" in printed
    assert {path: path.stat().st_mtime_ns for path in ended} == ended
    return directory


def has_rows(directory: Path, number: int) -> bool:
    """Return whether there are at least so many rows."""
    return bool(read_rows(directory / "results").num_rows >= number)


def finished(directory: Path) -> dict[Path, int]:
    """Return the checkpoints of finished trials, with the time of their last change."""
    return {
        path: path.stat().st_mtime_ns
        for path in (directory / "trials").glob("*/checkpoints/step-0000000300/manifest.json")
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the search with ASHA without interruption."""
    folder = tmp_path_factory.mktemp("reference")
    printed = run(str(written(folder, ASHA)), "--out", str(folder / "search"), cwd=folder)
    return folder / "search", printed


def test_trials_end_exactly_at_rungs(reference: tuple[Path, str]) -> None:
    directory, printed = reference
    search = read_search(directory / "search.yaml")
    records = Study(directory / "study.db", search).records()
    assert [record.state for record in records].count("COMPLETE") >= 1
    assert {max(r.reports) for r in records if r.state == "PRUNED"} <= {100, 200}
    for row in rows(directory):
        record = records[row["seed"]]
        config = json.loads(row["config_json"])
        assert {name: config[name] for name in record.values} == record.values
        assert row["variant"] == "search"
        if row["env_steps"]:
            assert record.reports[row["env_steps"]] == Score(row["return_mean"])
    for record in records:
        last = (directory / "trials" / f"trial-{record.number:04d}" / "checkpoints" / "last").resolve()
        assert last.name == f"step-{max(record.reports):010d}"
    assert printed.count("   ended early   ") == [record.state for record in records].count("PRUNED")


def test_a_killed_driver_loses_nothing(reference: tuple[Path, str], tmp_path: Path) -> None:
    """The resumed search is that of the uninterrupted one: same trials, same settings, bitwise the same rows."""
    directory = killed_and_resumed(ASHA, tmp_path, stages=2)
    assert rows(directory) == rows(reference[0])
    search = read_search(directory / "search.yaml")
    mine, theirs = (Study(place / "study.db", search).records() for place in (directory, reference[0]))
    assert mine == theirs


def test_a_finished_search_runs_nothing_again_and_can_be_extended(
    reference: tuple[Path, str], tmp_path: Path
) -> None:
    directory, _ = reference
    ended = finished(directory)
    assert "4 done, 0 failed, 0 unfinished" in run("--resume", str(directory), cwd=tmp_path)
    assert finished(directory) == ended
    assert "is less than the 4" in run("--resume", str(directory), "--trials", "3", cwd=tmp_path, code=2)
    assert "keeps its steps" in run("--resume", str(directory), "--steps", "900", cwd=tmp_path, code=2)


def test_the_last_line_confirms_the_best_on_fresh_seeds(reference: tuple[Path, str], tmp_path: Path) -> None:
    """The report then lists the search trial by trial, and compares the confirmation only."""
    directory, printed = reference
    command = shlex.split(printed.strip().splitlines()[-1])
    assert command[:2] == ["rllib-hpo", "sweep"]
    sweep = yaml.safe_load(Path(command[2]).read_text())
    assert sweep["seeds"] == "4-8"
    best = max(
        (row for row in rows(directory) if row["env_steps"] == 300), key=lambda row: row["return_mean"]
    )
    config = json.loads(best["config_json"])
    assert all(config[name] == sweep["settings"][name] for name in ("step_size", "leapfrog_steps"))
    done = subprocess.run(
        [*CLI, *command[1:], "--seeds", "4-5", "--steps", "100", "--wandb", "disabled"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "report"
    subprocess.run(
        [*CLI, "report", str(directory), "--out", str(out)], check=True, timeout=300, cwd=REPOSITORY
    )
    tables = (out / "tables.md").read_text()
    assert "Search: SAC-HPO (search, little) on Pendulum-v1" in tables
    compared = json.dumps((out / "tables" / "differences.csv").read_text())
    assert "search" not in compared
    assert (out / "figures" / "parallel-1.png").exists()
    assert (out / "figures" / "curves.png").exists()


def test_a_search_whose_trials_all_exceed_the_limit_names_no_best(tmp_path: Path) -> None:
    """Any torque costs; the table begins with the trial of the lowest cost, as its row has it."""
    file, directory = written(tmp_path, LIMITED), tmp_path / "search"
    printed = run(str(file), "--trials", "2", "--steps", "100", "--out", str(directory), cwd=tmp_path, code=2)
    lowest = min(row["cost_mean"] for row in rows(directory) if row["env_steps"] == 100)
    assert "None of 2 is within the limit on costs" in printed
    said = "No trial is within the limit on costs; the first above exceeds it least, by "
    assert f"{said}{lowest:.4g}." in printed.replace("\n", " ")
    assert not (directory / "best.yaml").exists()
    assert "cost over its limit" in (directory / "report" / "tables.md").read_text()


@pytest.mark.exhaustive
def test_a_killed_population_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    run(str(written(alone, PBT)), "--out", str(alone / "search"), cwd=alone)
    mine = tmp_path / "killed"
    mine.mkdir()
    directory = killed_and_resumed(PBT, mine, stages=2)
    population = json.loads((directory / "population.json").read_text())
    assert population == json.loads((alone / "search" / "population.json").read_text())
    assert rows(directory) == rows(alone / "search")
    assert [row["env_steps"] for row in rows(directory)] == [0, 100, 200, 300] * 4
    clones = [
        (number, member[1])
        for one in population["generations"][1:]
        for number, member in enumerate(one["members"])
        if member[1] != number
    ]
    assert len(clones) == 2
    assert not any(
        (directory / "trials" / f"trial-000{number}-0000000100" / "replay").exists() for number in range(4)
    )


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    directory = tmp_path / "search"
    process = started(str(written(tmp_path, SEARCH)), "--out", str(directory), cwd=tmp_path)
    wait_until(lambda: any(directory.rglob("*0000000100.parquet")), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, (out, err)
    assert f"Go on with: rllib-hpo tune --resume {directory}" in out
    assert "Traceback" not in out + err
    assert nothing_left(process.pid)
    sentence = run_sweep(directory, tmp_path)
    assert f"is a search directory; resume it with `rllib-hpo tune --resume {directory}`" in sentence


def run_sweep(directory: Path, cwd: Path) -> str:
    """Resume a search as if it were a sweep; return the refusal."""
    done = subprocess.run(
        [*CLI, "sweep", "--resume", str(directory)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    return done.stderr.replace("\n", " ")

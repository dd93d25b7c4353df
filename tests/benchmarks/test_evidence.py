"""Test that a study trains what is missing, once, and keeps its rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import evidence, machine
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.config.sweep_config import Sweep, Trial, read_sweep
from rllib_hpo.results import config_hash, read_rows, write_row
from tests.results.rows import make_row

STUDY = """
sweep: tiny
algorithms: [sac, td3]
tasks: [Pendulum-v1]
seeds: 0-1
settings: {steps: 60, warmup_steps: 20, evaluation_every: 30, evaluation_episodes: 1, steps_per_iteration: 30,
           checkpoint_every: 30, hidden_units: 8, train_batch_size_per_learner: 4}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(STUDY)
    return file


def keep(results: Path, sweep: Sweep, trial: Trial, **changes: object) -> None:
    """Write the last row of a trial, as of a version that had no `num_torch_threads`."""
    config = {**trial.config.values(), **changes, "env": "Pendulum-v1"}
    del config["num_torch_threads"]
    run = trial.config.run
    axes = {"algorithm": run.algorithm, "task": run.task, "seed": run.seed, "env_steps": run.steps}
    stored = {"config_json": json.dumps(config), "config_hash": config_hash(config)}
    write_row(
        results, make_row(sweep=sweep.name, variant=trial.variant, trial_id=trial.name, **axes, **stored)
    )


def test_what_is_there_is_not_missing_and_seeds_come_outermost(study: Path, tmp_path: Path) -> None:
    sweep = read_sweep(study)
    assert evidence.missing(sweep, tmp_path / "none") == list(sweep.trials)
    keep(tmp_path, sweep, sweep.trials[1])
    names = [trial.name for trial in evidence.missing(sweep, tmp_path)]
    assert names == ["sac-Pendulum-v1-seed0", "sac-Pendulum-v1-seed1", "td3-Pendulum-v1-seed1"]


def test_rows_of_other_settings_are_refused(study: Path, tmp_path: Path) -> None:
    sweep = read_sweep(study)
    keep(tmp_path, sweep, sweep.trials[0], hidden_units=16)
    with pytest.raises(UserError, match="sac-Pendulum-v1-seed0 with hidden_units=16, and the study says 8"):
        evidence.missing(sweep, tmp_path)


@pytest.mark.slow
def test_a_study_is_trained_once(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(STUDY.replace("[sac, td3]", "[td3]"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr(sys, "argv", ["evidence", str(study), "--cores", "2"])
    evidence.main()
    assert read_rows(tmp_path / "kept" / "tiny").column("env_steps").to_pylist() == [0, 30, 60] * 2
    policies = sorted(path.name for path in (tmp_path / "kept" / "tiny" / "policies").iterdir())
    assert policies == ["td3-Pendulum-v1-seed0.safetensors", "td3-Pendulum-v1-seed0.safetensors.json"]
    capsys.readouterr()
    evidence.main()
    assert capsys.readouterr().out == "tiny: 0 of 2 trials are missing\n"

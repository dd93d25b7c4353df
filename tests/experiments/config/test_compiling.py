"""Test that `compile_update: auto` is decided by a run's steps when it begins, and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rllib_hpo.experiments.config.run_config import resolve, resolve_saved
from rllib_hpo.experiments.config.sweep_config import read_sweep
from rllib_hpo.experiments.sweeps.plan import SweepFiles
from rllib_hpo.experiments.sweeps.sweep import plan_trials
from rllib_hpo.results import config_hash, write_row
from rllib_hpo.settings import COMPILED_FROM_STEPS
from tests.results.rows import make_row

LONG = COMPILED_FROM_STEPS
RUN = {"algorithm": "sac", "task": "Pendulum-v1"}


@pytest.mark.parametrize(("steps", "compiled"), [(LONG - 1, False), (LONG, True)])
def test_long_runs_compile(steps: int, compiled: bool) -> None:
    assert resolve({**RUN, "steps": steps}).settings.compile_update is compiled
    assert resolve({**RUN, "steps": steps, "compile_update": False}).settings.compile_update is False
    assert resolve({**RUN, "steps": steps, "num_gpus_per_learner": 1}).settings.compile_update is False


def test_a_run_that_gets_more_steps_goes_on_as_it_began(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    resolve({**RUN, "steps": LONG - 1}).save(file)
    assert resolve_saved(file, {"steps": LONG}).settings.compile_update is False


def test_a_run_of_a_version_that_did_not_compile_goes_on_without(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    resolve({**RUN, "steps": LONG}).save(file)
    lines = [line for line in file.read_text().splitlines() if not line.startswith("compile_update")]
    file.write_text("\n".join(lines))
    assert resolve_saved(file, {}).settings.compile_update is False


def test_a_row_of_a_version_that_did_not_compile_is_repeated_without(tmp_path: Path) -> None:
    config = {**resolve({**RUN, "steps": LONG}).values(), "env": "Pendulum-v1"}
    for stored, compiled in (({**config}, True), ({**config, "compile_update": None}, False)):
        if stored["compile_update"] is None:
            del stored["compile_update"]
        row = make_row(
            config_json=json.dumps(stored), config_hash=config_hash(stored), trial_id=str(compiled)
        )
        assert resolve({}, write_row(tmp_path, row)).settings.compile_update is compiled


def test_a_sweep_that_gets_more_steps_goes_on_as_it_began(tmp_path: Path) -> None:
    file, files = tmp_path / "sweep.yaml", SweepFiles(tmp_path / "out")
    file.write_text("{sweep: longer, algorithms: [sac], tasks: [Pendulum-v1], seeds: 0}")
    plan_trials(read_sweep(file, changes={"steps": LONG - 1}), files)
    longer = read_sweep(file, changes={"steps": LONG})
    plan_trials(longer, files)
    kept = resolve_saved(files.trial(longer.trials[0].name).config, {})
    assert (kept.run.steps, kept.settings.compile_update) == (LONG, False)

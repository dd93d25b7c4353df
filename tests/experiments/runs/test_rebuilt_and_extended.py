"""Test that rebuilt simulators, later extension and the directory do not change a run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.experiments.lives import assert_same_outcome, evaluated, new_run, outcome, resumed, run
from tests.experiments.runs.test_crash import killed_often, kills
from tests.experiments.runs.test_evaluation_points import scheduled
from tests.rllib.tiny import assert_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_kills_change_nothing_where_the_simulator_cannot_be_saved(tmp_path: Path) -> None:
    """PyBullet's environments are rebuilt at scheduled checkpoints, with or without kills."""
    steps = 800
    reference, directory = tmp_path / "reference", tmp_path / "killed"
    run(new_run(reference, "sac", "humanoid-pybullet", steps), tmp_path)
    plan = kills(random.Random(1), clock=1, training=2, evaluation=1, checkpoint=2, restoring=0)
    start = new_run(directory, "sac", "humanoid-pybullet", steps)
    killed_often(tmp_path, start, steps, plan)
    assert_same_outcome(directory, reference)


def test_equal_seeds_equal_runs_and_more_steps_later_are_the_same_steps(tmp_path: Path) -> None:
    """The shorter run ends between two checkpoints and between two evaluations."""
    run(new_run(tmp_path / "one", "sac-hpo", steps=450), tmp_path)
    run(new_run(tmp_path / "other", "sac-hpo", steps=450), tmp_path)
    assert_same_outcome(tmp_path / "one", tmp_path / "other")
    run(resumed(tmp_path / "other", "--steps", "800"), tmp_path)
    run(new_run(tmp_path / "long", "sac-hpo", steps=800), tmp_path)
    assert_equal(scheduled(tmp_path / "other", 100), scheduled(tmp_path / "long", 100))
    assert evaluated(tmp_path / "other") == sorted([450, *range(0, 801, 100)])
    assert outcome(tmp_path / "one")["manifest"]["env_steps"] == 450


@pytest.mark.exhaustive
def test_compiled_updates_resume_bitwise(tmp_path: Path) -> None:
    """A failed compilation would be a warning, which `run` does not accept."""
    run(new_run(tmp_path / "whole", "sac", steps=400, compile_update="true"), tmp_path)
    run(new_run(tmp_path / "parts", "sac", steps=200, compile_update="true"), tmp_path)
    run(resumed(tmp_path / "parts", "--steps", "400"), tmp_path)
    assert_same_outcome(tmp_path / "parts", tmp_path / "whole")
    run(new_run(tmp_path / "eager", "sac", steps=400), tmp_path)
    with pytest.raises(AssertionError):
        assert_same_outcome(tmp_path / "eager", tmp_path / "whole")


@pytest.mark.exhaustive
def test_another_seed_is_another_run(tmp_path: Path) -> None:
    """Without this the comparisons above could not fail."""
    run(new_run(tmp_path / "one", "sac", steps=150), tmp_path)
    run([*new_run(tmp_path / "other", "sac", steps=150), "--seed", "6"], tmp_path)
    with pytest.raises(AssertionError):
        assert_same_outcome(tmp_path / "one", tmp_path / "other")

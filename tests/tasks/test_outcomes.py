"""Test outcomes of episodes: extremes over steps, means and shares over an evaluation, and their use in runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rllib_hpo.results import read_rows
from rllib_hpo.tasks import make_env
from rllib_hpo.tasks.outcomes import Outcome, observe, reports_outcome, summary, widen
from tests.rllib.tiny import loaded, running, tiny_config, train_to

STEPS = (
    {"progress": 1.0, "displacement": 2.0, "goal_distance": 3.0, "goal": -1},
    {"progress": -2.0, "displacement": 4.0, "goal_distance": 1.0, "goal": 2},
    {"progress": 0.5, "displacement": 1.5, "goal_distance": 2.0, "goal": -1},
)


def _episode(steps: tuple[dict[str, float], ...] = STEPS) -> Outcome:
    outcome: Outcome = {}
    for step in steps:
        observe(outcome, step)
    return outcome


def test_an_episode_is_its_extremes_and_its_end() -> None:
    assert _episode() == {
        "forward_max": 1.0,
        "forward_min": -2.0,
        "displacement_max": 4.0,
        "goal_distance_min": 1.0,
        "displacement": 1.5,
        "goal": 2.0,
    }


def test_extremes_of_training_go_one_way() -> None:
    extremes: Outcome = {}
    for outcome in (_episode(), _episode(STEPS[:1]), {}):
        widen(extremes, outcome)
        assert extremes == {
            "forward_max": 1.0,
            "forward_min": -2.0,
            "displacement_max": 4.0,
            "goal_distance_min": 1.0,
        }


def test_an_evaluation_is_means_and_shares() -> None:
    found = summary([_episode(), _episode(STEPS[:1]), _episode(), _episode()], num_goals=3)
    assert found == {
        "net_displacement_mean": pytest.approx((3 * 1.5 + 2) / 4),
        "forward_mean": 1.0,
        "goal_distance_mean": pytest.approx(1.5),
        "goal_reached": 0.75,
        "goal_reached_0": 0.0,
        "goal_reached_1": 0.0,
        "goal_reached_2": 0.75,
    }
    assert summary([{}, {}]) == {}


def test_only_environments_that_say_so_are_asked() -> None:
    assert reports_outcome(make_env("MultiGoal-v0"))
    assert reports_outcome(make_env("QuadMaze-v0"))
    assert not reports_outcome(make_env("Pendulum-v1"))


def test_rows_and_results_hold_what_came_of_episodes(tmp_path: Path) -> None:
    """Training has extremes, which a resumed run continues; evaluations have shares and discounted returns."""
    config = tiny_config("td3", "MultiGoal-v0", gamma=0.9).results(results_dir=str(tmp_path / "rows"))
    with running(config) as built:
        result = train_to(built, 80)
        built.save_to_path(tmp_path / "checkpoint")
        extremes = dict(built.extremes)
        assert extremes["forward_max"] >= 0 >= extremes["forward_min"]
        assert result["env_runners"]["outcome"] == extremes
        outcome = result["evaluation"]["outcome"]
        with loaded(tmp_path / "checkpoint") as resumed:
            assert resumed.extremes == extremes
    first, *_, last = sorted(read_rows(tmp_path / "rows").to_pylist(), key=lambda row: row["env_steps"])
    found = dict(last["diagnostics"])
    assert found.items() >= extremes.items()
    assert found.items() >= outcome.items()
    shares = sum(found[f"goal_reached_{k}"] for k in range(4))
    assert found["goal_reached"] == pytest.approx(shares)
    assert found["net_displacement_mean"] >= 0
    assert "forward_max" not in dict(first["diagnostics"])
    assert found["discounted_return_mean"] > last["return_mean"]
    assert json.loads(last["config_json"])["gamma"] == 0.9
    assert np.isfinite(list(found.values())).all()

"""Test that every evaluation is logged once at its own step, the last at the end, also when a run is extended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rllib_hpo.experiments.config.run_config import RunConfig, resolve
from rllib_hpo.experiments.runs.files import RunFiles
from rllib_hpo.experiments.runs.train import TrainingRun
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from tests.experiments.lives import evaluated, outcome
from tests.experiments.tracking.test_tensorboard import scalars
from tests.rllib.tiny import assert_equal

TINY = {
    "algorithm": "sac",
    "task": "Pendulum-v1",
    "hidden_units": 8,
    "train_batch_size_per_learner": 8,
    "warmup_steps": 20,
    "evaluation_episodes": 1,
    "checkpoint_every": 40,
}


def train(
    directory: Path, steps: int, monkeypatch: pytest.MonkeyPatch, **values: Any
) -> list[tuple[Any, int]]:
    """Train in `directory`; return the returns that W&B received, with their steps."""
    config: RunConfig = resolve({**TINY, **values, "steps": steps})
    logged: list[tuple[Any, int]] = []
    with TrainingRun(config, RunFiles(directory), wandb=WandbOptions("disabled")) as run:
        monkeypatch.setattr(
            run._wandb,
            "log",
            lambda metrics, env_steps: logged.extend(
                (value, env_steps) for name, value in metrics.items() if name == "evaluation/return_mean"
            ),
        )
        while not run.is_complete:
            run.iterate()
    return logged


@pytest.mark.parametrize(
    ("every", "steps_per_iteration", "points"),
    [(20, 40, [0, 20, 40, 60, 80, 90]), (80, 20, [0, 80, 90]), (1_000, 40, [0, 90])],
)
def test_each_evaluation_is_a_point_once(
    every: int,
    steps_per_iteration: int,
    points: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"evaluation_every": every, "steps_per_iteration": steps_per_iteration}
    logged = train(tmp_path / "run", 90, monkeypatch, **settings)
    assert evaluated(tmp_path / "run") == points
    assert [step for _, step in logged] == points
    shown = scalars(tmp_path / "run")["evaluation/return_mean"]
    assert sorted(shown) == points
    assert [value for value, _ in logged] == pytest.approx([shown[step] for step in points])


def test_more_steps_later_are_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"evaluation_every": 40, "steps_per_iteration": 40}
    train(tmp_path / "extended", 90, monkeypatch, **settings)
    train(tmp_path / "extended", 160, monkeypatch, **settings)
    train(tmp_path / "whole", 160, monkeypatch, **settings)
    assert evaluated(tmp_path / "extended") == [0, 40, 80, 90, 120, 160]
    assert_equal(scheduled(tmp_path / "extended"), scheduled(tmp_path / "whole"))


def scheduled(directory: Path, every: int = 40) -> dict[str, Any]:
    """Return the outcome of a run, without rows off the schedule."""
    ended = outcome(directory)
    return {**ended, "rows": [row for row in ended["rows"] if row["env_steps"] % every == 0]}


def test_a_run_within_the_warm_up_learns_nothing_and_says_so() -> None:
    assert "warmup_steps=20" in str(resolve({**TINY, "steps": 20}).nothing_learned())
    assert "update_to_data=0.1" in str(
        resolve({**TINY, "steps": 25, "update_to_data": 0.1}).nothing_learned()
    )
    assert resolve({**TINY, "steps": 21}).nothing_learned() is None

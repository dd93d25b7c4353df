"""Every kind of trial in the repository's sweep files trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rllib_hpo.experiments.sweep_config import read_sweep
from rllib_hpo.experiments.train import RunFiles, TrainingRun
from rllib_hpo.experiments.wandb_logger import WandbOptions
from rllib_hpo.results import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FILES = sorted((Path(__file__).resolve().parents[2] / "tune_configs").glob("*.yaml"))
SHORT = {
    "steps": 200,
    "warmup_steps": 100,
    "evaluation_every": 200,
    "evaluation_episodes": 1,
    "checkpoint_every": 200,
    "train_batch_size_per_learner": 32,
}


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_each_kind_of_trial_trains(path: Path, tmp_path: Path) -> None:
    """200 steps, 100 updates, two evaluations and a checkpoint; seeds make no other kind."""
    sweep = read_sweep(path, seeds="0", changes=SHORT)
    for trial in sweep.trials:
        assert {name: trial.config.values()[name] for name in SHORT} == SHORT
        files = RunFiles(tmp_path / trial.name, tmp_path / "results")
        with TrainingRun(
            trial.config, files, sweep=sweep.name, variant=trial.variant, wandb=WandbOptions("disabled")
        ) as run:
            while not run.is_complete:
                run.iterate()
            for parameter in run.algorithm.actor.parameters():
                assert np.isfinite(parameter.detach().numpy()).all(), trial.name
    rows = read_rows(tmp_path / "results").to_pylist()
    assert len({(row["algorithm"], row["variant"], row["task"]) for row in rows}) == len(sweep.trials)
    assert len(rows) == 2 * len(sweep.trials)
    assert all(np.isfinite(row["return_mean"]) for row in rows)

"""Test that every algorithm and variant in the repository's sweep files trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rllib_hpo.deployment import load_policy_file
from rllib_hpo.experiments.config.sweep_config import Sweep, Trial, read_sweep
from rllib_hpo.experiments.runs.files import RunFiles
from rllib_hpo.experiments.runs.train import TrainingRun
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from rllib_hpo.results import read_rows
from rllib_hpo.tasks import TABLE_ONE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FILES = sorted((Path(__file__).resolve().parents[3] / "tune_configs").glob("*.yaml"))
IN_TIME = ("ablation", "first-version", "goals", "zoo")
"""Files that between them have every algorithm and most options; `make test-all` trains the others."""
SHORT = {
    "steps": 200,
    "warmup_steps": 100,
    "evaluation_every": 200,
    "evaluation_episodes": 1,
    "evaluation_max_episode_steps": 20,
    "checkpoint_every": 200,
    "train_batch_size_per_learner": 32,
    "keep_policies_every": 200,
    "initialize_from": None,
}


def one_of_each_kind(sweep: Sweep) -> list[Trial]:
    """Return one trial per algorithm and variant; tasks alternate, so that a file's variants cover several of them."""
    kinds: dict[tuple[str, str], list[Trial]] = {}
    for trial in sweep.trials:
        kinds.setdefault((trial.config.run.algorithm, trial.variant), []).append(trial)
    return [trials[turn % len(trials)] for turn, trials in enumerate(kinds.values())]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in IN_TIME else pytest.mark.exhaustive)
        for path in FILES
    ],
)
def test_each_kind_of_trial_trains(path: Path, tmp_path: Path) -> None:
    """Each makes 200 steps, 100 updates, two evaluations, a checkpoint and a policy file."""
    sweep = read_sweep(path, seeds="0", changes=SHORT)
    trials = one_of_each_kind(sweep)
    for trial in trials:
        assert {name: trial.config.values()[name] for name in SHORT} == SHORT
        files = RunFiles(tmp_path / trial.name, tmp_path / "results")
        with TrainingRun(
            trial.config, files, sweep=sweep.name, variant=trial.variant, wandb=WandbOptions("disabled")
        ) as run:
            while not run.is_complete:
                run.iterate()
            for parameter in run.algorithm.actor.parameters():
                assert np.isfinite(parameter.detach().numpy()).all(), trial.name
        kept = load_policy_file(files.directory / "policies" / "step-0000000200.safetensors")
        assert (kept.metadata.env_steps, kept.metadata.algorithm) == (200, trial.config.run.algorithm)
    rows = read_rows(tmp_path / "results").to_pylist()
    assert len({(row["algorithm"], row["variant"]) for row in rows}) == len(trials)
    assert len(rows) == 2 * len(trials)
    assert all(np.isfinite(row["return_mean"]) for row in rows)


@pytest.mark.parametrize("task", [task.name for task in TABLE_ONE])
def test_each_task_of_the_comparison_trains(task: str, tmp_path: Path) -> None:
    """SAC-HPO uses the task's row of Table I."""
    comparison = next(path for path in FILES if path.stem == "eight-tasks")
    (trial,) = read_sweep(comparison, seeds="0", changes=SHORT).only(task=task, algorithm="sac-hpo").trials
    with TrainingRun(trial.config, RunFiles(tmp_path / "run"), wandb=WandbOptions("disabled")) as run:
        while not run.is_complete:
            run.iterate()
        assert all(np.isfinite(value.detach().numpy()).all() for value in run.algorithm.actor.parameters())

"""Test Ray Tune: trials over a grid, checkpoints to restore from, and names that do not replace RLlib's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.rllib.algorithms.sac import SAC
from ray.tune.registry import get_trainable_cls

from rllib_hpo import SACHPO, SACGaussian
from rllib_hpo.results import read_rows
from rllib_hpo.rllib.checkpointing import read_manifest
from tests.rllib.tiny import loaded, tiny_config

pytestmark = pytest.mark.usefixtures("ray_session")


def tuner(trainable: Any, config: Any, storage: Path, steps: int) -> tune.Tuner:
    """Make a Tuner that stops each trial after `steps` environment steps, with a checkpoint every iteration."""
    return tune.Tuner(
        trainable,
        param_space=config,
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(storage / "storage"),
            stop={"num_env_steps_sampled_lifetime": steps},
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, checkpoint_at_end=True),
            verbose=0,
        ),
    )


def leapfrog_steps(result: Any) -> int:
    """Return which trial of the grid a result belongs to."""
    return int(result.config["leapfrog_steps"])


@pytest.mark.slow
def test_a_grid_of_trials_is_stored_and_extended(tmp_path: Path) -> None:
    """Settings reach the trials; every result has a return for schedulers; checkpoints are complete."""
    config = tiny_config("sac-hpo", leapfrog_steps=tune.grid_search([1, 3]))
    config.results(results_dir=str(tmp_path / "rows"), sweep="grid")
    grid = tuner(SACHPO, config, tmp_path, steps=80).fit()
    assert grid.errors == []
    assert sorted(result.config["leapfrog_steps"] for result in grid) == [1, 3]
    for result in grid:
        assert result.metrics["evaluation"]["env_steps"] == 80
        assert (result.metrics_dataframe["evaluation/env_runners/episode_return_mean"] < 0).all()
        manifest = read_manifest(Path(result.checkpoint.path))
        assert manifest["env_steps"] == 80
        assert manifest["config"]["leapfrog_steps"] == result.config["leapfrog_steps"]
    rows = read_rows(tmp_path / "rows")
    assert sorted(rows["env_steps"].to_pylist()) == [0, 0, 40, 40, 80, 80]
    assert set(rows["trial_id"].to_pylist()) == {result.metrics["trial_id"] for result in grid}
    with loaded(grid[0].checkpoint) as algorithm:
        assert algorithm.env_steps == 80
        assert algorithm.train()["num_env_steps_sampled_lifetime"] == 120
    assert read_rows(tmp_path / "rows").num_rows == 7


@pytest.mark.slow
def test_an_interrupted_sweep_is_restored(tmp_path: Path) -> None:
    """The failed trial resumes its checkpoint, warm-up and updates included, with equal numbers."""
    flag = tmp_path / "broken"
    flag.touch()

    def breaks(algorithm: Any, **_: Any) -> None:
        if algorithm.env_steps == 80 and flag.exists():
            raise RuntimeError("the machine was taken away")

    config = tiny_config("sac-hpo", leapfrog_steps=tune.grid_search([1, 3]))
    config.callbacks(on_evaluate_start=breaks).results(results_dir=str(tmp_path / "rows"))
    grid = tuner(SACHPO, config, tmp_path, steps=120).fit()
    assert len(grid.errors) == 2
    assert [read_manifest(Path(result.checkpoint.path))["env_steps"] for result in grid] == [40, 40]
    flag.unlink()
    path = str(tmp_path / "storage" / "run")
    restored = tune.Tuner.restore(path, SACHPO, param_space=config, resume_errored=True).fit()
    assert restored.errors == []
    whole = tuner(SACHPO, config, tmp_path / "whole", steps=120).fit()
    pairs = zip(*(sorted(grid, key=leapfrog_steps) for grid in (restored, whole)), strict=True)
    for one, other in pairs:
        assert one.metrics["learners"]["default_policy"]["num_updates"] == 100
        assert one.metrics["evaluation"] == other.metrics["evaluation"]
        assert one.metrics["learners"]["default_policy"] == other.metrics["learners"]["default_policy"]
        assert one.metrics["num_env_steps_sampled_lifetime"] == 120
    assert sorted(read_rows(tmp_path / "rows")["env_steps"].to_pylist()) == sorted([0, 40, 80, 120] * 4)


@pytest.mark.parametrize("stopped_by", ["steps", pytest.param("time", marks=pytest.mark.slow)])
def test_each_result_has_the_evaluation_of_its_step(stopped_by: str, tmp_path: Path) -> None:
    """This holds also with evaluation runners and for the last result, so schedulers and scores are of that step."""
    config = tiny_config("sac").evaluation(evaluation_num_env_runners=1)
    made = tuner(SACGaussian, config, tmp_path, steps=120)
    if stopped_by == "time":
        run_config = tune.RunConfig(storage_path=str(tmp_path), verbose=0)
        made = tune.Tuner(
            SACGaussian,
            param_space=config,
            tune_config=tune.TuneConfig(time_budget_s=25),
            run_config=run_config,
        )
    (result,) = made.fit()
    assert result.error is None
    table = result.metrics_dataframe
    steps = table["num_env_steps_sampled_lifetime"]
    assert len(steps) > 2
    assert list(table["evaluation/env_steps"]) == list(steps)
    assert result.metrics["evaluation"]["env_steps"] == max(steps)


def test_rllibs_sac_keeps_its_name(tmp_path: Path) -> None:
    grid = tuner(SACGaussian, tiny_config("sac"), tmp_path, steps=40).fit()
    assert grid.errors == []
    assert get_trainable_cls("SAC") is SAC
    assert get_trainable_cls("SACGaussian") is not SAC

"""Test every importable Tune scheduler and searcher that Ray ships, on every algorithm."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import SCHEDULER_IMPORT, FIFOScheduler, PopulationBasedTrainingReplay
from ray.tune.search import SEARCH_ALG_IMPORT
from ray.tune.search.sample import Domain

from rllib_hpo.rllib.checkpointing import read_manifest
from tests.kinds import OF_VECTORS
from tests.rllib.tiny import SAFE_ALGORITHMS, tiny_config

pytestmark = [pytest.mark.exhaustive, pytest.mark.usefixtures("ray_session")]
METRIC, TIME = "evaluation/env_runners/episode_return_mean", "training_iteration"
BOUNDS = (1e-4, 1e-2)
LR = tune.loguniform(*BOUNDS)
PERTURBED = (BOUNDS[0] * 0.8**2, BOUNDS[1] * 1.2**2)
"""Bounds after three iterations of population-based training, which heeds none."""
EVERY_TRAINABLE = pytest.mark.parametrize(
    ("algorithm", "is_new"),
    [
        (name, is_new)
        for name in OF_VECTORS
        for is_new in (True, False)
        if is_new or name not in SAFE_ALGORITHMS
    ],
)

SCHEDULERS: dict[str, dict[str, Any]] = {
    "fifo": {},
    "async_hyperband": {"time_attr": TIME, "max_t": 3, "grace_period": 1},
    "median_stopping_rule": {"time_attr": TIME, "grace_period": 1, "min_samples_required": 1},
    "hyperband": {"time_attr": TIME, "max_t": 3},
    "hb_bohb": {"time_attr": TIME, "max_t": 3},
    "pbt": {"time_attr": TIME, "perturbation_interval": 1, "hyperparam_mutations": {"lr": LR}},
    "pb2": {"time_attr": TIME, "perturbation_interval": 1, "hyperparam_bounds": {"lr": [1e-4, 1e-2]}},
    "resource_changing": {},
}
SEARCHERS: dict[str, dict[str, Any]] = {
    "random": {},
    "ax": {},
    "hyperopt": {},
    "bayesopt": {},
    "bohb": {},
    "nevergrad": {},
    "optuna": {},
    "zoopt": {"budget": 2},
    "hebo": {},
}


def test_the_lists_are_rays() -> None:
    """A new one of Ray's must be added; names of the same class count once."""
    assert {SCHEDULER_IMPORT[name] for name in SCHEDULERS} == set(SCHEDULER_IMPORT.values()) - {
        PopulationBasedTrainingReplay
    }
    assert SEARCHERS.keys() == SEARCH_ALG_IMPORT.keys() - {"variant_generator"}


def made(table: dict[str, Any], name: str, arguments: dict[str, Any]) -> Any:
    """Make a scheduler or searcher; skip the test if its packages are missing."""
    try:
        found = table[name]() if inspect.isfunction(table[name]) else table[name]
        if name == "nevergrad":
            arguments = {"optimizer": pytest.importorskip("nevergrad").optimizers.OnePlusOne}
        if name == "resource_changing":  # a scheduler of its own, since Tune writes into it
            arguments = {"base_scheduler": FIFOScheduler()}
        return found(**arguments)
    except (ImportError, AssertionError, RuntimeError) as error:
        pytest.skip(f"{name}: {error}")


def space_of(config: Any, form: str) -> Any:
    """Return a config as Tune takes it: the object, all of it as a dict, or a dict of what is set."""
    if form == "object":
        return config
    everything, defaults = config.to_dict(), type(config)().to_dict()
    if form == "dict":
        return everything
    changed = {name: value for name, value in everything.items() if value != defaults.get(name)}
    plain = (str, int, float, list, dict, Domain)
    return {name: value for name, value in changed.items() if isinstance(value, plain)}


def search(
    algorithm: str,
    is_new: bool,
    folder: Path,
    space: Any,
    *,
    form: str = "object",
    bounds: tuple[float, float] = BOUNDS,
    **how: Any,
) -> Any:
    """Run two trials of three iterations each; check that every checkpoint's learner used the tried values."""
    config = tiny_config(algorithm, evaluation_episodes=1).api_stack(is_new, is_new).training(lr=space)
    run = tune.RunConfig(
        name="run",
        storage_path=str(folder),
        stop={TIME: 3},
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
        verbose=0,
    )
    options = tune.TuneConfig(metric=METRIC, mode="max", num_samples=2, max_concurrent_trials=2, **how)
    param_space = space_of(config, form)
    grid = tune.Tuner(config.algo_class, param_space=param_space, run_config=run, tune_config=options).fit()
    assert grid.errors == []
    assert len(grid) == 2
    for result in grid:
        used = read_manifest(Path(result.checkpoint.path))["config"]
        assert used["lr"] == pytest.approx(result.config["lr"], rel=1e-12)
        assert bounds[0] * (1 - 1e-6) <= used["lr"] <= bounds[1] * (1 + 1e-6)  # PB2 rounds to float32
        assert isinstance(result.metrics["evaluation"]["env_runners"]["episode_return_mean"], float)
    return grid


@EVERY_TRAINABLE
@pytest.mark.parametrize("form", ["object", "dict"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_works(name: str, form: str, algorithm: str, is_new: bool, tmp_path: Path) -> None:
    how: dict[str, Any] = {"scheduler": made(SCHEDULER_IMPORT, name, SCHEDULERS[name])}
    if name == "hb_bohb":
        how["search_alg"] = made(SEARCH_ALG_IMPORT, "bohb", {})
    bounds = PERTURBED if name == "pbt" else BOUNDS
    search(algorithm, is_new, tmp_path, LR, form=form, bounds=bounds, **how)


@EVERY_TRAINABLE
@pytest.mark.parametrize("name", SEARCHERS)
def test_a_searcher_works(name: str, algorithm: str, is_new: bool, tmp_path: Path) -> None:
    grid = search(algorithm, is_new, tmp_path, LR, search_alg=made(SEARCH_ALG_IMPORT, name, SEARCHERS[name]))
    assert len({result.config["lr"] for result in grid}) == 2


@EVERY_TRAINABLE
def test_a_schedule_of_pbt_is_replayed(algorithm: str, is_new: bool, tmp_path: Path) -> None:
    """Of a dict of what is set: Ray writes the classes of a whole config as text, at which RLlib's SAC fails, too."""
    scheduler = made(SCHEDULER_IMPORT, "pbt", SCHEDULERS["pbt"] | {"quantile_fraction": 0.5, "synch": True})
    search(algorithm, is_new, tmp_path / "pbt", LR, form="set", bounds=PERTURBED, scheduler=scheduler)
    policies = sorted((tmp_path / "pbt" / "run").glob("pbt_policy_*.txt"))
    assert policies
    config = tiny_config(algorithm, evaluation_episodes=1).api_stack(is_new, is_new)
    run = tune.RunConfig(storage_path=str(tmp_path / "replay"), stop={TIME: 3}, verbose=0)
    options = tune.TuneConfig(scheduler=PopulationBasedTrainingReplay(str(policies[0])))
    space = space_of(config, "set")
    grid = tune.Tuner(config.algo_class, param_space=space, run_config=run, tune_config=options).fit()
    assert grid.errors == []

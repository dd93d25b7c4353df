"""Shared parts of the scripts in tune_configs/search: options, configuration, report."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from ray import tune
from rich.console import Console
from rich.table import Table

from rllib_hpo.documents import parse_value
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.config.run_config import nothing_learned
from rllib_hpo.experiments.runs.train import quiet_ray
from rllib_hpo.results.configurations import SEARCH_VARIANT
from rllib_hpo.results.paths import absolute
from rllib_hpo.rllib.algorithms import SACHPOConfig
from rllib_hpo.tasks import import_modules

METRIC = "evaluation/env_runners/episode_return_mean"
"""The metric to maximise: the latest noise-free evaluation, which every result has."""

TIME = "num_env_steps_sampled_lifetime"
"""The time of schedulers: environment steps."""

_console = Console(width=120)


def options(
    description: str, space: Mapping[str, Any], *, steps: int, num_samples: int
) -> argparse.Namespace:
    """Parse the command line of a search script.

    Its `space` is the part of the given one that `--set` leaves open. Mistakes end in one sentence, exit code 2.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="hopper", help="a task, or any gymnasium id")
    parser.add_argument("--steps", type=int, default=steps, help="environment steps of a trial, at most")
    parser.add_argument("--num-samples", type=int, default=num_samples, help="trials")
    parser.add_argument("--out", type=absolute, required=True, help="directory of the new search")
    parser.add_argument(
        "--set",
        dest="settings",
        type=_assignment,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyperparameter of all trials, which then is not searched; may be given many times",
    )
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module that registers the environment; may be given many times",
    )
    given = parser.parse_args()
    quiet_ray()
    given.settings = dict(given.settings)
    given.space = {name: domain for name, domain in space.items() if name not in given.settings}
    if given.out.exists():
        parser.error(f"{given.out} already exists; choose another --out.")
    if not given.space:
        parser.error(f"nothing is left to search: --set fixes {', '.join(space)}.")
    sys.path.insert(0, "")  # modules of --import may lie in the working directory
    try:
        import_modules(given.imports)
        settings = configure(given).settings()
        if (warning := nothing_learned(given.steps, settings)) is not None:
            _console.print(warning, style="yellow", soft_wrap=True)
    except UserError as error:
        parser.error(str(error))
    return given


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text} must be NAME=VALUE.")
    try:
        return name, parse_value(value)
    except UserError as error:
        raise argparse.ArgumentTypeError(f"{name}: the value cannot be read: {error}") from None


def configure(given: argparse.Namespace) -> SACHPOConfig:
    """The task's configuration with the command line's settings, without a seed, so that every trial has its own.

    Raises:
        UserError: One sentence, naming what is wrong and what is allowed.
    """
    config = SACHPOConfig.for_task(given.task).training(**given.settings).debugging(log_level="ERROR")
    config.environment(imports=given.imports)
    config.settings()
    results_dir = str(given.out / "results")
    return config.results(results_dir=results_dir, sweep=given.out.name, variant=SEARCH_VARIANT)


def run_config(given: argparse.Namespace) -> tune.RunConfig:
    """Tune's configuration: its storage, and the end of a trial."""
    return tune.RunConfig(
        name="tune",
        storage_path=str(given.out),
        stop={TIME: given.steps},
        callbacks=[Evaluations()],
        verbose=0,  # Tune would print all of RLlib's configuration with every table
    )


class Evaluations(tune.Callback):
    """Print a line for each evaluation of each trial."""

    def __init__(self) -> None:
        self._printed: dict[str, int] = {}

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        """Print a new evaluation; results between two evaluations repeat the first."""
        evaluation = result["evaluation"]
        if self._printed.get(trial.trial_id) != evaluation["env_steps"]:
            self._printed[trial.trial_id] = evaluation["env_steps"]
            mean = evaluation["env_runners"]["episode_return_mean"]
            line = f"trial {trial.trial_id}: return {mean:.1f} after {evaluation['env_steps']:.0f} steps"
            _console.print(line, highlight=False)


def report(grid: tune.ResultGrid, given: argparse.Namespace, top: int = 10) -> None:
    """Print the best trials, and the command that trains with the best one's settings.

    Raises:
        SystemExit: If a trial failed; its traceback is in Tune's directory.
    """
    done = [result for result in grid if result.error is None and "evaluation" in (result.metrics or {})]
    table = Table(
        "return", "steps", *given.space, title=f"The best of {len(grid)} trials", title_justify="left"
    )
    for result in sorted(done, key=_episode_return, reverse=True)[:top]:
        values = [_short(result.config[name]) for name in given.space]
        table.add_row(f"{_episode_return(result):.1f}", f"{result.metrics[TIME]:.0f}", *values)
    _console.print(table)
    if done:
        best = max(done, key=_episode_return)
        settings = {**given.settings, **{name: best.config[name] for name in given.space}}
        command = ["rllib-hpo", "train", "--algorithm", "sac-hpo", "--task", given.task]
        command += [word for module in given.imports for word in ("--import", module)]
        for name, value in settings.items():
            command += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
        _console.print("Train with the best settings:", highlight=False)
        line = f"{shlex.join(command)} --out {shlex.quote(str(given.out / 'best'))}"
        _console.print(line, highlight=False, markup=False, soft_wrap=True)
    if grid.num_errors:
        raise SystemExit(f"error: {grid.num_errors} of {len(grid)} trials failed; see {given.out / 'tune'}.")


def _episode_return(result: tune.Result) -> float:
    return float(result.metrics["evaluation"]["env_runners"]["episode_return_mean"])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

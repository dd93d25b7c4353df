"""Search for settings: `rllib-hpo tune`."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from rllib_hpo.cli.console import console
from rllib_hpo.cli.failures import keep_log_in
from rllib_hpo.cli.options import (
    ALGORITHMS,
    Imports,
    Wandb,
    WandbArtifacts,
    WandbVideo,
    import_all,
    path_argument,
    path_option,
    trial_settings,
)
from rllib_hpo.cli.sweeps import (
    DryRun,
    EvaluationNumEnvRunners,
    GpusPerLearner,
    MaxConcurrent,
    NumEnvRunners,
    Resume,
    StorageUri,
    print_trials,
    resumed,
)
from rllib_hpo.errors import SettingsError, UserError

SHOWN = 10
"""Number of configurations in the table that ends a search."""

_KEYS = ("algorithm", "task", "steps", "trials")

SearchFileArgument = Annotated[
    Path | None, path_argument(help="A search file (YAML); examples are in tune_configs/search.")
]
Out = Annotated[Path | None, path_option(help="Directory of the new search. Default: runs/NAME.")]
Algorithm = Annotated[str | None, typer.Option(help=f"Instead of the file's: {ALGORITHMS}.")]
Task = Annotated[str | None, typer.Option(help="Instead of the file's: a task, or any gymnasium id.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Environment steps of a trial, at most.")]
Trials = Annotated[int | None, typer.Option(min=1, help="Number of trials; with --resume, more than before.")]


def tune(
    file: SearchFileArgument = None,
    out: Out = None,
    resume: Resume = None,
    storage: StorageUri = None,
    dry_run: DryRun = False,
    algorithm: Algorithm = None,
    task: Task = None,
    steps: Steps = None,
    trials: Trials = None,
    max_concurrent: MaxConcurrent = None,
    num_env_runners: NumEnvRunners = None,
    evaluation_num_env_runners: EvaluationNumEnvRunners = None,
    gpus_per_learner: GpusPerLearner = None,
    wandb: Wandb = "offline",
    wandb_artifacts: WandbArtifacts = False,
    wandb_video: WandbVideo = False,
    imports: Imports = None,
) -> None:
    """Search for settings with Optuna, ASHA or population-based training; it can be killed and resumed.

    Trials run as those of `rllib-hpo sweep` do. The end is a table of the best configurations, a report, and the
    command that trains the best one on fresh seeds, since the best of many trials is also the luckiest.

    Exit code 2 if a trial failed, 130 if Ctrl-C stopped the search, 143 if another signal did.
    """
    import_all(imports)
    from rllib_hpo.experiments.cluster.ray_session import quiet_ray
    from rllib_hpo.experiments.config.search_config import read_search
    from rllib_hpo.experiments.sweeps.trial import TrialOptions
    from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
    from rllib_hpo.experiments.tuning import directory as directories

    quiet_ray()
    if (file is None) == (resume is None):
        raise SettingsError("Name either a search file or, with --resume, the directory of a search.")
    changes = search_changes(
        {
            "algorithm": algorithm,
            "task": task,
            "steps": steps,
            "num_env_runners": num_env_runners,
            "evaluation_num_env_runners": evaluation_num_env_runners,
            "gpus_per_learner": gpus_per_learner,
        }
    )
    options = TrialOptions(max_concurrent, WandbOptions(wandb, wandb_artifacts, wandb_video))
    files, remote = resumed(resume, storage, out)
    if files is not None:
        if changes:
            raise SettingsError(f"A search keeps its {', '.join(changes)}: start a new one to change it.")
        _go_on(files, remote, options, trials)
        return
    assert file is not None
    changes |= {} if trials is None else {"trials": trials}
    if dry_run:
        print_trials(directories.example(read_search(file, changes)))
        return
    search = _started(file, changes, out, storage, imports)
    _run(search, options, is_new=True)


def search_changes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes to a search file that were given as options of `rllib-hpo tune`, for `read_search`."""
    changes = {name: value for name in _KEYS if (value := given.get(name)) is not None}
    settings = trial_settings({name: value for name, value in given.items() if name not in _KEYS})
    return changes | ({"settings": settings} if settings else {})


def _go_on(files: Any, remote: Any, options: Any, trials: int | None = None) -> None:
    """Go on with the search in a directory."""
    from rllib_hpo.experiments.sweeps.plan import read_plan
    from rllib_hpo.experiments.tuning.directory import open_search

    import_all(read_plan(files)["imports"])
    _run(open_search(files, remote, trials), options, is_new=False)


def _started(
    file: Path, changes: dict[str, Any], out: Path | None, storage: str | None, imports: list[str] | None
) -> Any:
    """Make the directory and storage of a new search."""
    from dataclasses import replace

    from rllib_hpo.experiments.config.search_config import read_search
    from rllib_hpo.experiments.storage.folder import Storage
    from rllib_hpo.experiments.sweeps import plan as plans
    from rllib_hpo.experiments.sweeps.sweep import remove_new_sweep
    from rllib_hpo.experiments.tuning import directory as directories

    name = read_search(file, changes).file.search
    files, remote = plans.SweepFiles(out or Path("runs") / name), None
    if storage is not None:
        remote = Storage.open(storage).child(name)
        plans.check_storage_free(remote)
    search = directories.start_search(file, changes, files, imports or ())
    if remote is not None:
        try:
            plans.publish_sweep(files, remote)
        except UserError:
            remove_new_sweep(files, remote)
            raise
    return replace(search, storage=remote)


def _run(search: Any, options: Any, *, is_new: bool) -> None:
    """Run the trials and print what was found; remove a new search that is refused."""
    from dataclasses import replace

    from rllib_hpo.experiments.sweeps.progress import SweepProgress
    from rllib_hpo.experiments.sweeps.sweep import remove_new_sweep
    from rllib_hpo.experiments.tuning.search import run_search

    keep_log_in(search.files.directory)
    try:
        outcome = run_search(search, SweepProgress(console), replace(options, storage=search.storage))
    except UserError:
        if is_new:
            remove_new_sweep(search.files, search.storage)
        raise
    _print_outcome(search, outcome)


def _print_outcome(search: Any, outcome: Any) -> None:
    """Print counts, the best configurations and, last, the command that goes on with them."""
    from rllib_hpo.experiments.process.signals import exit_code
    from rllib_hpo.experiments.tuning.confirmation import write_confirmation
    from rllib_hpo.experiments.tuning.search import tried

    files = search.files
    console.print(f"result rows:    {files.results}", soft_wrap=True)
    counts = f"{len(outcome.done)} done, {len(outcome.failed)} failed, {len(outcome.unfinished)} unfinished"
    console.print(f"trials:         {counts}")
    if search.storage is not None:
        console.print(f"storage:        {search.storage.uri}", soft_wrap=True)
    found = tried(search)
    if found:
        _print_best(search, found)
    if outcome.failed:
        logs = "; ".join(f"{name} ({path})" for name, path in outcome.failed.items())
        raise UserError(f"Trials failed: {logs}.")
    if outcome.unfinished:
        console.print(
            f"Go on with: rllib-hpo tune --resume {shlex.quote(str(files.directory))}", soft_wrap=True
        )
        raise typer.Exit(130 if outcome.stopped_by is None else exit_code(outcome.stopped_by))
    if not found:
        raise UserError("No trial has an evaluation: all diverged or were refused.")
    _report(search)
    if (excess := found[0].score.excess) > 0:
        raise UserError(
            f"No trial is within the limit on costs; the first above exceeds it least, by {excess:.4g}. Try more "
            "trials, more steps or another space; within_cost_limit: false compares trials by "
            f"{search.search.file.metric} alone."
        )
    console.print("Train the best configuration on fresh seeds, then `rllib-hpo report` shows both apart:")
    command = write_confirmation(search, found[0].values)
    console.print(command, highlight=False, markup=False, soft_wrap=True)


def _print_best(search: Any, found: list[Any]) -> None:
    metric, names = search.search.file.metric, list(search.search.file.space)
    costs = [] if search.search.limited is None else ["cost over its limit"]
    columns = [metric, *costs, "steps", "trial", *names]
    has_best = not found[0].score.excess
    title = f"The best of {len(found)}" if has_best else f"None of {len(found)} is within the limit on costs"
    table = Table(*columns, title=title, title_justify="left")
    for one in found[:SHOWN]:
        over = [f"{one.score.excess:.4g}" if one.score.excess else "-" for _ in costs]
        values = [_short(one.values[name]) for name in names]
        table.add_row(f"{one.score.value:,.1f}", *over, f"{one.steps:,}", f"{one.number}", *values)
    console.print(table)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _report(search: Any) -> None:
    """Write the report of the search, with its figures."""
    from rllib_hpo.analysis.report import write_report
    from rllib_hpo.experiments.storage.folder import rows_from
    from rllib_hpo.results import read_rows

    out = search.files.directory / "report"
    with tempfile.TemporaryDirectory() as downloaded:
        rows = search.files.results
        if search.storage is not None:
            rows = Path(downloaded)
            rows_from(search.storage.child("results"), rows)
        written = write_report(read_rows(rows), out)
    console.print(f"report:         {written['page']}", soft_wrap=True)
    console.print(f"figures:        {written['figures']}", soft_wrap=True)

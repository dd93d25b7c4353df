"""Run sweeps and compare their trials: `rllib-hpo sweep`, `sweeps` and `dashboard`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from rllib_hpo.cli.console import console
from rllib_hpo.cli.failures import keep_log_in
from rllib_hpo.cli.options import (
    Imports,
    Wandb,
    WandbArtifacts,
    WandbVideo,
    import_all,
    pairs,
    path_argument,
    path_option,
    sweep_file,
    trial_settings,
)
from rllib_hpo.errors import SettingsError, UserError
from rllib_hpo.results.paths import absolute_or_uri

SweepFileArgument = Annotated[
    Path | None,
    typer.Argument(
        parser=sweep_file,
        metavar="SWEEP",
        help="Sweep file (YAML), or the name of one that `rllib-hpo sweeps` lists.",
    ),
]
Out = Annotated[Path | None, path_option(help="Directory of the new sweep. Default: runs/NAME.")]
Resume = Annotated[
    str | None,
    typer.Option(
        parser=absolute_or_uri,
        metavar="PATH",
        help="Directory or storage URI of a sweep to resume or extend.",
    ),
]
StorageUri = Annotated[
    str | None,
    typer.Option(
        parser=absolute_or_uri,
        metavar="URI",
        help="Mirror rows, checkpoints and replay to URI/NAME (s3://, gs://, file:// or a path), so that nodes "
        "need not share a disk. Credentials come from the environment.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would run, and exit.")]
Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE,...",
        help="Run only some trials: task=hopper,algorithm=sac-hpo,variant=k-1; if repeated, trials must match all.",
    ),
]
Seeds = Annotated[str | None, typer.Option(help="Seeds instead of the file's, for example 0-4 or 0,3.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Environment steps per trial.")]
MaxConcurrent = Annotated[int | None, typer.Option(min=1, help="Maximum number of concurrent trials.")]
NumEnvRunners = Annotated[int | None, typer.Option(min=0, help="Remote environment runners per trial.")]
EvaluationNumEnvRunners = Annotated[
    int | None,
    typer.Option(min=0, help="Evaluation runners per trial, which work in parallel with training."),
]
SeedsPerTrial = Annotated[
    int,
    typer.Option(
        min=1,
        help="Seeds of one configuration that a process trains: on a GPU with their updates made together, on a CPU "
        "in turns. Give it again at a resume.",
    ),
]
GpusPerLearner = Annotated[float | None, typer.Option(min=0, max=1, help="GPUs per trial: 1, or a fraction.")]


def sweep(
    file: SweepFileArgument = None,
    out: Out = None,
    resume: Resume = None,
    storage: StorageUri = None,
    dry_run: DryRun = False,
    only: Only = None,
    seeds: Seeds = None,
    steps: Steps = None,
    max_concurrent: MaxConcurrent = None,
    num_env_runners: NumEnvRunners = None,
    evaluation_num_env_runners: EvaluationNumEnvRunners = None,
    gpus_per_learner: GpusPerLearner = None,
    seeds_per_trial: SeedsPerTrial = 1,
    wandb: Wandb = "offline",
    wandb_artifacts: WandbArtifacts = False,
    wandb_video: WandbVideo = False,
    imports: Imports = None,
) -> None:
    """Run a grid of trials on this machine or a Ray cluster (RAY_ADDRESS); it can be killed and resumed.

    With --storage s3://bucket/prefix everything durable is mirrored to s3://bucket/prefix/NAME while it runs, and
    `rllib-hpo sweep --resume s3://bucket/prefix/NAME` resumes it on any machine.

    Exit code 2 if a trial failed, 130 if Ctrl-C stopped the sweep, 143 if another signal did.
    """
    import_all(imports)
    from rllib_hpo.experiments.cluster.ray_session import quiet_ray
    from rllib_hpo.experiments.config.sweep_config import read_sweep
    from rllib_hpo.experiments.sweeps import sweep as sweeps
    from rllib_hpo.experiments.sweeps.trial import TrialOptions
    from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions

    quiet_ray()
    given = trial_settings(
        {
            "steps": steps,
            "num_env_runners": num_env_runners,
            "evaluation_num_env_runners": evaluation_num_env_runners,
            "gpus_per_learner": gpus_per_learner,
        }
    )
    if (file is None) == (resume is None):
        raise SettingsError("Give either a sweep file or --resume with the directory of a sweep.")
    files, remote = resumed(resume, storage, out)
    if files is not None:
        _import_modules_of(files, resume or "")
    source = file if files is None else files.sweep_file
    assert source is not None
    grid = read_sweep(source, seeds, given)
    if only:
        grid = grid.only(**pairs(only))
    _print_notices(grid, seeds_per_trial)
    if dry_run:
        print_trials(grid, seeds_per_trial)
        return
    is_new = files is None
    if files is None:
        files, remote = _started(grid, source, out, storage, imports)
    elif given or seeds is not None:
        sweeps.plan_trials(grid, files, imports or ())
    keep_log_in(files.directory)
    run = partial(
        sweeps.run_sweep,
        only=[trial.name for trial in grid.trials] if only else None,
        options=TrialOptions(
            max_concurrent, WandbOptions(wandb, wandb_artifacts, wandb_video), storage=remote
        ),
        seeds_per_trial=seeds_per_trial,
    )
    again = f" --seeds-per-trial {seeds_per_trial}" if seeds_per_trial > 1 else ""
    _run(run, files, remote, is_new=is_new, again=again)


def sweeps(
    name: Annotated[
        str | None, typer.Argument(help="Print this sweep's file instead, for a file of your own.")
    ] = None,
) -> None:
    """List the sweep files that come with the package, with what they cost.

    Core-hours were measured on one machine (`python -m benchmarks.sweep_costs`); `rllib-hpo sweep NAME --dry-run`
    measures on yours.
    """
    from rllib_hpo.errors import unknown_name
    from rllib_hpo.experiments.config.shipped import sweep_costs, sweep_files
    from rllib_hpo.experiments.config.sweep_config import read_sweep

    files = sweep_files()
    if name is not None:
        if name not in files:
            raise unknown_name("sweep", name, files)
        print(files[name].read_text(), end="")  # noqa: T201  (no colours, no line breaks)
        return
    table = Table("sweep", Column("trials", justify="right"), Column("steps", justify="right"),
                  Column("core-hours", justify="right"), "what it is for")  # fmt: skip
    costs = sweep_costs()
    for path in files.values():
        grid = read_sweep(path)
        steps = sum(trial.config.run.steps for trial in grid.trials)
        hours = f"{costs[grid.name].core_hours:,.1f}" if grid.name in costs else "-"
        table.add_row(grid.name, str(len(grid.trials)), f"{steps:,}", hours, grid.description)
    console.print(table)


def _import_modules_of(files: Any, resume: str) -> None:
    """Import the modules that a resumed sweep was started with; refuse a search."""
    from rllib_hpo.experiments.sweeps import plan as plans

    plan = plans.read_plan(files)
    if plan.get(plans.SEARCH):
        again = f"rllib-hpo tune --resume {shlex.quote(resume)}"
        raise SettingsError(f"{files.directory} is a search directory; resume it with `{again}`.")
    import_all(plan["imports"])


def _run(run: Callable[..., Any], files: Any, remote: Any, *, is_new: bool, again: str) -> None:
    """Run the trials and print how they ended; remove a new sweep that is refused.

    Args:
        run: Runs the trials.
        files: The sweep's directory.
        remote: Its storage, if any.
        is_new: Whether it was just made.
        again: Options to repeat at a resume.
    """
    from rllib_hpo.experiments.sweeps import sweep as sweeps
    from rllib_hpo.experiments.sweeps.plan import publish_sweep
    from rllib_hpo.experiments.sweeps.progress import SweepProgress

    try:
        if remote is not None:
            publish_sweep(files, remote)
        outcome = run(files, SweepProgress(console))
    except UserError:
        if is_new:
            sweeps.remove_new_sweep(files, remote)
        raise
    _print_outcome(files, outcome, remote, again)


def _started(
    grid: Any, source: Path, out: Path | None, storage: str | None, imports: list[str] | None
) -> tuple[Any, Any]:
    """Make the directory and storage of a new sweep, and return both; the storage is None if there is none."""
    from rllib_hpo.experiments.storage.folder import Storage
    from rllib_hpo.experiments.sweeps import plan as plans
    from rllib_hpo.experiments.sweeps import sweep as sweeps

    files, remote = plans.SweepFiles(out or Path("runs") / grid.name), None
    if storage is not None:
        remote = Storage.open(storage).child(grid.name)
        plans.check_storage_free(remote)
    sweeps.start_sweep(grid, source, files, imports or ())
    return files, remote


def resumed(resume: str | None, storage: str | None, out: Path | None) -> tuple[Any, Any]:
    """Return directory and storage of a resumed sweep or search; fetch it from storage if `resume` is a URI."""
    from rllib_hpo.experiments.storage.folder import Storage, is_uri
    from rllib_hpo.experiments.sweeps import plan as plans

    if resume is None:
        return None, None
    if storage is not None:
        raise SettingsError("--resume cannot be combined with --storage: a sweep keeps its storage.")
    if not is_uri(resume):
        files = plans.SweepFiles(Path(resume))
        return files, plans.storage_of(files)
    remote = Storage.open(resume)
    files = plans.SweepFiles(out or Path("runs") / remote.name)
    plans.fetch_sweep(files, remote)
    return files, remote


def _print_notices(grid: Any, seeds_per_trial: int) -> None:
    """Print each notice once, with the first trial it concerns; refuse trials whose seeds cannot share a process."""
    from rllib_hpo.experiments.sweeps import seeds

    found: dict[str, list[str]] = {}
    for trial in grid.trials:
        for notice in seeds.notices(trial.config, seeds_per_trial):
            found.setdefault(notice, []).append(trial.name)
    seeds.group_seeds(grid.configs, seeds_per_trial)
    for notice, names in found.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(f"Note: {notice.rstrip('.')}: trial {names[0]}{others}.", soft_wrap=True)


def print_trials(grid: Any, seeds_per_trial: int = 1) -> None:
    """Print what a sweep would run, on which resources, for how long, and last the trials that could not begin."""
    from rllib_hpo.experiments.sweeps import estimate, seeds
    from rllib_hpo.experiments.sweeps import sweep as sweeps

    with console.status("timing the trials on this machine", spinner="line"):  # this spinner is ASCII
        broken = sweeps.broken_trials(grid)
        grid = grid.without(broken)
        if not grid.trials:
            raise sweeps.describe_broken(broken)
        seconds = estimate.time_trials(grid)
    groups = seeds.group_seeds(grid.configs, seeds_per_trial)
    console.print(_trial_table(grid, groups, seconds))
    there, at_a_time = sweeps.capacity(grid, groups)
    in_turns = [sum(seconds[name] for name in names) for names in groups.values()]
    hours = estimate.makespan(in_turns, at_a_time) / 3600
    steps = sum(trial.config.run.steps for trial in grid.trials)
    together = f" in {len(groups)} groups of seeds" if seeds_per_trial > 1 else ""
    what = "groups" if seeds_per_trial > 1 else "trials"
    console.print(
        f"{len(grid.trials)} trials{together}, {steps:,} environment steps; with {there}: {at_a_time} {what} at a "
        f"time, about {hours:.1f} hours in total (estimated on one core of this machine; a GPU or slower cores change "
        "it)",
        soft_wrap=True,
    )
    if broken:
        raise sweeps.describe_broken(broken)


def _trial_table(grid: Any, groups: Mapping[str, Sequence[str]], seconds: Mapping[str, float]) -> Table:
    """List the trials of each group; the first stands for what all of them request."""
    from rllib_hpo.experiments.sweeps.resources import describe, resources

    table = Table("trial", "steps", "requests", "hours")
    trials = {trial.name: trial for trial in grid.trials}
    for names in groups.values():
        request = describe(resources(trials[names[0]].config, num_seeds=len(names)))
        for name in names:
            steps, hours = trials[name].config.run.steps, seconds[name] / 3600
            table.add_row(name, f"{steps:,}", request if name == names[0] else "the same", f"{hours:.1f}")
    return table


def _print_outcome(files: Any, outcome: Any, storage: Any, again: str) -> None:
    from rllib_hpo.experiments.process.signals import exit_code

    console.print(f"result rows:    {files.results}", soft_wrap=True)
    counts = f"{len(outcome.done)} done, {len(outcome.failed)} failed, {len(outcome.unfinished)} unfinished"
    console.print(f"trials:         {counts}")
    if storage is not None:
        console.print(f"storage:        {storage.uri}", soft_wrap=True)
    if outcome.failed:
        logs = "; ".join(f"{name} ({path})" for name, path in outcome.failed.items())
        raise UserError(f"Trials failed: {logs}.")
    if outcome.unfinished:
        command = f"rllib-hpo sweep --resume {shlex.quote(str(files.directory))}{again}"
        console.print(f"Resume with: {command}", soft_wrap=True)
        raise typer.Exit(130 if outcome.stopped_by is None else exit_code(outcome.stopped_by))


def dashboard(
    directory: Annotated[Path, path_argument(metavar="SWEEP_DIR", help="Directory of a sweep.")],
    entity: Annotated[
        str | None, typer.Option(help="W&B user or team. Default: the account's, with --save.")
    ] = None,
    project: Annotated[str, typer.Option(help="W&B project.")] = "rllib-hpo",
    out: Annotated[
        Path | None, path_option(help="File for the workspace. Default: SWEEP_DIR/dashboard.json.")
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Also save the workspace online, and print its address.")
    ] = False,
) -> None:
    """Make the W&B workspace that compares a sweep's algorithms and variants, task by task.

    It needs `pip install 'rllib-hpo[dashboard]'`, and an account only with --save.
    """
    from rllib_hpo.experiments.sweeps.dashboard import save_workspace, workspace, write_workspace
    from rllib_hpo.experiments.sweeps.plan import SweepFiles

    built = workspace(SweepFiles(directory), entity, project)
    path = out or directory / "dashboard.json"
    write_workspace(built, path)
    console.print(f"workspace:      {path}", soft_wrap=True)
    if save:
        console.print(f"online:         {save_workspace(built)}", soft_wrap=True)

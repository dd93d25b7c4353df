"""Train one run: `rllib-hpo train`."""

from __future__ import annotations

import shlex
from operator import itemgetter
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
    path_option,
)
from rllib_hpo.errors import SettingsError, shown

AlgorithmName = Annotated[str | None, typer.Option(help=f"{ALGORITHMS}, or one of another package.")]
TaskName = Annotated[str | None, typer.Option(help="Task (see `rllib-hpo tasks`) or any gymnasium id.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random. Default: 0.")]
Steps = Annotated[
    int | None,
    typer.Option(help="Total environment steps, including those before a resume. Default: the task's."),
]
Out = Annotated[Path | None, path_option(help="Directory of the new run.")]
ConfigFile = Annotated[
    Path | None,
    path_option(help="YAML file of settings, or a result row (.parquet) whose run to repeat."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Setting (`rllib-hpo settings` lists them); may be repeated.",
    ),
]
InitializeFrom = Annotated[
    Path | None,
    path_option(help="Run directory or checkpoint whose networks initialise the new run."),
]
Resume = Annotated[
    Path | None, path_option(help="Directory of a run to resume from its newest intact checkpoint.")
]
KeepCheckpoints = Annotated[
    int, typer.Option(min=1, help="Number of newest checkpoints to keep, besides the best.")
]
KeepPoliciesEvery = Annotated[
    int | None,
    typer.Option(
        min=0, help="Environment steps between policy files kept in OUT/policies. Default: 0, none."
    ),
]


def train(
    algorithm: AlgorithmName = None,
    task: TaskName = None,
    seed: Seed = None,
    steps: Steps = None,
    out: Out = None,
    config: ConfigFile = None,
    set_: Assignments = None,
    initialize_from: InitializeFrom = None,
    resume: Resume = None,
    keep_checkpoints: KeepCheckpoints = 2,
    keep_policies_every: KeepPoliciesEvery = None,
    wandb: Wandb = "offline",
    wandb_artifacts: WandbArtifacts = False,
    wandb_video: WandbVideo = False,
    imports: Imports = None,
) -> None:
    """Train one run; write evaluation rows (Parquet), checkpoints and a learning curve to --out."""
    import_all(imports)
    from rllib_hpo.experiments.cluster.ray_session import quiet_ray
    from rllib_hpo.experiments.process.signals import exit_code
    from rllib_hpo.experiments.runs.files import open_run
    from rllib_hpo.experiments.runs.train import train as run_training
    from rllib_hpo.experiments.tracking.progress import Progress
    from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions

    quiet_ray()
    named = {
        "algorithm": algorithm,
        "task": task,
        "seed": seed,
        "initialize_from": None if initialize_from is None else str(initialize_from),
        "keep_policies_every": keep_policies_every,
    }
    flags = _settings(set_) | {name: value for name, value in named.items() if value is not None}
    if resume is None:
        resolved, files = _started(flags | {"steps": steps, "imports": imports}, config, out)
    else:
        _check_resume_options(out, config)
        resolved, files = open_run(resume, steps, flags, imports or ())
    keep_log_in(files.directory)
    _print_config(resolved)
    options = WandbOptions(wandb, wandb_artifacts, wandb_video)
    stopped_by = run_training(
        resolved, files, Progress(console), keep_checkpoints=keep_checkpoints, wandb=options
    )
    _print_results(resolved, files)
    if stopped_by is not None:
        again = f"rllib-hpo train --resume {shlex.quote(str(files.directory))}"
        console.print(f"Stopped. Resume with: {again}", soft_wrap=True)
        raise typer.Exit(exit_code(stopped_by))


def _started(flags: dict[str, Any], config: Path | None, out: Path | None) -> tuple[Any, Any]:
    """Resolve the configuration of a new run, and make its directory."""
    from rllib_hpo.experiments.config.run_config import resolve
    from rllib_hpo.experiments.runs.files import start_run

    if out is None:
        raise SettingsError(
            "Give --out with the directory of a new run, or --resume with that of an existing one."
        )
    resolved = resolve(flags, config)
    return resolved, start_run(resolved, out)


def _check_resume_options(out: Path | None, config: Path | None) -> None:
    if out is not None or config is not None:
        raise SettingsError(
            "--resume cannot be combined with --out or --config: a run keeps its directory and settings."
        )


def _print_results(resolved: Any, files: Any) -> None:
    """Draw the learning curve, and print the last evaluation and the run's files."""
    from rllib_hpo.analysis.curves import learning_curve
    from rllib_hpo.results import read_rows

    if any(files.results.rglob("*.parquet")):
        rows = read_rows(files.results)
        learning_curve(rows, files.curve)
        _print_last_evaluation(rows, resolved.settings.evaluation_every)
    _print_files(files)


def _settings(assignments: list[str] | None) -> dict[str, Any]:
    """Parse `--set NAME=VALUE` into a mapping, with values read as YAML."""
    from rllib_hpo.documents import parse_value

    values = {}
    for assignment in assignments or []:
        name, equals, text = assignment.partition("=")
        if not (name and equals):
            raise SettingsError(f"--set {assignment} must be NAME=VALUE, for example --set leapfrog_steps=3.")
        try:
            values[name.strip()] = parse_value(text)
        except SettingsError as error:
            raise SettingsError(f"--set {shown(assignment)[1:-1]}: cannot parse the value: {error}") from None
    return values


def _print_config(config: Any) -> None:
    """Print the settings with their origins, and notes on settings without effect."""
    table = Table("setting", "value", "from", title="Configuration", title_justify="left")
    for name, value in config.values().items():
        origin = config.origins[name]
        table.add_row(name, str(value), origin, style="dim" if origin == "default" else None)
    console.print(table)
    for notice in config.notices():
        console.print(f"Note: {notice}", soft_wrap=True)


def _print_last_evaluation(rows: Any, every: int) -> None:
    """Print the last evaluation, its step, and whether that step is on the schedule."""
    from rllib_hpo.experiments.tracking.progress import success_and_cost
    from rllib_hpo.results import COST_COLUMNS, SUCCESS_RATE

    columns = ["env_steps", "return_mean", "return_std", SUCCESS_RATE, *COST_COLUMNS]
    last = max(rows.select(columns).to_pylist(), key=itemgetter("env_steps"))
    off = f", which is not on the schedule of every {every:,} steps" if last["env_steps"] % every else ""
    console.print(
        f"{'evaluation:':<16}return {last['return_mean']:.1f} ± {last['return_std']:.1f} at step "
        f"{last['env_steps']:,}{off}{success_and_cost(last)}",
        soft_wrap=True,
    )


def _print_files(files: Any) -> None:
    from rllib_hpo.rllib.checkpointing import follow, read_manifest

    last = files.directory / "checkpoints" / "last"
    rebuilt = last.exists() and read_manifest(follow(last)).get("environments") == "rebuilt"
    note = " (a resume rebuilds its environments)" if rebuilt else ""
    paths = {
        "configuration": files.config,
        "result rows": files.results,
        "checkpoint": last,
        "kept policies": files.directory / "policies",
        "W&B run": files.directory / "wandb",
        "learning curve": files.curve,
    }
    for what, path in paths.items():
        if path.exists():
            console.print(f"{what + ':':<16}{path}{note if path == last else ''}", soft_wrap=True)

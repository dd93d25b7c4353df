"""The command line: one command per verb. Failures a user can mend end in one sentence and exit code 2."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Column, Table

from rllib_hpo.errors import SettingsError, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Train and evaluate SAC, SAC-NF and SAC-HPO (actions evolved by Hamiltonian dynamics) on Ray RLlib.",
    epilog="Start with: `rllib-hpo train --algorithm sac-hpo --task hopper --steps 10000 --out runs/first`",
)
# A pipe or a file has no width; Rich would fold the tables to 80 columns.
console = Console(width=None if sys.stdout.isatty() else 160)
errors = Console(stderr=True)

_Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import", metavar="MODULE", help="Import a module that registers tasks, algorithms or samplers."
    ),
]

_Wandb = Annotated[
    Literal["offline", "online", "disabled"],
    typer.Option(help="Weights & Biases; offline needs no account."),
]
_WandbArtifacts = Annotated[
    bool,
    typer.Option(
        "--wandb-artifacts", help="Give W&B each checkpoint too, some megabytes without its replay."
    ),
]
_WandbVideo = Annotated[
    bool, typer.Option("--wandb-video", help="Film a noise-free episode for W&B when all steps are made.")
]


@app.command()
def train(
    algorithm: Annotated[
        str | None, typer.Option(help="sac, sac-nf, sac-hpo, or one of another package.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="A task (see `rllib-hpo tasks`) or any gymnasium id.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes everything random. Default 0.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Environment steps in all, those before a resume included. Default: the task's."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the new run.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings, or a row of results (.parquet), which is then repeated."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting (`rllib-hpo settings` lists them); may be given many times.",
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Directory of a run to go on with, from its newest intact checkpoint.")
    ] = None,
    keep_checkpoints: Annotated[
        int, typer.Option(min=1, help="Newest checkpoints to keep; the best is kept besides.")
    ] = 2,
    wandb: _Wandb = "offline",
    wandb_artifacts: _WandbArtifacts = False,
    wandb_video: _WandbVideo = False,
    imports: _Import = None,
) -> None:
    """Train one run: rows of evaluations in Parquet, checkpoints, a learning curve, all under --out."""
    _import_all(imports)
    from rllib_hpo.analysis.curves import learning_curve
    from rllib_hpo.experiments.progress import Progress
    from rllib_hpo.experiments.run_config import resolve
    from rllib_hpo.experiments.train import open_run, quiet_ray, start_run
    from rllib_hpo.experiments.train import train as run_training
    from rllib_hpo.experiments.wandb_logger import WandbOptions
    from rllib_hpo.results import read_rows

    quiet_ray()
    flags: dict[str, Any] = {**_settings(set_), "algorithm": algorithm, "task": task, "seed": seed}
    if resume is not None:
        if out is not None or config is not None:
            raise SettingsError(
                "--resume goes with neither --out nor --config: a run keeps its directory and settings."
            )
        resolved, files = open_run(resume, steps, flags)
    elif out is None:
        raise SettingsError("Give --out, the directory of the new run, or --resume with that of an old one.")
    else:
        resolved = resolve({**flags, "steps": steps}, config)
        files = start_run(resolved, out)
    _print_config(resolved)
    options = WandbOptions(wandb, wandb_artifacts, wandb_video)
    stopped_by = run_training(
        resolved, files, Progress(console), keep_checkpoints=keep_checkpoints, wandb=options
    )
    learning_curve(read_rows(files.results), files.curve)
    _print_files(files)
    if stopped_by is not None:
        again = f"rllib-hpo train --resume {shlex.quote(str(files.directory))}"
        console.print(f"Stopped. Go on with: {again}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(128 + stopped_by)


@app.command()
def sweep(
    file: Annotated[
        Path | None, typer.Argument(help="A sweep file (YAML); those of the papers are in tune_configs.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the new sweep. Default: runs/NAME.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Directory of a sweep to go on with, or to extend.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop.")] = False,
    only: Annotated[
        str | None,
        typer.Option(metavar="KEY=VALUE,...", help="Some trials: task=hopper,algorithm=sac-hpo,variant=k-1."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Instead of the file's, as 0-4 or 0,3.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Environment steps of every trial.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time, at most.")] = None,
    num_env_runners: Annotated[int | None, typer.Option(min=0, help="Remote runners of every trial.")] = None,
    gpus_per_learner: Annotated[
        float | None, typer.Option(min=0, max=1, help="GPU, or a share of one, for every trial.")
    ] = None,
    wandb: _Wandb = "offline",
    wandb_artifacts: _WandbArtifacts = False,
    wandb_video: _WandbVideo = False,
    imports: _Import = None,
) -> None:
    """Run a grid of trials on this machine or a Ray cluster (RAY_ADDRESS); it can be killed and resumed.

    Exit code 2 if a trial failed, 130 if the sweep was interrupted.
    """
    _import_all(imports)
    from rllib_hpo.experiments import sweep as sweeps
    from rllib_hpo.experiments.sweep_config import read_sweep
    from rllib_hpo.experiments.sweep_progress import SweepProgress
    from rllib_hpo.experiments.train import quiet_ray
    from rllib_hpo.experiments.wandb_logger import WandbOptions

    quiet_ray()
    changes = {
        "steps": steps,
        "num_env_runners": num_env_runners,
        "num_gpus_per_learner": gpus_per_learner,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    if (file is None) == (resume is None):
        raise SettingsError("Name either a sweep file or, with --resume, the directory of a sweep.")
    files = sweeps.SweepFiles(resume) if resume is not None else None
    if files is not None:
        _import_all(sweeps.read_plan(files)["imports"])
    source = file if files is None else files.sweep_file
    assert source is not None
    grid = read_sweep(source, seeds, given)
    if only is not None:
        grid = grid.only(**_pairs(only))
    if dry_run:
        _print_sweep(grid)
        return
    if files is None:
        files = sweeps.SweepFiles(out or Path("runs") / grid.name)
        sweeps.start_sweep(grid, source, files, imports or ())
    elif given or seeds is not None:
        sweeps.plan_trials(grid, files, imports or ())
    names = [trial.name for trial in grid.trials] if only is not None else None
    options = WandbOptions(wandb, wandb_artifacts, wandb_video)
    outcome = sweeps.run_sweep(
        files, SweepProgress(console), only=names, max_concurrent=max_concurrent, wandb=options
    )
    _print_outcome(files, outcome)


@app.command()
def dashboard(
    directory: Annotated[Path, typer.Argument(metavar="SWEEP_DIR", help="Directory of a sweep.")],
    entity: Annotated[
        str | None, typer.Option(help="W&B user or team. Default: the account's, with --save.")
    ] = None,
    project: Annotated[str, typer.Option(help="W&B project.")] = "rllib-hpo",
    out: Annotated[
        Path | None, typer.Option(help="File of the workspace. Default: SWEEP_DIR/dashboard.json.")
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Save the workspace online too, and print its address.")
    ] = False,
) -> None:
    """Make the W&B workspace that compares a sweep's algorithms and variants, task by task.

    It needs `pip install 'rllib-hpo[dashboard]'`, and an account only with --save.
    """
    from rllib_hpo.experiments.dashboard import save_workspace, workspace, write_workspace
    from rllib_hpo.experiments.sweep import SweepFiles

    built = workspace(SweepFiles(directory), entity, project)
    path = out or directory / "dashboard.json"
    write_workspace(built, path)
    console.print(f"workspace:      {path}", highlight=False, soft_wrap=True)
    if save:
        console.print(f"online:         {save_workspace(built)}", highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint, or a run directory (its newest checkpoint).")
    ],
    episodes: Annotated[int, typer.Option(min=1, help="Noise-free episodes to play.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the episodes.")] = 0,
    video: Annotated[
        Path | None, typer.Option(help="Film one more episode into this file (.mp4 or .gif).")
    ] = None,
    imports: _Import = None,
) -> None:
    """Play noise-free episodes with a trained policy. Checkpoints are pickles: load those you trust only."""
    _import_all(imports)
    from rllib_hpo.experiments.evaluate import evaluate_checkpoint, film
    from rllib_hpo.experiments.train import quiet_ray
    from rllib_hpo.results import episode_statistics

    quiet_ray()
    played, manifest = evaluate_checkpoint(checkpoint, episodes, seed)
    statistics = episode_statistics(played.returns, played.lengths)
    console.print(
        f"{manifest['algorithm']} on {manifest['env']} after {manifest['env_steps']:,} steps: return "
        f"{statistics['return_mean']:.1f} ± {statistics['return_std']:.1f} over {episodes} episodes "
        f"(from {min(played.returns):.1f} to {max(played.returns):.1f}), "
        f"episode length {statistics['episode_length_mean']:.0f}",
        highlight=False,
        soft_wrap=True,
    )
    if video is not None:
        console.print(f"{video} (return {film(checkpoint, video, seed):.1f})", highlight=False)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint, or a run directory (its newest checkpoint).")
    ],
    format_: Annotated[str, typer.Option("--format", help="torch-export, onnx or safetensors.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    imports: _Import = None,
) -> None:
    """Write the noise-free policy to a file: observation in, action within the environment's bounds out.

    Checkpoints are pickles: load those you trust only. The exported files are not.
    """
    _import_all(imports)
    from rllib_hpo.experiments.export import export_policy
    from rllib_hpo.experiments.train import quiet_ray

    quiet_ray()
    for path in export_policy(checkpoint, format_, out):
        console.print(str(path), highlight=False, soft_wrap=True)


@app.command()
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint, or a run directory (its newest checkpoint).")
    ],
    out: Annotated[Path, typer.Option(help="Directory of the new checkpoint.")],
    imports: _Import = None,
) -> None:
    """Turn a checkpoint of RLlib's new API stack into one of its old stack, or back; actions stay the same.

    Checkpoints are pickles: load those you trust only.
    """
    _import_all(imports)
    from rllib_hpo.experiments.checkpoints import find_checkpoint
    from rllib_hpo.experiments.train import quiet_ray
    from rllib_hpo.rllib.converting import convert as convert_checkpoint

    quiet_ray()
    stack = convert_checkpoint(find_checkpoint(checkpoint), out)
    console.print(f"{out}: a checkpoint for RLlib's {stack} API stack", highlight=False, soft_wrap=True)


@app.command()
def tasks(imports: _Import = None) -> None:
    """List the tasks, their environments and their hyperparameters for SAC-HPO (Table I)."""
    _import_all(imports)
    from rllib_hpo.tasks import all_tasks

    columns = {
        "alpha": "alpha",
        "momentum_std_train": "std train",
        "momentum_std_explore": "std explore",
        "step_size": "epsilon",
        "leapfrog_steps": "K",
        "leapfrog_units": "h_n",
    }
    names = ("task", "environment", "steps", *columns.values(), "SAC-NF flows")
    table = Table(*(Column(name, overflow="fold") for name in names))
    for task in all_tasks():
        hpo, flows = task.settings_for("sac-hpo"), task.settings_for("sac-nf").get("num_flows", "")
        table.add_row(
            task.name,
            task.env_id,
            f"{task.steps:,}",
            *(str(hpo.get(name, "")) for name in columns),
            str(flows),
        )
    console.print(table)
    console.print("Any other gymnasium id works too, with Ant's hyperparameters.")


@app.command()
def settings(
    algorithm: Annotated[
        str, typer.Argument(help="sac, sac-nf, sac-hpo, or one of another package.")
    ] = "sac-hpo",
    imports: _Import = None,
) -> None:
    """List an algorithm's settings: what `--set`, a `--config` file and Python's `training()` accept."""
    _import_all(imports)
    from rllib_hpo.settings import find_settings

    table = Table("setting", "default", "meaning")
    for name, field in find_settings(algorithm).model_fields.items():
        table.add_row(name, str(field.default), field.description)
    console.print(table)


def main() -> None:
    """The entry point `rllib-hpo`."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_time=False, show_path=False)],
    )
    try:
        app()
    except UserError as error:
        errors.print(f"Error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


def _import_all(modules: list[str] | None) -> None:
    sys.path.insert(0, "")
    from rllib_hpo.tasks import import_modules

    import_modules(modules or [])


def _settings(assignments: list[str] | None) -> dict[str, Any]:
    """`--set NAME=VALUE` as a mapping, values read as YAML."""
    from rllib_hpo.experiments.run_config import numeric

    values = {}
    for assignment in assignments or []:
        name, equals, text = assignment.partition("=")
        if not (name and equals):
            raise SettingsError(
                f"--set {assignment} must be NAME=VALUE, for instance --set leapfrog_steps=3."
            )
        try:
            values[name.strip()] = numeric(yaml.safe_load(text))
        except yaml.YAMLError:
            raise SettingsError(f"--set {assignment}: '{text}' is not a value.") from None
    return values


def _print_config(config: Any) -> None:
    table = Table("setting", "value", "from", title="Configuration", title_justify="left")
    for name, value in config.values().items():
        origin = config.origins[name]
        table.add_row(name, str(value), origin, style="dim" if origin == "default" else None)
    console.print(table)


def _pairs(text: str) -> dict[str, str]:
    """`KEY=VALUE,...` as a mapping."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(key and equals for key, equals, _ in pairs):
        raise SettingsError(f"--only {text} must be KEY=VALUE,..., as in task=hopper,algorithm=sac-hpo.")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _print_sweep(grid: Any) -> None:
    """What a sweep would run, on what, and for how long."""
    from rllib_hpo.experiments import estimate
    from rllib_hpo.experiments import sweep as sweeps

    with console.status("timing the trials on this machine"):
        seconds = estimate.time_trials(grid)
    table = Table("trial", "steps", "asks for", "hours")
    for trial in grid.trials:
        request = sweeps.describe(sweeps.resources(trial.config))
        table.add_row(trial.name, f"{trial.config.run.steps:,}", request, f"{seconds[trial.name] / 3600:.1f}")
    console.print(table)
    there, at_a_time = sweeps.capacity(grid)
    hours = estimate.makespan(list(seconds.values()), at_a_time) / 3600
    steps = sum(trial.config.run.steps for trial in grid.trials)
    console.print(
        f"{len(grid.trials)} trials, {steps:,} environment steps; there are {there}: {at_a_time} trials at a time, "
        f"about {hours:.1f} hours in all (timed on one core of this machine; a GPU or slower cores change it)",
        highlight=False,
        soft_wrap=True,
    )


def _print_outcome(files: Any, outcome: Any) -> None:
    console.print(f"result rows:    {files.results}", highlight=False, soft_wrap=True)
    counts = f"{len(outcome.done)} done, {len(outcome.failed)} failed, {len(outcome.unfinished)} unfinished"
    console.print(f"trials:         {counts}", highlight=False)
    if outcome.failed:
        logs = "; ".join(f"{name} ({path})" for name, path in outcome.failed.items())
        raise UserError(f"Trials failed: {logs}.")
    if outcome.unfinished:
        again = f"rllib-hpo sweep --resume {shlex.quote(str(files.directory))}"
        console.print(f"Go on with: {again}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(130)


def _print_files(files: Any) -> None:
    paths = {
        "configuration": files.config,
        "result rows": files.results,
        "checkpoint": files.directory / "checkpoints" / "last",
        "W&B run": files.directory / "wandb",
        "learning curve": files.curve,
    }
    for what, path in paths.items():
        if path.exists():
            console.print(f"{what + ':':<16}{path}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()

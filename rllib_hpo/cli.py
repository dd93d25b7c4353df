"""The command line: one command per verb. Failures a user can mend end in one sentence and exit code 2."""

from __future__ import annotations

import logging
import shlex
import sys
import tempfile
from datetime import datetime
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
    help="Train, sweep and compare SAC, SAC-NF and SAC-HPO (actions evolved by Hamiltonian dynamics) on Ray RLlib.",
    epilog="Start with: `rllib-hpo train --algorithm sac-hpo --task hopper --steps 10000 --out runs/first`",
)
results_app = typer.Typer(
    no_args_is_help=True, help="Look at evaluation rows, and keep their files in order."
)
app.add_typer(results_app, name="results")
cluster_app = typer.Typer(no_args_is_help=True)
app.add_typer(cluster_app, name="cluster")


@cluster_app.callback()
def _cluster() -> None:
    """Clusters for sweeps; the files are in `cluster`."""


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
        str | None, typer.Option(help="Directory, or URI on storage, of a sweep to go on with, or to extend.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Mirror rows, checkpoints and replay to URI/NAME (s3://, gs://, file:// or a path), so that nodes "
            "need share no disk. Credentials come from the environment.",
        ),
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

    With --storage s3://bucket/prefix everything durable is mirrored to s3://bucket/prefix/NAME while it runs, and
    `rllib-hpo sweep --resume s3://bucket/prefix/NAME` goes on with it on any machine.

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
    files, remote = _resumed(resume, storage, out)
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
        files, remote = _started(grid, source, out, storage, imports)
    elif given or seeds is not None:
        sweeps.plan_trials(grid, files, imports or ())
    if remote is not None:
        sweeps.publish_sweep(files, remote)
    names = [trial.name for trial in grid.trials] if only is not None else None
    options = WandbOptions(wandb, wandb_artifacts, wandb_video)
    outcome = sweeps.run_sweep(
        files,
        SweepProgress(console),
        only=names,
        max_concurrent=max_concurrent,
        wandb=options,
        storage=remote,
    )
    _print_outcome(files, outcome, remote)


def _started(
    grid: Any, source: Path, out: Path | None, storage: str | None, imports: list[str] | None
) -> tuple[Any, Any]:
    """Directory and storage of a new sweep, both made; no storage where there is to be none."""
    from rllib_hpo.experiments import sweep as sweeps
    from rllib_hpo.experiments.storage import Storage

    files, remote = sweeps.SweepFiles(out or Path("runs") / grid.name), None
    if storage is not None:
        remote = Storage.open(storage).child(grid.name)
        sweeps.refuse_taken(remote)
    sweeps.start_sweep(grid, source, files, imports or ())
    return files, remote


def _resumed(resume: str | None, storage: str | None, out: Path | None) -> tuple[Any, Any]:
    """Directory and storage of the sweep to go on with, fetched from storage where `resume` is a URI."""
    from rllib_hpo.experiments import sweep as sweeps
    from rllib_hpo.experiments.storage import Storage, is_uri

    if resume is None:
        return None, None
    if storage is not None:
        raise SettingsError("--resume does not go with --storage: a sweep keeps its storage.")
    if not is_uri(resume):
        files = sweeps.SweepFiles(Path(resume))
        return files, sweeps.storage_of(files)
    remote = Storage.open(resume)
    files = sweeps.SweepFiles(out or Path("runs") / remote.name)
    sweeps.fetch_sweep(files, remote)
    return files, remote


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


@app.command("policy-shape")
def policy_shape(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="A checkpoint, a run directory, or an exported policy (.safetensors)."),
    ],
    dims: Annotated[str, typer.Option(help="The two action dimensions to show, from 0.")] = "0,1",
    out: Annotated[Path, typer.Option(help="The figure: .png, .pdf or .svg.")] = Path("policy-shape.png"),
    mode: Annotated[Literal["explore", "train"], typer.Option(help="Whose momentum.")] = "explore",
    actions: Annotated[int, typer.Option(min=1, help="How many to draw.")] = 1_000,
    after_steps: Annotated[
        int, typer.Option(min=0, help="Steps of a noise-free episode to the state that is shown.")
    ] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of the episode and the draws.")] = 0,
    imports: _Import = None,
) -> None:
    """Draw actions before and after the leapfrog over the contours of Q.

    Checkpoints are pickles: load those you trust only. Exported policies are not.
    """
    _import_all(imports)
    from rllib_hpo.analysis.policy_shape import write_policy_shape
    from rllib_hpo.deployment import load_policy_file

    first, _, second = dims.partition(",")
    if not (first.strip().isdigit() and second.strip().isdigit()):
        raise SettingsError(f"--dims {dims} must be two numbers, as in 0,1.")
    if checkpoint.suffix == ".safetensors":
        policy = load_policy_file(checkpoint)
    else:
        from rllib_hpo.experiments.export import load_deployed
        from rllib_hpo.experiments.train import quiet_ray

        quiet_ray()
        policy = load_deployed(checkpoint)
    chosen = int(first), int(second)
    path = write_policy_shape(
        policy, out, chosen, mode=mode, num_actions=actions, after_steps=after_steps, seed=seed
    )
    console.print(str(path), highlight=False, soft_wrap=True)


_Directories = Annotated[
    list[str],
    typer.Argument(help="Directories of runs or sweeps, or any that hold rows; or URIs of storage."),
]


@app.command()
def report(
    directories: _Directories,
    out: Annotated[Path, typer.Option(help="Directory of the report.")] = Path("report"),
    title: Annotated[str, typer.Option(help="Of the page. Default: the names of the sweeps.")] = "",
) -> None:
    """Make one page (index.html, works from disk), figures, and tables for papers out of evaluation rows."""
    from rllib_hpo.analysis.report import write_report

    written = write_report(_rows(directories), out, title)
    for what, path in written.items():
        console.print(f"{what + ':':<16}{path}", highlight=False, soft_wrap=True)


@results_app.command()
def show(
    directories: _Directories,
    full: Annotated[
        bool, typer.Option("--full", help="All tables of a report: intervals, comparisons, steps to reach.")
    ] = False,
) -> None:
    """Print the table so far; also while a sweep is running."""
    import numpy as np

    from rllib_hpo.analysis.report import SEED
    from rllib_hpo.analysis.runs import runs_of
    from rllib_hpo.analysis.tables import all_tables, progress_table

    runs = runs_of(_rows(directories))
    for table in [progress_table(runs), *(all_tables(runs, np.random.default_rng(SEED)) if full else [])]:
        shown = Table(
            *(Column(name, justify="left" if i == 0 else "right") for i, name in enumerate(table.columns))
        )
        for row in table.rows:
            shown.add_row(*row)
        console.print(f"\n{table.title}. {table.note}", highlight=False, soft_wrap=True)
        console.print(shown)


@results_app.command()
def compact(
    directory: Annotated[Path, typer.Argument(help="A directory that holds rows, also of a running sweep.")],
) -> None:
    """Merge thousands of row files into one for each algorithm and task; no row is lost."""
    from rllib_hpo.results import compact as merge

    before, after = merge(directory)
    console.print(f"{before:,} files of rows are {after:,} now.", highlight=False)


@results_app.command()
def add(
    directory: Annotated[
        Path, typer.Argument(help="Where the rows go: the results of a sweep, for instance.")
    ],
    sources: Annotated[list[Path], typer.Argument(help="Where they come from: sweeps of other machines.")],
) -> None:
    """Join sweeps of several machines: copy the rows that are not there yet."""
    from rllib_hpo.results import add as copy

    for source in sources:
        console.print(f"{copy(directory, source):,} new rows from {source}", highlight=False, soft_wrap=True)


@results_app.command()
def check(directories: _Directories) -> None:
    """Say which evaluations are missing, doubled or not finite, and what is mixed up. Exit code 2 if any."""
    from rllib_hpo.results import check as find_problems

    rows = _rows(directories)
    problems = find_problems(rows)
    for problem in problems:
        console.print(f"{problem.kind}: {problem.what}", highlight=False, markup=False, soft_wrap=True)
    if problems:
        raise UserError(f"{len(problems)} problems in {rows.num_rows:,} rows.")
    console.print(f"{rows.num_rows:,} rows, nothing missing, doubled or not finite.", highlight=False)


@cluster_app.command("check")
def check_cluster(
    files: Annotated[list[Path], typer.Argument(help="Files of `ray up`, KubeRay or Slurm.")],
    crds: Annotated[
        Path | None,
        typer.Option(
            help="Directory of KubeRay's own definitions, ray.io_rayclusters.yaml and ray.io_rayjobs.yaml."
        ),
    ] = None,
    sweep_file: Annotated[
        Path | None, typer.Option("--sweep", help="Plan this sweep's trials onto each cluster, too.")
    ] = None,
    num_env_runners: Annotated[int, typer.Option(min=0, help="Remote runners of every trial.")] = 0,
    gpus_per_learner: Annotated[
        float, typer.Option(min=0, max=1, help="GPU, or a share of one, for every trial.")
    ] = 0.0,
) -> None:
    """Say what is wrong with files of clusters, with line and remedy, without a network. Exit code 2 if anything."""
    from rllib_hpo.experiments.cluster_check import check_file

    changes = {"num_env_runners": num_env_runners, "num_gpus_per_learner": gpus_per_learner}
    found = 0
    for file in files:
        problems = check_file(file, crds)
        planned = "ok"
        if sweep_file is not None and not problems:
            planned = _plan_sweep(sweep_file, changes, file)
        for problem in problems or [f"{file}: {planned}"]:
            console.print(problem, highlight=False, markup=False, soft_wrap=True)
        found += len(problems)
    if found:
        raise UserError(f"{found} problem{'s' if found > 1 else ''} in cluster files.")


def _plan_sweep(sweep_file: Path, changes: dict[str, Any], cluster: Path) -> str:
    """How many trials of a sweep a cluster runs at a time.

    Raises:
        SettingsError: If one of them never could.
    """
    from rllib_hpo.experiments.cluster_check.placement import read_machines
    from rllib_hpo.experiments.machines import trials_at_a_time
    from rllib_hpo.experiments.sweep_config import read_sweep
    from rllib_hpo.experiments.trial_resources import describe, resources

    machines = read_machines(cluster)
    counts = []
    for trial in read_sweep(sweep_file, changes=changes).trials:
        request = resources(trial.config, machines.keep_rollouts_apart)
        counts.append(trials_at_a_time(request.bundles, machines))
        if not counts[-1]:
            raise SettingsError(
                f"{cluster}: {trial.name} asks for {describe(request)}, which never fit; ask for less."
            )
    return f"ok; {min(counts)} trials of {sweep_file} at a time, once it has grown"


def _rows(directories: list[str]) -> Any:
    from rllib_hpo.results import read_rows

    with tempfile.TemporaryDirectory() as downloaded:
        roots = []
        for number, directory in enumerate(directories):
            if Path(directory).exists():
                roots.append(Path(directory))
            elif "://" in directory:
                from rllib_hpo.experiments.storage import Storage, rows_from

                roots.append(Path(downloaded) / str(number))
                rows_from(Storage.open(directory), roots[-1])
            else:
                raise UserError(f"{directory} does not exist.")
        rows = read_rows(roots)
    if not rows.num_rows:
        raise UserError(f"There are no evaluation rows in {', '.join(map(str, directories))}.")
    return rows


_Address = Annotated[
    str,
    typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, by a tunnel to its head."),
]
_JobId = Annotated[str, typer.Argument(metavar="ID", help="What `rllib-hpo submit` printed.")]
_DASHBOARD = "http://127.0.0.1:8265"


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    options_metavar="SWEEP.yaml [OPTIONS] [OPTIONS OF rllib-hpo sweep]",
)
def submit(
    context: typer.Context,
    address: _Address = _DASHBOARD,
    attach: Annotated[
        str | None, typer.Option(metavar="ID", help="Follow a job that is on the cluster already.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Send it, print its id, and stop.")] = False,
    pip: Annotated[
        bool,
        typer.Option(
            "--pip",
            help="Send this package too, and have what it needs installed for the job, in the versions of this "
            "machine. Without it the cluster's nodes have the package, as those of our images do.",
        ),
    ] = False,
) -> None:
    """Send a sweep to a Ray cluster as a job, and follow its log to the end; Ctrl-C leaves it running.

    Takes all options of `rllib-hpo sweep`, --storage, --out, --resume, --only, --seeds, --steps among them; --out and
    --storage are places of the cluster, and modules of --import that lie beside the sweep file go along. The token
    is read by Ray: RAY_AUTH_MODE=token and ~/.ray/auth_token or RAY_AUTH_TOKEN.

    Exit code 0 if all trials are done, 2 if one failed, 130 if it was stopped, or left by Ctrl-C.
    """
    from rllib_hpo.experiments import jobs

    if attach is None:
        request = _request(context.args, pip)
        client = jobs.connect(address)
        attach = jobs.submit(client, request)
        console.print(f"job:            {attach}", highlight=False, soft_wrap=True)
        if no_wait:
            return
    elif context.args:
        raise SettingsError(f"--attach takes no sweep: {' '.join(context.args)} has no meaning with it.")
    else:
        client = jobs.connect(address)
    try:
        job = jobs.follow(client, attach, lambda text: print(text, end="", flush=True))  # noqa: T201
    except KeyboardInterrupt:
        again = f"rllib-hpo submit --attach {attach} --address {address}"
        console.print(
            f"\nLeft; the job goes on. Follow it again with: {again}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(130) from None
    raise typer.Exit(jobs.exit_code(job))


def _request(words: list[str], pip: bool) -> Any:
    """A sweep to send, validated here first."""
    from rllib_hpo.experiments import jobs
    from rllib_hpo.experiments.sweep_config import read_sweep

    command = typer.main.get_command(app).commands["sweep"]  # type: ignore[attr-defined]
    parsed = command.make_context("rllib-hpo submit", list(words))
    given = {
        option.name: parsed.params[option.name]
        for option in command.params
        if getattr(parsed.get_parameter_source(option.name), "name", "") == "COMMANDLINE"
    }
    file, resume, imports = given.pop("file", None), given.get("resume"), given.get("imports") or ()
    storage, out = given.get("storage"), given.pop("out", None)
    if (file is None) == (resume is None):
        raise SettingsError("Name either a sweep file or, with --resume, where on the cluster a sweep is.")
    if "dry_run" in given:
        raise SettingsError("--dry-run starts nothing; `rllib-hpo sweep --dry-run` says what would run.")
    jobs.refuse_paths(storage, out and str(out))
    jobs.refuse_paths(resume, None)
    source, name = None, (resume or "").partition("?")[0].rstrip("/").rpartition("/")[2]
    if file is not None:
        source = Path(file)
        sys.path.insert(0, str(source.parent.absolute()))
        _import_all(list(imports))
        names = {
            "steps": "steps",
            "num_env_runners": "num_env_runners",
            "gpus_per_learner": "num_gpus_per_learner",
        }
        changes = {name: given[option] for option, name in names.items() if option in given}
        grid = read_sweep(source, given.get("seeds"), changes)
        if "only" in given:
            grid = grid.only(**_pairs(given["only"]))
        name = grid.name
    options = [] if source is None else [source.name]
    for option in command.params:
        value = given.get(option.name)
        for one in [] if value is None else value if isinstance(value, list | tuple) else [value]:
            options += [option.opts[0]] if option.is_flag else [option.opts[0], str(one)]
    place = resume if resume and "://" in resume else ""
    if storage is not None:
        place = jobs.below(storage, name)
    elif resume and not place:
        out = resume
    return jobs.Request(
        name, tuple(options), jobs.shipped(source, imports), place, str(out or ""), resume is not None, pip
    )


@app.command()
def status(
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Of one job. Default: all.")] = None,
    address: _Address = _DASHBOARD,
) -> None:
    """Print the sweeps on a cluster, or how one of them stands, with the table so far."""
    from rllib_hpo.experiments import jobs

    client = jobs.connect(address)
    found = jobs.jobs(client) if job_id is None else [jobs.get_job(client, job_id)]
    table = Table("job", "state", "began", "results")
    for job in found:
        began = "" if job.started is None else f"{datetime.fromtimestamp(job.started):%Y-%m-%d %H:%M}"  # noqa: DTZ006
        table.add_row(job.job_id, job.state, began, job.storage or job.out)
    console.print(table)
    if job_id is None:
        return
    place = jobs.reachable_rows(found[0])
    if place is None:
        console.print(jobs.elsewhere(found[0]), highlight=False, markup=False, soft_wrap=True)
    else:
        show([place])


@app.command()
def fetch(
    job_id: _JobId,
    out: Annotated[Path, typer.Option(help="Directory for what is brought; may hold an earlier fetch.")],
    address: _Address = _DASHBOARD,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Also the newest intact checkpoint of every trial.")
    ] = False,
) -> None:
    """Bring a sweep's rows here from its storage, also while it runs; `results` and `report` take the directory."""
    from rllib_hpo.experiments import jobs
    from rllib_hpo.results import read_rows

    count = jobs.fetch(jobs.get_job(jobs.connect(address), job_id), out, checkpoints)
    rows = read_rows([out / "results"]).num_rows if (out / "results").exists() else 0
    more = f", {count} checkpoints" if checkpoints else ""
    console.print(f"{rows:,} rows{more}: {out}", highlight=False, soft_wrap=True)


@app.command()
def stop(job_id: _JobId, address: _Address = _DASHBOARD) -> None:
    """Stop a sweep on a cluster, after the checkpoints of its running trials; `submit --resume` goes on with it."""
    from rllib_hpo.experiments import jobs

    jobs.stop(jobs.connect(address), job_id)


@app.command()
def doctor(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Sweep files, or files of clusters, to look at too.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="The dashboard of a cluster to look at too.")] = None,
    shared: Annotated[
        str, typer.Option(metavar="DIR", help="With --address: a directory that all its nodes should share.")
    ] = "~/runs",
) -> None:
    """Say what is wrong with this installation, or with a cluster. Exit code 2 if anything is."""
    from rllib_hpo.experiments import doctor as checks

    found = 0
    for check in checks.all_checks(files or [], address, shared):
        found += check.state == "problem"
        console.print(checks.line(check), highlight=False, markup=False, soft_wrap=True)
    if found:
        raise UserError(f"{found} problem{'s' if found > 1 else ''}.")


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
    from rllib_hpo.experiments.trial_resources import describe, resources

    with console.status("timing the trials on this machine"):
        seconds = estimate.time_trials(grid)
    table = Table("trial", "steps", "asks for", "hours")
    for trial in grid.trials:
        request = describe(resources(trial.config))
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


def _print_outcome(files: Any, outcome: Any, storage: Any) -> None:
    console.print(f"result rows:    {files.results}", highlight=False, soft_wrap=True)
    counts = f"{len(outcome.done)} done, {len(outcome.failed)} failed, {len(outcome.unfinished)} unfinished"
    console.print(f"trials:         {counts}", highlight=False)
    if storage is not None:
        console.print(f"storage:        {storage.uri}", highlight=False, markup=False, soft_wrap=True)
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

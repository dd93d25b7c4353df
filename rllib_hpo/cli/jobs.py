"""Run sweeps and searches on a cluster: `rllib-hpo submit`, `status`, `fetch` and `stop`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from rllib_hpo.cli.console import console
from rllib_hpo.cli.options import import_all, pairs, path_option, trial_settings
from rllib_hpo.cli.results import show
from rllib_hpo.cli.sweeps import sweep
from rllib_hpo.cli.tuning import search_changes, tune
from rllib_hpo.errors import SettingsError

DASHBOARD = "http://127.0.0.1:8265"
"""Address of a cluster's dashboard through `ray dashboard CLUSTER.yaml` or an ssh tunnel."""

Address = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS",
        help="Address of the cluster's dashboard, through a tunnel to its head node.",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="Job id, as printed by `rllib-hpo submit`.")]


def submit(
    context: typer.Context,
    address: Address = DASHBOARD,
    attach: Annotated[
        str | None, typer.Option(metavar="ID", help="Follow a job that was submitted before.")
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Submit the job, print its id, and exit.")
    ] = False,
    pip: Annotated[
        bool,
        typer.Option(
            "--pip",
            help="Send this package along, and install its dependencies for the job in the versions of this "
            "machine. Without it, the package must be installed on the cluster's nodes, as it is in our "
            "images.",
        ),
    ] = False,
    search: Annotated[
        bool, typer.Option("--search", help="With --resume: what is resumed is a search, not a sweep.")
    ] = False,
) -> None:
    """Submit a sweep or a search to a Ray cluster as a job, and follow its log to the end; Ctrl-C leaves it running.

    Takes all options of `rllib-hpo sweep`, --storage, --out, --resume, --only, --seeds, --steps among them, and with a
    search file those of `rllib-hpo tune`; --out and --storage are paths on the cluster, and modules of --import beside
    the file are sent along. The token is read by Ray: RAY_AUTH_MODE=token and ~/.ray/auth_token or RAY_AUTH_TOKEN.

    Exit code 0 if all trials are done, 2 if one failed, 130 if it was stopped, or left by Ctrl-C.
    """
    from rllib_hpo.experiments.jobs import client as jobs

    if attach is None:
        request = sweep_request(context.args, pip, search)
        client = jobs.connect(address)
        attach = jobs.submit(client, request)
        console.print(f"job:            {attach}", soft_wrap=True)
        if no_wait:
            return
    elif context.args:
        raise SettingsError(
            f"--attach follows an existing job, so it cannot be combined with {' '.join(context.args)}."
        )
    else:
        client = jobs.connect(address)
    try:
        job = jobs.follow(client, attach, lambda text: print(text, end="", flush=True))  # noqa: T201
    except KeyboardInterrupt:
        again = f"rllib-hpo submit --attach {attach} --address {address}"
        console.print(f"\nDetached; the job keeps running. Follow it again with: {again}", soft_wrap=True)
        raise typer.Exit(130) from None
    raise typer.Exit(jobs.exit_code(job))


def sweep_request(words: list[str], pip: bool, search: bool = False) -> Any:
    """Validate a sweep or search on this machine, and make the request to submit.

    Args:
        words: Arguments and options of `rllib-hpo sweep`, or of `rllib-hpo tune` if they name a search file.
        pip: Whether to send this package along.
        search: Whether they resume a search.

    Raises:
        UserError: If part of it could not run on the cluster.
    """
    from rllib_hpo.experiments.config.search_config import is_search
    from rllib_hpo.experiments.jobs import request as job_request

    search = search or any(is_search(Path(word)) for word in words)
    command = _parser(tune if search else sweep)
    given = _given(command, words)
    for name in {
        "out",
        "storage",
        "resume",
    } & given.keys():  # paths on the cluster, whose home directory differs
        given[name] = _literal(words, f"--{name}")
    file, resume, imports = given.pop("file", None), given.get("resume"), given.get("imports") or ()
    storage, out = given.get("storage"), given.pop("out", None)
    if (file is None) == (resume is None):
        raise SettingsError(
            "Give either a sweep file or --resume with the path or URI of a sweep on the cluster."
        )
    if "dry_run" in given:
        raise SettingsError(
            "--dry-run cannot be submitted; `rllib-hpo sweep --dry-run` prints what would run."
        )
    job_request.check_paths(storage, out and str(out))
    job_request.check_paths(resume, None)
    source, name = None, (resume or "").partition("?")[0].rstrip("/").rpartition("/")[2]
    if file is not None:
        source = Path(file)
        sys.path.insert(0, str(source.parent.absolute()))
        import_all(list(imports))
        name = _validated_name(source, given, search)
    options = ([] if source is None else [source.name]) + _as_words(command, given)
    place = resume if resume and "://" in resume else ""
    if storage is not None:
        place = job_request.below(storage, name)
    elif resume and not place:
        out = resume
    return job_request.Request(
        name,
        tuple(options),
        job_request.shipped(source, imports),
        place,
        str(out or ""),
        resume is not None,
        pip,
        "tune" if search else "sweep",
    )


def _validated_name(source: Path, given: dict[str, Any], search: bool) -> str:
    """Validate a sweep or search file with the options given, and return its name."""
    from rllib_hpo.experiments.config.search_config import read_search
    from rllib_hpo.experiments.config.sweep_config import read_sweep
    from rllib_hpo.experiments.sweeps.seeds import group_seeds

    if search:
        return read_search(source, search_changes(given)).file.search
    grid = read_sweep(source, given.get("seeds"), trial_settings(given))
    if given.get("only"):
        grid = grid.only(**pairs(given["only"]))
    group_seeds(grid.configs, given.get("seeds_per_trial", 1))
    return grid.name


def _parser(command: Callable[..., None]) -> Any:
    """Return the parser of the command line of `rllib-hpo sweep` or `tune`."""
    alone = typer.Typer(add_completion=False)
    alone.command()(command)
    return typer.main.get_command(alone)


def _given(command: Any, words: list[str]) -> dict[str, Any]:
    """Return the parameters given in `words`, by name, without defaults."""
    parsed = command.make_context("rllib-hpo submit", list(words))
    return {
        option.name: parsed.params[option.name]
        for option in command.params
        if getattr(parsed.get_parameter_source(option.name), "name", "") == "COMMANDLINE"
    }


def _literal(words: list[str], option: str) -> str:
    """Return an option's value as written; the last one if it is repeated."""
    values = [word for before, word in itertools.pairwise(words) if before == option]
    joined = [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
    return [*values, *joined][-1]


def _as_words(command: Any, given: dict[str, Any]) -> list[str]:
    """Format options as words of a command line."""
    words: list[str] = []
    for option in command.params:
        value = given.get(option.name)
        for one in [] if value is None else value if isinstance(value, list | tuple) else [value]:
            words += [option.opts[0]] if option.is_flag else [option.opts[0], str(one)]
    return words


def status(
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Job id. Default: all jobs.")] = None,
    address: Address = DASHBOARD,
) -> None:
    """List the sweeps on a cluster, or show the state of one with its results so far."""
    from rllib_hpo.experiments.jobs import client as jobs
    from rllib_hpo.experiments.jobs import results as job_results

    client = jobs.connect(address)
    found = jobs.jobs(client) if job_id is None else [jobs.get_job(client, job_id)]
    table = Table("job", "state", "began", "results")
    for job in found:
        began = "" if job.started is None else f"{datetime.fromtimestamp(job.started):%Y-%m-%d %H:%M}"  # noqa: DTZ006
        table.add_row(job.job_id, job.state, began, job.storage or job.out)
    console.print(table)
    if job_id is None:
        return
    place = job_results.reachable_rows(found[0])
    if place is None:
        console.print(job_results.elsewhere(found[0]), soft_wrap=True)
    else:
        show([place])


def fetch(
    job_id: JobId,
    out: Annotated[Path, path_option(help="Directory for the results; may hold those of an earlier fetch.")],
    address: Address = DASHBOARD,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Also fetch the newest intact checkpoint of every trial.")
    ] = False,
) -> None:
    """Download a sweep's rows from its storage, also while it runs, for `results` and `report`."""
    from rllib_hpo.experiments.jobs import client as jobs
    from rllib_hpo.experiments.jobs import results as job_results
    from rllib_hpo.results import read_rows

    count = job_results.fetch(jobs.get_job(jobs.connect(address), job_id), out, checkpoints)
    rows = read_rows([out / "results"]).num_rows if (out / "results").exists() else 0
    more = f", {count} checkpoints" if checkpoints else ""
    console.print(f"{rows:,} rows{more}: {out}", soft_wrap=True)


def stop(job_id: JobId, address: Address = DASHBOARD) -> None:
    """Stop a sweep on a cluster, after the checkpoints of its running trials; `submit --resume` continues it."""
    from rllib_hpo.experiments.jobs import client as jobs

    jobs.stop(jobs.connect(address), job_id)

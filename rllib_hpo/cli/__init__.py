"""Run the command line: one command per verb.

Errors that the user can fix end in one sentence and exit code 2. Any other error is internal: exit code 1, with its
traceback in a file.

This module lists the commands, in the order of `rllib-hpo --help`; each is a function of the module named
after its subject. Commands import what they need when they run, so that `--help` does not wait for Ray and torch.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from rich.logging import RichHandler

import rllib_hpo
from rllib_hpo.cli import failures
from rllib_hpo.cli.cluster import check_cluster, doctor, init_cluster
from rllib_hpo.cli.console import errors
from rllib_hpo.cli.jobs import fetch, status, stop, submit
from rllib_hpo.cli.listings import settings, tasks
from rllib_hpo.cli.policies import convert, enjoy, evaluate, export, gap, policy_shape, trajectories, zoo
from rllib_hpo.cli.results import add, check, compact, report, show
from rllib_hpo.cli.runs import train
from rllib_hpo.cli.sweeps import dashboard, sweep, sweeps
from rllib_hpo.cli.tuning import tune
from rllib_hpo.errors import UserCodeError, UserError
from rllib_hpo.experiments.process.standard_streams import make_streams_safe

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Train, sweep and compare maximum-entropy algorithms with expressive policies on Ray RLlib.",
    epilog="Start with: `rllib-hpo train --algorithm sac-hpo --task hopper --steps 30000 --out runs/first`",
)
app.command()(train)
app.command()(sweep)
app.command()(sweeps)
app.command()(tune)
app.command()(dashboard)
app.command()(evaluate)
app.command()(enjoy)
app.command()(zoo)
app.command()(export)
app.command()(convert)
app.command()(policy_shape)
app.command()(gap)
app.command()(trajectories)
app.command()(report)
app.command(
    # Pass the options of `sweep` and `tune` to `submit` unparsed.
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    options_metavar="FILE.yaml [OPTIONS] [OPTIONS OF rllib-hpo sweep OR tune]",
)(submit)
app.command()(status)
app.command()(fetch)
app.command()(stop)
app.command()(doctor)
app.command()(tasks)
app.command()(settings)

results_app = typer.Typer(no_args_is_help=True, help="Show, check and maintain evaluation rows.")
results_app.command()(show)
results_app.command()(compact)
results_app.command()(add)
results_app.command()(check)
app.add_typer(results_app, name="results")

cluster_app = typer.Typer(no_args_is_help=True, help="Write and check the cluster files of sweeps.")
cluster_app.command("init")(init_cluster)
cluster_app.command("check")(check_cluster)
app.add_typer(cluster_app, name="cluster")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"rllib-hpo {rllib_hpo.__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version, and stop."
        ),
    ] = False,
) -> None:
    """Take the options that stand before any command."""


def main() -> None:
    """Run `rllib-hpo`; this is its entry point."""
    make_streams_safe()
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_time=False, show_path=False)],
    )
    # matplotlib warns on a new machine that it builds its font cache.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        app()
    except UserError as error:
        errors.print(f"Error: {error}", style="red", soft_wrap=True)
        if isinstance(error, UserCodeError) and error.traceback:
            errors.print(error.traceback.rstrip(), soft_wrap=True)
        sys.exit(2)
    except Exception as error:  # noqa: BLE001  (the last net)
        sys.exit(failures.report(error))

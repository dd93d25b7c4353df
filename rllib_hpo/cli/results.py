"""Process evaluation rows: `rllib-hpo report`, and `rllib-hpo results show`, `compact`, `add` and `check`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from rllib_hpo.cli.console import console
from rllib_hpo.cli.options import path_argument, path_option
from rllib_hpo.errors import UserError
from rllib_hpo.results.paths import absolute_or_uri

Directories = Annotated[
    list[str],
    typer.Argument(
        parser=absolute_or_uri,
        help="Directories of runs, sweeps or result rows, or storage URIs of sweeps.",
    ),
]


def report(
    directories: Directories,
    out: Annotated[Path, path_option(help="Directory of the report.")] = Path("report"),
    title: Annotated[str, typer.Option(help="Title of the page. Default: the names of the sweeps.")] = "",
    gap: Annotated[
        Path | None,
        path_option(help="Folder that `rllib-hpo gap` wrote, to show the amortization gap with the returns."),
    ] = None,
) -> None:
    """Make a report from evaluation rows: a page (index.html, opens from disk), figures, and tables for papers."""
    from rllib_hpo.analysis.gap_tables import read_gap
    from rllib_hpo.analysis.report import write_report

    written = write_report(_rows(directories), out, title, None if gap is None else read_gap(gap))
    for what, path in written.items():
        console.print(f"{what + ':':<16}{path}", soft_wrap=True)


def show(
    directories: Directories,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Print all tables of a report: intervals, comparisons, steps to a return."
        ),
    ] = False,
) -> None:
    """Print the results so far; also while a sweep is running."""
    from rllib_hpo.analysis.report import tables_of
    from rllib_hpo.analysis.runs import runs_of
    from rllib_hpo.analysis.searches import search_tables
    from rllib_hpo.analysis.tables import progress_table

    rows = _rows(directories)
    runs = runs_of(rows)
    progress = [progress_table(runs)] if runs else []
    for table in [*progress, *(tables_of(rows, runs) if full else search_tables(rows))]:
        shown = Table(
            *(Column(name, justify="left" if i == 0 else "right") for i, name in enumerate(table.columns))
        )
        for row in table.rows:
            shown.add_row(*row)
        console.print(f"\n{table.title}. {table.note}", soft_wrap=True)
        console.print(shown)


def compact(
    directory: Annotated[Path, path_argument(help="Directory of rows, also of a running sweep.")],
) -> None:
    """Merge row files into one per algorithm and task, without losing a row."""
    from rllib_hpo.results import compact as merge

    before, after = merge(directory)
    console.print(f"Merged {before:,} row files into {after:,}.")


def add(
    directory: Annotated[
        Path, path_argument(help="Directory to copy rows to, such as the results of a sweep.")
    ],
    sources: Annotated[
        list[Path], path_argument(help="Directories to copy rows from, such as sweeps of other machines.")
    ],
) -> None:
    """Join sweeps of several machines by copying rows that are missing."""
    from rllib_hpo.results import add as copy

    for source in sources:
        console.print(f"{copy(directory, source):,} new rows from {source}", soft_wrap=True)


def check(directories: Directories) -> None:
    """Report missing, duplicate, non-finite or mixed-up evaluations. Exit code 2 if there are any."""
    from rllib_hpo.results import check as find_problems

    rows = _rows(directories)
    problems = find_problems(rows)
    for problem in problems:
        console.print(f"{problem.kind}: {problem.what}", soft_wrap=True)
    if problems:
        raise UserError(f"{len(problems)} problems in {rows.num_rows:,} rows.")
    console.print(f"{rows.num_rows:,} rows; none is missing, duplicate or non-finite.")


def _rows(directories: list[str]) -> Any:
    from rllib_hpo.results import read_rows

    with tempfile.TemporaryDirectory() as downloaded:
        roots = []
        for number, directory in enumerate(directories):
            if Path(directory).exists():
                roots.append(Path(directory))
            elif "://" in directory:
                from rllib_hpo.experiments.storage.folder import Storage, rows_from

                roots.append(Path(downloaded) / str(number))
                rows_from(Storage.open(directory), roots[-1])
            else:
                raise UserError(f"{directory} does not exist.")
        rows = read_rows(roots)
    if not rows.num_rows:
        raise UserError(f"There are no evaluation rows in {', '.join(map(str, directories))}.")
    return rows

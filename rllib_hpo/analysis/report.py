"""A report of rows: one page that works from disk, figures, and tables for papers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from matplotlib import rc_context
from matplotlib.figure import Figure

from rllib_hpo.analysis.costs import cost_figure, cost_table
from rllib_hpo.analysis.curves import learning_curve_figure
from rllib_hpo.analysis.figures import (
    displacement_figure,
    improvement_figure,
    interval_figure,
    profile_figure,
    to_bytes,
)
from rllib_hpo.analysis.gap_tables import gap_figure, gap_over_training_figure, gap_table
from rllib_hpo.analysis.outcomes import outcomes_table, success_figure, threshold_figure
from rllib_hpo.analysis.page import write_page
from rllib_hpo.analysis.parameters import parameters_table
from rllib_hpo.analysis.runs import Run, clock, runs_of, series_of, tasks_of
from rllib_hpo.analysis.search_figures import search_figures
from rllib_hpo.analysis.searches import problems_table, search_tables, searches_in
from rllib_hpo.analysis.tables import Table, all_tables, differences_table, final, normalised, scores_of
from rllib_hpo.errors import UserError
from rllib_hpo.results.atomic import write_atomically
from rllib_hpo.results.configurations import cells_in

EVALUATIONS = "evaluations.csv"
"""File of all evaluations, beside the page."""
_ROWS = f"rows ({EVALUATIONS})"
_PLOTLY_DASHES = {"dashed": "dash", "dotted": "dot"}
SEED = 0
"""Seed of the bootstrap, so that the same rows give the same report."""


def write_report(
    table: pa.Table, out: Path, title: str = "", gaps: pa.Table | None = None
) -> dict[str, Path]:
    """Writes index.html, figures (PDF, PNG), tables (CSV, Markdown, LaTeX) and the evaluations as CSV.

    A search for settings is shown trial by trial, apart from the comparisons; what `results check` finds is shown too.

    Args:
        table: Rows as `read_rows` gives them.
        out: Directory, made where missing.
        title: Of the page; the names of the sweeps, unless given.
        gaps: Rows of `rllib-hpo gap`, to be shown with the rest.

    Returns:
        What was written, by what it is.

    Raises:
        UserError: If there are no rows.
        StorageError: If a file cannot be written.
    """
    if not table.num_rows:
        raise UserError("There are no evaluation rows to report on.")
    runs = runs_of(table)
    tables = [*tables_of(table, runs), *([] if gaps is None else [gap_table(gaps)])]
    with rc_context({"text.parse_math": False}):  # a label is text, also with a dollar sign
        figures = {**_figures(table, runs), **({} if gaps is None else _figures_of_gaps(gaps))}
    images = {name: to_bytes(figure, "svg") for name, (figure, _) in figures.items()}
    for name, (figure, _) in figures.items():
        for kind in ("pdf", "png"):
            write_atomically(out / "figures" / f"{name}.{kind}", to_bytes(figure, kind))
    differences = differences_table(runs)
    for one in (*tables, differences):
        write_atomically(out / "tables" / f"{one.name}.csv", one.to_csv().encode())
        write_atomically(out / "tables" / f"{one.name}.tex", one.to_latex().encode())
    markdown = "\n".join(one.to_markdown() for one in (*tables, differences))
    data = page_data(table, runs, tables, differences, title)
    data["figures"] = [
        {"title": caption, "note": "", "svg": images[name].decode()}
        for name, (_, caption) in figures.items()
        if name != "curves"
    ]
    return {
        "page": write_page(data, out / "index.html"),
        "figures": out / "figures",
        "tables": write_atomically(out / "tables.md", markdown.encode()).parent / "tables.md",
        "evaluations": write_atomically(out / EVALUATIONS, _evaluations(table)),
    }


def tables_of(table: pa.Table, runs: Sequence[Run]) -> list[Table]:
    """Every table of a report: problems of the rows, comparisons of `runs`, and searches trial by trial."""
    problems, parameters = problems_table(table), parameters_table(runs)
    compared = all_tables(runs, np.random.default_rng(SEED)) if runs else []
    costs, outcomes = cost_table(runs), outcomes_table(runs)
    about = [
        *filter(None, [costs]),
        *compared,
        *filter(None, [outcomes, parameters]),
        *search_tables(table),
    ]
    return [*([problems] if problems else []), *about]


def page_data(
    table: pa.Table, runs: Sequence[Run], tables: Sequence[Table], differences: Table, title: str = ""
) -> dict[str, Any]:
    """The data of `write_page`, without figures."""
    series, tasks = series_of(runs), tasks_of(runs)
    labels = [one.label for one in series]
    first = {run.label: run for run in reversed(runs)}
    return {
        "title": title or ", ".join(sorted({run.sweep for run in runs})),
        "subtitle": _subtitle(table, runs),
        "clock": clock(runs),
        "tasks": [task._asdict() for task in tasks],
        "series": [
            {
                **one._asdict(),
                "dash": _PLOTLY_DASHES.get(one.dash, one.dash),
                "algorithm": first[one.label].algorithm,
                "variant": first[one.label].variant,
                "sweep": first[one.label].sweep,
            }
            for one in series
        ],
        "runs": [
            {
                "task": tasks.index(run.task),
                "series": labels.index(run.label),
                "seed": run.seed,
                "trial_id": run.trial_id,
                "config": run.config_hash,
                "steps": run.steps.tolist(),
                "scheduled": run.scheduled.tolist(),
                **{name: values.tolist() for name, values in run.numbers.items()},
                "diagnostics": {
                    name: values.tolist() for name, values in {**run.costs, **run.diagnostics}.items()
                },
            }
            for run in runs
        ],
        "tables": [
            {
                "title": one.title,
                "note": one.note,
                "columns": one.columns,
                "rows": one.rows,
                "sources": _sources(one.name),
            }
            for one in tables
        ],
        "figures": [],
        "differences": {
            "columns": differences.columns,
            "rows": differences.rows,
            "sources": _sources(differences.name),
            "searches": sum(cell.is_search for cell in cells_in(table).values()),
        },
        "sources": {_ROWS: EVALUATIONS},
        "configs": {run.config_hash: dict(run.config) for run in runs},
    }


def _sources(name: str) -> dict[str, str]:
    """The files beside the page that have a table's rows and the table, by what they are."""
    return {_ROWS: EVALUATIONS, "table (CSV)": f"tables/{name}.csv", "table (LaTeX)": f"tables/{name}.tex"}


def _subtitle(table: pa.Table, runs: Sequence[Run]) -> str:
    commits = sorted({commit[:12] or "unknown" for commit in table["git_commit"].unique().to_pylist()})
    devices = sorted(set(table["device"].unique().to_pylist()))
    versions = json.loads(table["versions"][table.num_rows - 1].as_py())
    named = ", ".join(f"{name} {versions[name]}" for name in ("ray", "torch", "mujoco") if name in versions)
    return (
        f"{table.num_rows:,} evaluations of {_counted(table, runs)}; commit {', '.join(commits)}; "
        f"trained on {', '.join(devices)}; {named}"
    )


def _counted(table: pa.Table, runs: Sequence[Run]) -> str:
    """Number of compared runs, and of trials of searches, which are not compared."""
    searched = sum(cell.num_trials for cell in cells_in(table).values() if cell.is_search)
    return f"{len(runs)} runs" + (f" and {searched} trials of searches" if searched else "")


def _figures(table: pa.Table, runs: Sequence[Run]) -> dict[str, tuple[Figure, str]]:
    """Figures with captions; those over all tasks only if scores can be normalised."""
    searches = search_figures(searches_in(table))
    return {**(_figures_of_runs(table, runs) if runs else {}), **searches}


def _figures_of_gaps(gaps: pa.Table) -> dict[str, tuple[Figure, str]]:
    over_training = gap_over_training_figure(gaps)
    return {
        **(
            {}
            if over_training is None
            else {"gap-training": (over_training, "Amortization gap over training")}
        ),
        "gap": (gap_figure(gaps), "Amortization gap, stage by stage"),
    }


def _figures_of_runs(table: pa.Table, runs: Sequence[Run]) -> dict[str, tuple[Figure, str]]:
    figures = {"curves": (learning_curve_figure(table), "Learning curves")}
    costs = cost_figure(runs)
    if costs is not None:
        figures["costs"] = costs, "Returns and costs; dashed: the limit"
    success = success_figure(runs, np.random.default_rng(SEED))
    if success is not None:
        figures["success"] = success, "Success rates"
    displacement = displacement_figure(runs)
    if displacement is not None:
        figures["displacement"] = displacement, "How far the leapfrog moves actions: drift and noise"
    threshold = threshold_figure(runs)
    if threshold is not None:
        figures["thresholds"] = threshold, "How far each run has come in training"
    finals, series = scores_of(runs, final), series_of(runs)
    scaled = normalised(finals, finals)
    if scaled is None:
        return figures
    makers: dict[str, tuple[Callable[..., Figure], str]] = {
        "intervals": (interval_figure, "Final returns over all tasks"),
        "profiles": (profile_figure, "Performance profiles"),
    }
    if len(series) > 1:
        makers["improvement"] = (improvement_figure, "Probability of improvement")
    for name, (make, caption) in makers.items():
        figures[name] = make(scaled, series, np.random.default_rng(SEED)), caption
    return figures


def _evaluations(table: pa.Table) -> bytes:
    """Every evaluation as a line of CSV, with its numbers and words only."""
    names = [
        name
        for name in table.column_names
        if name not in ("returns", "costs", "diagnostics", "config_json", "versions")
    ]
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table.select(names), sink)
    return sink.getvalue().to_pybytes()

"""Tables of searches for settings, trial by trial, and of problems in the rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from rllib_hpo.analysis.runs import label_of
from rllib_hpo.analysis.tables import NOTHING, Table
from rllib_hpo.results import Problem, check
from rllib_hpo.results.configurations import Cell, CellKey, cells_in, exactly, filled, shown_values
from rllib_hpo.results.schema import EvaluationRow, excess_cost, limited_cost, rows_from_arrow


class SearchRows(NamedTuple):
    """The rows of one search."""

    key: CellKey
    cell: Cell
    trials: dict[str, list[EvaluationRow]]
    """Rows by trial, in the order of steps."""
    configs: dict[str, dict[str, Any]]
    """Configurations by hash, complete."""

    def excess(self, row: EvaluationRow) -> float | None:
        """By how much the cost of an evaluation exceeds its limit, 0 within it; None if the task has no limit."""
        if row.cost_limit is None:
            return None
        return excess_cost(getattr(row, limited_cost(self.configs[row.config_hash])), row.cost_limit)

    @property
    def title(self) -> str:
        """Algorithm, variant and sweep, and the task."""
        return f"{label_of(self.key.algorithm, self.key.variant, self.key.sweep)} on {self.key.task}"


def searches_in(table: pa.Table) -> list[SearchRows]:
    """The searches in a table of `read_rows`, in the order of their keys."""
    searches = {key: cell for key, cell in cells_in(table).items() if cell.is_search}
    if not searches:
        return []
    trials: dict[CellKey, dict[str, list[EvaluationRow]]] = {key: defaultdict(list) for key in searches}
    for row in rows_from_arrow(table):
        key = CellKey(row.sweep, row.task, row.env_id, row.algorithm, row.variant)
        if key in searches:
            trials[key][row.trial_id].append(row)
    return [_search(key, searches[key], trials[key]) for key in sorted(searches)]


def _search(key: CellKey, cell: Cell, trials: Mapping[str, Sequence[EvaluationRow]]) -> SearchRows:
    ordered = {trial: sorted(rows, key=lambda row: row.env_steps) for trial, rows in trials.items()}
    configs = {row.config_hash: row.config_json for rows in ordered.values() for row in rows}
    return SearchRows(
        key, cell, ordered, {hash_: filled(json.loads(text)) for hash_, text in configs.items()}
    )


def search_tables(table: pa.Table) -> list[Table]:
    """A table of trials for each search in a table of `read_rows`, best return first, within a limit on costs first.

    Nothing is averaged: the trials of a search differ in more than their seeds, so they are no seeds of one another.
    """
    return [_search_table(number, search) for number, search in enumerate(searches_in(table), start=1)]


def _search_table(number: int, search: SearchRows) -> Table:
    cell, configs = search.cell, search.configs
    shown = {name: shown_values(config.get(name) for config in configs.values()) for name in cell.differing}
    rows = []
    excesses = {trial: search.excess(own[-1]) for trial, own in search.trials.items()}
    has_limit = any(excess is not None for excess in excesses.values())

    def rank(trial: str) -> tuple[float, float]:
        excess = excesses[trial] or 0.0
        return -excess, 0.0 if excess else search.trials[trial][-1].return_mean

    for trial in sorted(search.trials, key=rank, reverse=True):
        own = search.trials[trial]
        settings = [
            _course([shown[name][exactly(configs[row.config_hash].get(name))] for row in own])
            for name in cell.differing
        ]
        best = max(row.return_mean for row in own)
        last = own[-1]
        over = [_shown(excesses[trial])] if has_limit else []
        rows.append(
            [trial, *settings, f"{last.env_steps:,}", f"{last.return_mean:,.1f}", *over, f"{best:,.1f}"]
        )
    note = (
        f"This is {cell.refusal}. No mean is taken over its trials, and it is left out of every comparison."
        + (" Trials within the limit on costs come first." if has_limit else "")
    )
    over = ["cost over its limit"] if has_limit else []
    columns = ["trial", *cell.differing, "steps", "latest", *over, "best"]
    return Table(f"search-{number}", f"Search: {search.title}", note, columns, rows)


def _shown(excess: float | None) -> str:
    return f"{excess:,.4g}" if excess else NOTHING


def _course(values: Sequence[str]) -> str:
    """A setting's values in the order of steps, each change once: "0.05, then 0.06"."""
    changes = [value for i, value in enumerate(values) if i == 0 or value != values[i - 1]]
    return ", then ".join(changes)


def problems_table(table: pa.Table) -> Table | None:
    """Table of the findings of `rllib-hpo results check`; None if there are none."""
    problems: list[Problem] = check(table)
    if not problems:
        return None
    note = "Findings of `rllib-hpo results check` in these rows."
    return Table("check", "Problems in the rows", note, ["kind", "what"], [list(one) for one in problems])

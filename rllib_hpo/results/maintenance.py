"""Maintain a dataset of rows: merge its files, join datasets, find problems."""

from __future__ import annotations

import io
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rllib_hpo.errors import StorageError
from rllib_hpo.results.atomic import write_atomically
from rllib_hpo.results.configurations import Cell, CellKey, cells_in
from rllib_hpo.results.reader import COMPACTED, is_single_row, read_files, row_files
from rllib_hpo.results.schema import EvaluationRow, rows_from_arrow
from rllib_hpo.results.writer import file_table, row_path, trial_path, write_row


def compact(root: Path) -> tuple[int, int]:
    """Merge the files of every task folder at or below `root` into one; readers and writers may continue.

    The merged file appears whole before the others go, and a row that is written again meanwhile stays. One
    process compacts at a time.

    Returns:
        Numbers of files before and after.

    Raises:
        StorageError: a file is damaged or could not be written; no row is lost.
    """
    folders: dict[Path, list[Path]] = defaultdict(list)
    for file in map(Path, row_files([root])):
        folders[file.parent].append(file)
    for folder, files in folders.items():
        if len(files) > 1:
            _merge(files, folder / COMPACTED)
    return sum(map(len, folders.values())), len(folders)


def merge_trial(root: Path, sweep: str, algorithm: str, task: str, trial_id: str) -> None:
    """Merge the rows of one trial into one file, so that many complete trials are read fast.

    Only the trial's own process may do so.

    Raises:
        StorageError: a file is damaged or could not be written; no row is lost.
    """
    path = trial_path(root, sweep, algorithm, task, trial_id)
    singles = [file for file in path.parent.glob(f"{path.stem}-*.parquet") if is_single_row(file, path.stem)]
    files = [*singles, *([path] if path.exists() else [])]
    if len(files) > 1:
        _merge([Path(file) for file in row_files(files)], path)


def _merge(files: list[Path], target: Path) -> None:
    """Merge `files`, in the order of `row_files`, into `target`; do nothing if another process merges them too."""
    written = {file: _modified(file) for file in files}
    try:
        rows = read_files([str(file) for file in files])
    except StorageError:
        if all(file.exists() for file in files):
            raise
        return
    table = file_table(rows)
    if table is None:  # somebody put rows of other folders beside them
        return
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomically(target, buffer.getvalue())
    for file, modified in written.items():
        # A row that was replaced since it was read is the newer one.
        if file != target and _modified(file) == modified:
            file.unlink(missing_ok=True)


def _modified(file: Path) -> int | None:
    """Time of a file's last change in nanoseconds; None if it does not exist."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def add(root: Path, source: Path) -> int:
    """Copy new rows at or below `source`, for instance of another machine, to `root`.

    Returns:
        How many those were.

    Raises:
        StorageError: rows cannot be read or written.
    """
    theirs = rows_from_arrow(read_files(row_files([source])))
    if not theirs:
        raise StorageError(f"There are no evaluation rows in {source}.")
    ours = {row_path(root, row) for row in rows_from_arrow(read_files(row_files([root])))}
    new = [row for row in theirs if row_path(root, row) not in ours]
    for row in new:
        write_row(root, row)
    return len(new)


class Problem(NamedTuple):
    """A problem of a dataset that affects its tables."""

    kind: str
    """"missing", "duplicate", "not finite" or "mixed"."""
    what: str


def check(table: pa.Table) -> list[Problem]:
    """Find missing, duplicate, non-finite and mixed rows in a table of `read_rows`.

    A run's evaluations are due at 0 and every `evaluation_every` steps up to the furthest of its cell (sweep, task,
    algorithm, variant); a cell's seeds are those of its sweep. The trials of a search end where it ends them and have
    seeds of their own, so nothing of it is missing.
    """
    cells = cells_in(table)
    searches = {(key.sweep, key.task, key.algorithm, key.variant) for key in cells if cells[key].is_search}
    runs: dict[tuple[Any, ...], list[EvaluationRow]] = defaultdict(list)
    trials: dict[tuple[Any, ...], list[EvaluationRow]] = defaultdict(list)
    for row in rows_from_arrow(table):
        cell = (row.sweep, row.task, row.algorithm, row.variant)
        if cell in searches:
            trials[(*cell, row.trial_id)].append(row)
        else:
            runs[(*cell, row.seed)].append(row)
    problems = [*_missing_seeds(runs), *_mixed_origins({**runs, **trials}), *_mixed_configurations(cells)]
    for searched, rows in trials.items():
        problems.extend(_of_rows(f"{_named(searched[:-1])}, trial {searched[-1]}", rows))
    furthest: dict[tuple[Any, ...], int] = defaultdict(int)
    for cell, rows in runs.items():
        furthest[cell[:-1]] = max(furthest[cell[:-1]], *(row.env_steps for row in rows))
    for cell, rows in runs.items():
        problems.extend(_of_run(_named(cell), rows, furthest[cell[:-1]]))
    return problems


def _named(cell: tuple[Any, ...]) -> str:
    sweep, task, algorithm, variant, *seed = cell
    name = f"{sweep}: {algorithm}{'' if variant == 'default' else f' ({variant})'} on {task}"
    return f"{name}, seed {seed[0]}" if seed else name


def _of_rows(name: str, rows: list[EvaluationRow]) -> Iterator[Problem]:
    """Problems of single evaluations."""
    by_step: dict[int, list[EvaluationRow]] = defaultdict(list)
    for row in rows:
        by_step[row.env_steps].append(row)
        if not all(map(math.isfinite, (row.return_mean, *row.returns))):
            yield Problem("not finite", f"{name} at {row.env_steps:,} steps: the return is {row.return_mean}")
    doubled = [step for step, same in by_step.items() if len(same) > 1]
    if doubled:
        trials = sorted({row.trial_id for row in by_step[doubled[0]]})
        yield Problem(
            "duplicate",
            f"{name}: {len(doubled)} evaluations occur more than once, from trials {', '.join(trials)}",
        )


def _of_run(name: str, rows: list[EvaluationRow], furthest: int) -> Iterator[Problem]:
    yield from _of_rows(name, rows)
    by_step = {row.env_steps for row in rows}
    every = _evaluation_every(rows[0])
    absent = [step for step in range(0, furthest + 1, every) if step not in by_step] if every else []
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        yield Problem("missing", f"{name}: no evaluation at {absent[0]:,} steps{more}")


def _evaluation_every(row: EvaluationRow) -> int:
    every = json.loads(row.config_json).get("evaluation_every")
    return every if isinstance(every, int) and every > 0 else 0


def _missing_seeds(runs: Mapping[tuple[Any, ...], list[EvaluationRow]]) -> Iterator[Problem]:
    """Seeds of a sweep that a cell lacks."""
    seeds: dict[str, set[int]] = defaultdict(set)
    of_cell: dict[tuple[Any, ...], set[int]] = defaultdict(set)
    for *cell, seed in runs:
        seeds[cell[0]].add(seed)
        of_cell[tuple(cell)].add(seed)
    for cell_key, own in of_cell.items():
        if absent := sorted(seeds[cell_key[0]] - own):
            yield Problem("missing", f"{_named(cell_key)}: no rows of seed {', '.join(map(str, absent))}")


def _mixed_origins(runs: Mapping[tuple[Any, ...], list[EvaluationRow]]) -> Iterator[Problem]:
    """Environments or commits that differ within a mean."""
    for (sweep, task), rows in _grouped(runs, 2).items():
        ids = sorted({row.env_id for row in rows})
        if len(ids) > 1:
            yield Problem("mixed", f"{sweep}: task {task} refers to several environments: {', '.join(ids)}")
    for (sweep,), rows in _grouped(runs, 1).items():
        commits = sorted({row.git_commit[:12] or "unknown" for row in rows})
        if len(commits) > 1:
            yield Problem("mixed", f"{sweep}: rows from several commits: {', '.join(commits)}")


def _mixed_configurations(cells: Mapping[CellKey, Cell]) -> Iterator[Problem]:
    """Cells with several configurations, which reports do not average."""
    for key, cell in cells.items():
        name = _named((key.sweep, key.task, key.algorithm, key.variant))
        for trial, names in cell.changing.items():
            what = f"rows of several configurations: {', '.join(names)} changed during the run"
            yield Problem("mixed", f"{name}, trial {trial}: {what}")
        if cell.is_search:
            yield Problem("mixed", f"{name}: {cell.refusal}")
        elif cell.differing:
            yield Problem("mixed", f"{name}: seeds differ in {', '.join(cell.differing)}")


def _grouped(
    runs: Mapping[tuple[Any, ...], list[EvaluationRow]], num_keys: int
) -> dict[tuple[Any, ...], list[EvaluationRow]]:
    groups: dict[tuple[Any, ...], list[EvaluationRow]] = defaultdict(list)
    for cell, rows in runs.items():
        groups[cell[:num_keys]].extend(rows)
    return groups

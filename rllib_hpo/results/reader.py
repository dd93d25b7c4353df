"""Read evaluation rows of one run, a sweep, or many roots."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from rllib_hpo.documents import parse_json
from rllib_hpo.errors import StorageError
from rllib_hpo.results.schema import SCHEMA, SCHEMA_VERSION, EvaluationRow, config_hash
from rllib_hpo.results.writer import PARTITIONS, partitions_of

SORT_COLUMNS = ("sweep", "algorithm", "variant", "task", "seed", "env_steps", "trial_id")
KEY = ("sweep", "algorithm", "task", "trial_id", "env_steps")
"""Columns that identify a row, as does the path of its file."""
COMPACTED = "compacted.parquet"
"""The file of a task folder that `compact` merges the others into."""
_FILE_NAME = "__filename"
"""Arrow's name for the file that a row is read from."""
_SINGLE_ROW = re.compile(r"-\d{10}\.parquet$")
_LONGEST_REASON = 300
_ATTEMPTS = 50
"""Attempts to read rows that are compacted meanwhile; damage to existing files is reported at once."""


def read_rows(roots: str | Path | Iterable[str | Path]) -> pa.Table:
    """All evaluation rows at or below `roots` as one table of `SCHEMA`, sorted by `SORT_COLUMNS`.

    A root may be a folder that `write_row` was given, any folder above or below it, or one row's file.
    Temporary files are ignored; where there are no rows the table is empty. A row that stands in several
    places (a copy of a sweep, a file that was just compacted) counts once.

    Raises:
        StorageError: a file is damaged, unreadable, or from a newer version of this package; it is named.
    """
    if isinstance(roots, (str, Path)):
        roots = [roots]
    paths = [Path(root) for root in roots]
    for attempt in range(_ATTEMPTS):
        files = row_files(paths)
        try:
            return read_files(files)
        except StorageError:
            # Somebody compacted the rows while they were read: they stand elsewhere now.
            if attempt == _ATTEMPTS - 1 or all(Path(file).exists() for file in files):
                raise
    raise AssertionError("unreachable")


def read_files(files: list[str]) -> pa.Table:
    """Read rows of `files` as `read_rows` does; of rows with one key keep the one in the last file."""
    if not files:
        return SCHEMA.empty_table()
    try:
        table = _read(files)
        _check_values(table)
    except Exception as error:  # damaged files make Arrow raise many kinds
        raise _damage(files, str(error)) from error
    newest = pc.max(table["schema_version"]).as_py()
    if newest > SCHEMA_VERSION:
        raise StorageError(
            f"The results hold rows of schema version {newest}, but this rllib_hpo reads up to "
            f"{SCHEMA_VERSION}; install the version that wrote them, or a newer one."
        )
    return _unique(table).sort_by([(name, "ascending") for name in SORT_COLUMNS])


def row_files(roots: Iterable[Path]) -> list[str]:
    """Files of rows at or below `roots`; merged ones first, since files beside them are newer."""
    files = {os.path.realpath(path) for root in roots for path in _row_files(root)}
    return sorted(
        files, key=lambda file: (_SINGLE_ROW.search(file) is not None, not file.endswith(COMPACTED), file)
    )


def is_single_row(file: Path, trial: str) -> bool:
    """Whether a file holds one row of the trial with this encoded id."""
    return _SINGLE_ROW.sub("", file.name) == trial


def row_config(row: EvaluationRow | Mapping[str, Any]) -> dict[str, Any]:
    """The resolved configuration a row was measured with, checked against its hash.

    Raises:
        StorageError: the stored configuration and its hash disagree.
    """
    stored = row if isinstance(row, Mapping) else vars(row)
    config = parse_json(stored["config_json"], f"The configuration of row {stored['trial_id']}")
    if config_hash(config) != stored["config_hash"]:
        raise StorageError(
            f"The configuration of row {stored['trial_id']} at {stored['env_steps']} steps was modified: its hash "
            f"is {config_hash(config)}, not {stored['config_hash']}."
        )
    return config


def _row_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    # Only what stands in a task folder is a row; a run directory may hold Parquet files of other kinds.
    return [
        path
        for path in root.rglob("*.parquet")
        if path.parent.name.startswith("task=") and not path.name.startswith(".") and not _is_special(path)
    ]


def _is_special(path: Path) -> bool:
    """Whether it is a folder or a pipe, which would block a reader."""
    return path.exists() and not path.is_file()


def _read(files: list[str]) -> pa.Table:
    names = [*SCHEMA.names, _FILE_NAME]
    table = ds.dataset(files, schema=SCHEMA, format="parquet").to_table(columns=names)
    return _upgraded(_with_partitions(table))


def _with_partitions(table: pa.Table) -> pa.Table:
    """Add the columns that a file's folders name, if it lacks them."""
    if any(table[name].null_count for name in PARTITIONS):
        encoded = pc.dictionary_encode(table[_FILE_NAME]).combine_chunks()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = pa.concat_arrays(encoded.chunks)
        of_file = [partitions_of(file) for file in encoded.dictionary.to_pylist()]
        for i, name in enumerate(PARTITIONS):
            values = pa.array([found[i] for found in of_file], pa.string()).take(encoded.indices)
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, pc.coalesce(table[name], values))
    return pa.Table.from_arrays([table[name] for name in SCHEMA.names], schema=SCHEMA)


def _check_values(table: pa.Table) -> None:
    """Raise a ValueError if a column holds values that no evaluation writes."""
    missing = [field.name for field in SCHEMA if not field.nullable and table[field.name].null_count]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    table.validate(full=True)  # lengths, and text that is UTF-8
    if table.num_rows == 0:
        return
    if pc.min(table["env_steps"]).as_py() < 0:
        raise ValueError("env_steps is below 0")
    if pc.list_flatten(table["returns"]).null_count:
        raise ValueError("a return is missing")
    for name in ("sweep", "algorithm", "task", "trial_id"):  # these name folders and files
        if pc.min(pc.binary_length(table[name])).as_py() == 0:
            raise ValueError(f"{name} is empty")
    for name in ("config_json", "versions"):
        for text in pc.unique(table[name]).to_pylist():
            parse_json(text, name)


def _upgraded(table: pa.Table) -> pa.Table:
    """Add empty diagnostics to rows of version 1."""
    place = SCHEMA.get_field_index("diagnostics")
    missing = pc.is_null(table.column(place))
    if not pc.any(missing).as_py() or pc.any(pc.greater(table["schema_version"].filter(missing), 1)).as_py():
        return table
    maps = table.column(place).combine_chunks()
    if isinstance(maps, pa.ChunkedArray):  # whose type says so even where there is one chunk
        maps = pa.concat_arrays(maps.chunks)
    filled = pa.MapArray.from_arrays(maps.offsets, maps.keys, maps.items).cast(SCHEMA.field(place).type)
    return table.set_column(place, SCHEMA.field(place), filled)


def _unique(table: pa.Table) -> pa.Table:
    """Keep the last row of each key."""
    places = pa.table({**{name: table[name] for name in KEY}, "place": pa.array(range(table.num_rows))})
    last = places.group_by(list(KEY), use_threads=False).aggregate([("place", "max")])["place_max"]
    return table if len(last) == table.num_rows else table.take(last)


def _damage(files: list[str], reason: str) -> StorageError:
    """Find the damaged one of `files`, which Arrow's message often omits."""
    for file in files:
        try:
            _check_values(_read([file]))
        except Exception as error:  # noqa: BLE001  (as above)
            own = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:_LONGEST_REASON]
            return StorageError(f"Cannot read {file}: it is damaged or holds no evaluation rows ({own}).")
    return StorageError(f"Cannot read the results: {reason}.")

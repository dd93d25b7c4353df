"""Write evaluation rows: one Parquet file each, on disk before training continues."""

from __future__ import annotations

import io
import secrets
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rllib_hpo.errors import StorageError
from rllib_hpo.results.atomic import write_atomically
from rllib_hpo.results.schema import SCHEMA, EvaluationRow

PARTITIONS = ("sweep", "algorithm", "task")
"""Columns that name the folders, outermost first."""

# Readers that infer `name=value` folders give these columns types of their own, each another one: pandas a dictionary,
# pyarrow.dataset a string. Were they in the file, too, one of the two would refuse it.
FILE_SCHEMA = pa.schema([field.remove_metadata() for field in SCHEMA if field.name not in PARTITIONS])
"""Columns of a file; `PARTITIONS` are its folders and, for a file that is copied elsewhere, its metadata."""


def file_table(rows: pa.Table) -> pa.Table | None:
    """Rows of `SCHEMA` without partition columns, for a file of one task folder; None if they belong to several."""
    values = {name: pc.unique(rows[name]).to_pylist() for name in PARTITIONS}
    if any(len(found) != 1 for found in values.values()):
        return None
    table = rows.select(FILE_SCHEMA.names).cast(FILE_SCHEMA)
    return table.replace_schema_metadata({name: found[0] for name, found in values.items()})


def partitions_of(file: str | Path) -> list[str | None]:
    """Values of `PARTITIONS` for a file without these columns, from its folders, or else from its metadata."""
    folders = [folder.name.partition("=") for folder in reversed(Path(file).parents[: len(PARTITIONS)])]
    if [name for name, *_ in folders] == list(PARTITIONS):
        return [unquote(value) for *_, value in folders]
    metadata = pq.read_schema(file).metadata or {}
    found = [metadata.get(name.encode()) for name in PARTITIONS]
    return [None if value is None else value.decode() for value in found]


def row_path(root: Path, row: EvaluationRow) -> Path:
    """root/sweep=S/algorithm=A/task=T/TRIAL-STEPS.parquet, with reserved characters percent-encoded."""
    trial = trial_path(root, row.sweep, row.algorithm, row.task, row.trial_id)
    return trial.with_name(f"{trial.stem}-{row.env_steps:010d}.parquet")


def trial_path(root: Path, sweep: str, algorithm: str, task: str, trial_id: str) -> Path:
    """root/sweep=S/algorithm=A/task=T/TRIAL.parquet: where the rows of a trial that is complete are merged."""
    values = zip(PARTITIONS, (sweep, algorithm, task), strict=True)
    folder = root.joinpath(*(f"{name}={_encoded(value)}" for name, value in values))
    return folder / f"{_encoded(trial_id)}.parquet"


def write_row(root: Path, row: EvaluationRow) -> Path:
    """Put `row` on disk under `root`, atomically; a row with the same key replaces the one before.

    Raises:
        StorageError: the disk is full or refuses; rows already written are untouched.
    """
    buffer = io.BytesIO()
    table = file_table(row.to_arrow())
    # Min and max of a column say nothing about a single row and would treble the file.
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False, write_statistics=False)
    return write_atomically(row_path(root, row), buffer.getvalue())


def trial_id(directory: Path) -> str:
    """Id of the run in `directory`: made at the first call, then stored in its file trial_id.

    A resumed run finds it again, wherever the directory was moved, and so replaces its own rows; runs
    of different machines whose rows are pooled later never collide.

    Raises:
        StorageError: the file can be neither read nor written.
    """
    path = directory / "trial_id"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        identity = secrets.token_hex(5)
        write_atomically(path, f"{identity}\n".encode())
        return identity
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror or error}.") from error


def _encoded(value: str) -> str:
    """`value` as one path component; a leading dot or underscore would hide the file from readers."""
    encoded = quote(value, safe="")
    return f"%{ord(encoded[0]):02X}{encoded[1:]}" if encoded[0] in "._" else encoded

"""Read a `.wandb` file: a log in LevelDB's format whose records are protobuf messages.

The log consists of blocks of 32 KiB. A record is one or more fragments, each with a header of checksum (4 bytes),
length (2) and kind (1: whole, 2: first, 3: middle, 4: last); where fewer than 7 bytes of a block are left, they pad.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_FILE_HEADER = b":W&B"
_FILE_HEADER_SIZE = 7
_BLOCK = 32 * 1024
_FRAGMENT = struct.Struct("<IHB")
_WHOLE, _LAST = 1, 4


@dataclasses.dataclass
class WandbModel:
    """A version of an artifact."""

    name: str
    type: str
    aliases: list[str]
    metadata: dict[str, Any]
    files: dict[str, Path]
    """Paths of the copies, by their names in the artifact."""


@dataclasses.dataclass
class WandbFile:
    """Content of the file of one session of a run."""

    run_id: str
    project: str
    name: str
    group: str
    job_type: str = ""
    tags: list[str] = dataclasses.field(default_factory=list)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    step_metrics: dict[str, str] = dataclasses.field(default_factory=dict)
    models: list[WandbModel] = dataclasses.field(default_factory=list)
    exit_code: int | None = None


def read_wandb_file(path: Path) -> WandbFile:
    """Read the run in `path`; raise ValueError if the file holds none, for instance only its header."""
    found: WandbFile | None = None
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found = WandbFile(
                run_id=run.run_id,
                project=run.project,
                name=run.display_name,
                group=run.run_group,
                job_type=run.job_type,
                tags=list(run.tags),
                config=_items(run.config.update),
            )
        elif found is None:
            continue
        elif kind == "config":
            found.config.update(_items(record.config.update))
        elif kind == "history":
            found.history.append(_items(record.history.item))
        elif kind == "metric":
            found.step_metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            found.models.append(_model(record.request.log_artifact.artifact))
        elif kind == "artifact":
            found.models.append(_model(record.artifact))
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    if found is None:
        raise ValueError(f"{path} holds no run")
    return found


def _records(data: bytes) -> Iterator[Any]:
    if not data.startswith(_FILE_HEADER):
        raise ValueError("not a .wandb file")
    for payload in _payloads(data):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(payload)
        yield record


def _payloads(data: bytes) -> Iterator[bytes]:
    """Join fragments to records; drop an unfinished record of a killed writer at the end."""
    position, parts = _FILE_HEADER_SIZE, b""
    while position + _FRAGMENT.size <= len(data):
        left_in_block = _BLOCK - position % _BLOCK
        if left_in_block < _FRAGMENT.size:
            position += left_in_block
            continue
        _checksum, length, kind = _FRAGMENT.unpack_from(data, position)
        position += _FRAGMENT.size
        if kind == 0 or position + length > len(data):
            return
        parts += data[position : position + length]
        position += length
        if kind in (_WHOLE, _LAST):
            yield parts
            parts = b""


def _model(artifact: Any) -> WandbModel:
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    metadata = json.loads(artifact.metadata or "{}")
    return WandbModel(artifact.name, artifact.type, list(artifact.aliases), metadata, files)


def _items(updates: Iterable[Any]) -> dict[str, Any]:
    """Return key-value messages as a dictionary, with nested keys joined by slashes."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in updates}

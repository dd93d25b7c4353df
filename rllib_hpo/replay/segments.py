"""The replay on disk: immutable files of rows, written once and listed by checkpoints."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np
import torch

from rllib_hpo.durable import sync
from rllib_hpo.errors import CheckpointError, StorageError
from rllib_hpo.replay.ring import ROWS, Ring


class Segment(TypedDict):
    """One file of consecutive rows of a ring, a `.npy` array (rows, width) of the ring's type."""

    file: str
    """Name in the replay directory; it contains `crc32`, so that equal names mean equal contents."""
    start: int
    """Number of the first row."""
    end: int
    """Number of the last row, plus 1."""
    crc32: int
    """Checksum of the rows' bytes."""


SegmentList = list[Segment]


class Rings(Protocol):
    """A replay that consists of rings."""

    @property
    def rings(self) -> Mapping[str, Ring]:
        """The rings by name."""

    def reloaded(self) -> None:
        """Compute what depends on the rings' rows, after they were filled."""


def of_ring(segments: SegmentList, ring: str) -> SegmentList:
    """Return the segments of one ring."""
    return [segment for segment in segments if Path(segment["file"]).name.startswith(f"{ring}-")]


def save_new_segment(replay: Rings, segments: SegmentList, directory: Path) -> SegmentList:
    """Write rows added since the last segments, and drop segments whose rows are all overwritten.

    Args:
        replay: The replay.
        segments: What was written before, in order.
        directory: Where the files are; made if it does not exist.

    Returns:
        Segments that together hold every row of the rings.

    Raises:
        StorageError: If a file could not be written (a full disk).
    """
    return [
        segment
        for name, ring in replay.rings.items()
        for segment in _save_ring(name, ring, of_ring(segments, name), directory)
    ]


def _save_ring(name: str, ring: Ring, segments: SegmentList, directory: Path) -> SegmentList:
    oldest = ring.total_rows - min(ring.total_rows, ring.capacity)
    kept = [segment for segment in segments if segment["end"] > oldest]
    if not all((directory / segment["file"]).is_file() for segment in kept):
        kept = []  # the directory was cleared meanwhile
    start = max(oldest, kept[-1]["end"] if kept else 0)
    if start == ring.total_rows:
        return kept
    return [*kept, _write_segment(name, ring, start, directory)]


def _write_segment(ring_name: str, ring: Ring, start: int, directory: Path) -> Segment:
    """Write rows from number `start` to the newest into a file, atomically."""
    end, pieces = ring.total_rows, ring.read(start, ring.total_rows)
    crc32 = 0
    for piece in pieces:
        crc32 = zlib.crc32(np.ascontiguousarray(piece).data, crc32)
    name = f"{ring_name}-{start:010d}-{end:010d}-{crc32:08x}.npy"
    temporary = directory / f".{name}.tmp"  # what a killed writer left is overwritten when its run resumes
    header = {"descr": _dtype(ring).str, "fortran_order": False, "shape": (end - start, ring.row.width)}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for piece in pieces:
                piece.tofile(file)
            file.flush()
            sync(file.fileno())
        temporary.replace(directory / name)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"Could not write the replay to {directory}: {error.strerror or error}."
        ) from error
    return Segment(file=name, start=start, end=end, crc32=crc32)


def _dtype(ring: Ring) -> np.dtype[np.generic]:
    """Return the type of a ring's values on disk."""
    return torch.empty(0, dtype=ring.row.dtype).numpy().dtype.newbyteorder("<")


def load_segments(replay: Rings, segments: SegmentList, total_rows: int, directory: Path) -> None:
    """Fill `replay` so that it equals the one saved after `total_rows` rows.

    Raises:
        CheckpointError: If a file is missing or its checksum differs.
    """
    for name, ring in replay.rings.items():
        own = of_ring(segments, name)
        # Each transition is a row of the first ring; other rings have as many rows as were saved.
        total = total_rows if name == ROWS else (own[-1]["end"] if own else 0)
        _load_ring(ring, own, total, directory)
    replay.reloaded()


def _load_ring(ring: Ring, segments: SegmentList, total_rows: int, directory: Path) -> None:
    ring.clear(max(0, total_rows - ring.capacity))
    for segment in segments:
        path, dtype = directory / segment["file"], _dtype(ring)
        try:
            rows = np.load(path, mmap_mode="c", allow_pickle=False)
        except Exception as error:  # a damaged header may raise anything, even tokenize.TokenError
            raise CheckpointError(f"The replay segment {path} is missing or damaged.") from error
        shape = segment["end"] - segment["start"], ring.row.width
        if (rows.shape, rows.dtype) != (shape, dtype):
            raise CheckpointError(
                f"The replay segment {path} holds {rows.shape} {rows.dtype}, not {shape} {dtype}."
            )
        if zlib.crc32(np.ascontiguousarray(rows).data) != segment["crc32"]:
            raise CheckpointError(f"The replay segment {path} is damaged: its checksum differs.")
        ring.add(rows[max(0, ring.total_rows - segment["start"]) :])
    if ring.total_rows != total_rows:
        raise CheckpointError(
            f"The replay segments in {directory} hold {ring.total_rows} of {total_rows} rows."
        )

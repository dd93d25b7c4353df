"""The replay on disk: immutable files of rows, written once and listed by checkpoints."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TypedDict

import numpy as np

from rllib_hpo.durable import sync
from rllib_hpo.errors import CheckpointError, StorageError
from rllib_hpo.replay.ring import Replay


class Segment(TypedDict):
    """One file of consecutive rows, a `.npy` array (rows, width) of float32."""

    file: str
    """Name in the replay directory; it contains `crc32`, so that equal names mean equal contents."""
    start: int
    """Number of the first row."""
    end: int
    """Number of the last row, plus 1."""
    crc32: int
    """Checksum of the rows' bytes."""


SegmentList = list[Segment]


def save_new_segment(replay: Replay, segments: SegmentList, directory: Path) -> SegmentList:
    """Write rows added since the last segment, and drop segments whose rows are all overwritten.

    Args:
        replay: The ring.
        segments: What was written before, in order.
        directory: Where the files are; made if it does not exist.

    Returns:
        Segments that together hold every row of the ring.

    Raises:
        StorageError: If the file could not be written (a full disk).
    """
    oldest = replay.total_rows - replay.num_rows
    kept = [segment for segment in segments if segment["end"] > oldest]
    if not all((directory / segment["file"]).is_file() for segment in kept):
        kept = []  # the directory was cleared meanwhile
    start = max(oldest, kept[-1]["end"] if kept else 0)
    if start == replay.total_rows:
        return kept
    return [*kept, _write_segment(replay, start, directory)]


def _write_segment(replay: Replay, start: int, directory: Path) -> Segment:
    """Write rows from number `start` to the newest into a file, atomically."""
    end, pieces = replay.total_rows, replay.read(start, replay.total_rows)
    crc32 = 0
    for piece in pieces:
        crc32 = zlib.crc32(np.ascontiguousarray(piece).data, crc32)
    name = f"rows-{start:010d}-{end:010d}-{crc32:08x}.npy"
    temporary = directory / f".{name}.tmp"  # what a killed writer left is overwritten when its run resumes
    header = {"descr": "<f4", "fortran_order": False, "shape": (end - start, replay.layout.width)}
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


def load_segments(replay: Replay, segments: SegmentList, total_rows: int, directory: Path) -> None:
    """Fill `replay` so that it equals the one saved after `total_rows` rows.

    Raises:
        CheckpointError: If a file is missing or its checksum differs.
    """
    replay.clear(max(0, total_rows - replay.capacity))
    for segment in segments:
        path = directory / segment["file"]
        try:
            rows = np.load(path, mmap_mode="c", allow_pickle=False)
        except Exception as error:  # a damaged header may raise anything, even tokenize.TokenError
            raise CheckpointError(f"The replay segment {path} is missing or damaged.") from error
        shape = segment["end"] - segment["start"], replay.layout.width
        if (rows.shape, rows.dtype) != (shape, np.dtype("<f4")):
            raise CheckpointError(
                f"The replay segment {path} holds {rows.shape} {rows.dtype}, not {shape} float32."
            )
        if zlib.crc32(np.ascontiguousarray(rows).data) != segment["crc32"]:
            raise CheckpointError(f"The replay segment {path} is damaged: its checksum differs.")
        replay.add(rows[max(0, replay.total_rows - segment["start"]) :])
    if replay.total_rows != total_rows:
        raise CheckpointError(
            f"The replay segments in {directory} hold {replay.total_rows} of {total_rows} rows."
        )

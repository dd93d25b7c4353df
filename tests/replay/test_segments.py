"""Test the replay on disk: each row is written once, and every kind of bad file has its error."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_hpo.errors import CheckpointError, StorageError
from rllib_hpo.replay.ring import Replay
from rllib_hpo.replay.segments import SegmentList, load_segments, save_new_segment
from tests.replay.test_replay import LAYOUT, numbered

CAPACITY = 10


def grow(replay: Replay, num: int) -> None:
    """Add the next `num` numbered rows."""
    replay.add(numbered(replay.total_rows, replay.total_rows + num))


def contents(replay: Replay) -> np.ndarray:
    """Return all rows, oldest first."""
    pieces = replay.read(replay.total_rows - replay.num_rows, replay.total_rows)
    return np.concatenate([np.empty((0, LAYOUT.width), np.float32), *pieces])


def reloaded(segments: SegmentList, total_rows: int, directory: Path) -> Replay:
    """Fill a new replay from disk."""
    replay = Replay(LAYOUT, CAPACITY)
    load_segments(replay, segments, total_rows, directory)
    return replay


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Replay, SegmentList]:
    """Save nine rows in two segments."""
    replay, segments = Replay(LAYOUT, CAPACITY), []
    for num in (4, 5):
        grow(replay, num)
        segments = save_new_segment(replay, segments, tmp_path)
    return replay, segments


@given(blocks=st.lists(st.integers(0, 25), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_what_is_saved_comes_back(blocks: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("replay")
    replay, segments = Replay(LAYOUT, CAPACITY), SegmentList()
    for num in blocks:
        grow(replay, num)
        segments = save_new_segment(replay, segments, directory)
        other = reloaded(segments, replay.total_rows, directory)
        assert other.total_rows == replay.total_rows
        assert np.array_equal(contents(other), contents(replay))
        # Rows stand at the same places, so the same indices draw the same rows.
        assert np.array_equal(other._rows[: other.num_rows], replay._rows[: replay.num_rows])


def test_only_new_rows_are_written(saved: tuple[Replay, SegmentList], tmp_path: Path) -> None:
    replay, segments = saved
    assert [(s["start"], s["end"]) for s in segments] == [(0, 4), (4, 9)]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert save_new_segment(replay, segments, tmp_path) == segments
    grow(replay, 1)
    after = save_new_segment(replay, segments, tmp_path)
    assert after[:2] == segments
    assert (after[2]["start"], after[2]["end"]) == (9, 10)
    assert {
        path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name in before
    } == before
    assert np.load(tmp_path / after[2]["file"]).shape == (1, LAYOUT.width)


def test_overwritten_segments_are_dropped(saved: tuple[Replay, SegmentList], tmp_path: Path) -> None:
    replay, segments = saved
    grow(replay, 7)  # rows 6 to 15 are left: the first segment is gone, the second partly
    segments = save_new_segment(replay, segments, tmp_path)
    assert [(s["start"], s["end"]) for s in segments] == [(4, 9), (9, 16)]
    grow(replay, 30)  # nothing old is left, and rows 16 to 35 were never on disk
    segments = save_new_segment(replay, segments, tmp_path)
    assert [(s["start"], s["end"]) for s in segments] == [(36, 46)]


def test_segments_whose_file_vanished_are_written_again(
    saved: tuple[Replay, SegmentList], tmp_path: Path
) -> None:
    """A user deleted the folder between two checkpoints; the next one must notice."""
    replay, segments = saved
    (tmp_path / segments[0]["file"]).unlink()
    grow(replay, 1)
    segments = save_new_segment(replay, segments, tmp_path)
    assert np.array_equal(contents(reloaded(segments, 10, tmp_path)), contents(replay))


def test_nothing_half_written_stays(saved: tuple[Replay, SegmentList], tmp_path: Path) -> None:
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy"}


def test_a_missing_segment_is_named(saved: tuple[Replay, SegmentList], tmp_path: Path) -> None:
    _, segments = saved
    (tmp_path / segments[0]["file"]).unlink()
    with pytest.raises(CheckpointError, match=f"{segments[0]['file']} is missing or damaged"):
        reloaded(segments, 9, tmp_path)


@pytest.mark.parametrize("position", [0, 20, 130, -1], ids=["magic", "header", "first row", "last byte"])
def test_a_flipped_bit_is_found(saved: tuple[Replay, SegmentList], tmp_path: Path, position: int) -> None:
    _, segments = saved
    path = tmp_path / segments[1]["file"]
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=segments[1]["file"]):
        reloaded(segments, 9, tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 100, -4])
def test_a_truncated_segment_is_found(saved: tuple[Replay, SegmentList], tmp_path: Path, kept: int) -> None:
    _, segments = saved
    path = tmp_path / segments[1]["file"]
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=segments[1]["file"]):
        reloaded(segments, 9, tmp_path)


def test_a_pickle_is_never_loaded(saved: tuple[Replay, SegmentList], tmp_path: Path) -> None:
    _, segments = saved
    with (tmp_path / segments[0]["file"]).open("wb") as file:
        np.save(file, np.array([{"an": "object"}]), allow_pickle=True)
    with pytest.raises(CheckpointError, match=segments[0]["file"]):
        reloaded(segments, 9, tmp_path)


@pytest.mark.parametrize(
    "rows",
    [np.zeros((4, LAYOUT.width + 1), np.float32), np.zeros((4, LAYOUT.width), np.int32)],
    ids=["shape", "type"],
)
def test_a_segment_of_other_rows_is_found(
    saved: tuple[Replay, SegmentList], tmp_path: Path, rows: np.ndarray
) -> None:
    _, segments = saved
    np.save(tmp_path / segments[0]["file"], rows)
    with pytest.raises(CheckpointError, match=r"not \(4, 7\) float32"):
        reloaded(segments, 9, tmp_path)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_gap_is_found(saved: tuple[Replay, SegmentList], tmp_path: Path, missing: int) -> None:
    _, segments = saved
    with pytest.raises(CheckpointError, match="of 9 rows"):
        reloaded([s for i, s in enumerate(segments) if i != missing], 9, tmp_path)


def test_a_full_disk_costs_nothing(
    saved: tuple[Replay, SegmentList], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay, segments = saved
    before = sorted(path.name for path in tmp_path.iterdir())
    grow(replay, 1)

    def full(descriptor: int) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        save_new_segment(replay, segments, tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert len(save_new_segment(replay, segments, tmp_path)) == 3

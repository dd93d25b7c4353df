"""Shard a replay over several learners, in memory and on disk.

Every row is in exactly one shard. Shard r of N has its share of the capacity and, on disk, a folder `shard-r` of
segments; the replay of a single learner has no such folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rllib_hpo.optim.replicas import Replica
from rllib_hpo.replay.frames import FrameReplay, joined, make_replay
from rllib_hpo.replay.ring import ROWS, Replay
from rllib_hpo.replay.segments import Segment, SegmentList, load_segments, of_ring


class Deal(NamedTuple):
    """The shard that stores a block, and the updates that all learners make after it."""

    shard: int
    num_updates: int


class Dealer:
    """Assign blocks to shards round-robin, and hold updates back until every shard has rows.

    Args:
        num_shards: Number of shards.
        num_blocks: Number of blocks assigned before.
        num_waiting: Number of updates held back.
    """

    def __init__(self, num_shards: int, num_blocks: int = 0, num_waiting: int = 0) -> None:
        self.num_shards, self._num_blocks, self.num_waiting = num_shards, num_blocks, num_waiting

    def deal(self, num_updates: int) -> Deal:
        """Assign one block that is not empty.

        Args:
            num_updates: Updates that become due with it.

        Returns:
            The block's shard, and the updates that all learners make once it has arrived.
        """
        shard = self._num_blocks % self.num_shards
        self._num_blocks += 1
        self.num_waiting += num_updates
        if self._num_blocks < self.num_shards:
            return Deal(shard, 0)
        due, self.num_waiting = self.num_waiting, 0
        return Deal(shard, due)

    def get_state(self) -> dict[str, Any]:
        """Arguments of `Dealer` that restore this state."""
        return {"num_blocks": self._num_blocks, "num_waiting": self.num_waiting}


def shard_folder(replica: Replica) -> str:
    """Folder of a replica's segments in the replay's directory; "" for a single process."""
    return f"shard-{replica.rank}" if replica.world_size > 1 else ""


def in_shard(segments: SegmentList, folder: str) -> SegmentList:
    """Segments with paths relative to the parent of `folder`."""
    return [Segment({**segment, "file": str(Path(folder, segment["file"]))}) for segment in segments]


def of_shard(segments: SegmentList, folder: str) -> SegmentList:
    """Segments in `folder`, with paths relative to it."""
    paths = [(Path(segment["file"]), segment) for segment in segments]
    return [Segment({**segment, "file": path.name}) for path, segment in paths if path.parent == Path(folder)]


def count_rows(segments: SegmentList) -> int:
    """Number of rows ever added to the shards of these segments."""
    last = {Path(segment["file"]).parent: segment["end"] for segment in of_ring(segments, ROWS)}
    return sum(last.values())


def load_shard(
    replay: Replay | FrameReplay, replica: Replica, segments: SegmentList, total_rows: int, directory: Path
) -> SegmentList:
    """Fill `replay` with a replica's shard.

    Args:
        replay: A replay of the shard's capacity.
        replica: The replica that owned the shard.
        segments: Segments of all shards, with paths relative to `directory`.
        total_rows: Number of rows ever added to all shards.
        directory: Directory of the segments.

    Returns:
        The segments of this shard, names relative to its folder.

    Raises:
        CheckpointError: If a segment is missing or damaged.
    """
    folder = shard_folder(replica)
    mine = of_shard(segments, folder)
    rows_of_mine = total_rows if replica.world_size == 1 else count_rows(mine)
    load_segments(replay, mine, rows_of_mine, directory / folder)
    return mine


def load_resharded(
    replay: Replay | FrameReplay,
    replica: Replica,
    segments: SegmentList,
    total_rows: int,
    capacities: list[int],
    directory: Path,
) -> None:
    """Reshard: fill a shard with its share of rows that another number of shards held, dealt one by one.

    Args:
        replay: The shard; it is cleared, and its rows are numbered from 0.
        replica: The replica that owns it.
        segments: Segments of all earlier shards, with paths relative to `directory`.
        total_rows: Number of rows ever added to all shards.
        capacities: Capacities of the earlier shards.
        directory: Directory of the segments.

    Raises:
        CheckpointError: If a segment is missing or damaged.
    """
    sources = [Replica(rank, len(capacities)) for rank in range(len(capacities))]
    rows_ever = [total_rows] if len(sources) == 1 else [_rows_of(segments, source) for source in sources]
    lengths = [min(each) for each in zip(rows_ever, capacities, strict=True)]
    mine = _oldest_first(lengths)[replica.rank :: replica.world_size]
    parts: list[Any] = []
    places, first = list[npt.NDArray[np.intp]](), 0
    for source, capacity, length in zip(sources, capacities, lengths, strict=True):
        here = np.flatnonzero((mine >= first) & (mine < first + length))
        if len(here):
            shard = make_replay(replay.layout, capacity)  # one at a time: together they may not fit
            load_shard(shard, source, segments, total_rows, directory)
            dead = length - min(length, shard.num_rows)  # of frames that did not suffice for short episodes
            held: Any = joined(shard.read(shard.total_rows - length + dead, shard.total_rows))
            chosen = mine[here] - first - dead
            parts.append(held[chosen[chosen >= 0]])
            places.append(here[chosen >= 0])
        first += length
    replay.clear()
    if parts:
        replay.add(joined(parts)[np.argsort(np.concatenate(places))])


def _rows_of(segments: SegmentList, replica: Replica) -> int:
    """Number of rows ever added to one of several shards."""
    return count_rows(of_shard(segments, shard_folder(replica)))


def _oldest_first(lengths: list[int]) -> npt.NDArray[np.intp]:
    """Indices into the concatenated shards of all their rows, oldest first."""
    ages = [(np.arange(length) + 0.5) / max(1, length) for length in lengths]
    return np.argsort(np.concatenate(ages), kind="stable")

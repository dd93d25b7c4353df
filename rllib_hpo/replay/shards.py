"""A replay in shards, one for each of several learners: how rows are dealt to them, and where they are on disk.

Every row is in exactly one shard. Shard r of N holds what falls to it of the capacity and, on disk, has a folder
`shard-r` of segments; the replay of a learner that is alone has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rllib_hpo.optim.replicas import Replica
from rllib_hpo.replay.ring import Replay
from rllib_hpo.replay.segments import Segment, SegmentList, load_segments


class Deal(NamedTuple):
    """Where a block of rows goes, and what follows it everywhere."""

    shard: int
    num_updates: int


class Dealer:
    """Deals blocks of rows to shards in turn, and holds updates back until every shard can be drawn from.

    Args:
        num_shards: How many there are.
        num_blocks: Blocks dealt before.
        num_waiting: Updates held back before, and from then on.
    """

    def __init__(self, num_shards: int, num_blocks: int = 0, num_waiting: int = 0) -> None:
        self.num_shards, self._num_blocks, self.num_waiting = num_shards, num_blocks, num_waiting

    def deal(self, num_updates: int) -> Deal:
        """Deals one block that is not empty.

        Args:
            num_updates: Updates that become due with it.

        Returns:
            The block's shard, and the updates that all learners are to make once it is there.
        """
        shard = self._num_blocks % self.num_shards
        self._num_blocks += 1
        self.num_waiting += num_updates
        if self._num_blocks < self.num_shards:
            return Deal(shard, 0)
        due, self.num_waiting = self.num_waiting, 0
        return Deal(shard, due)

    def get_state(self) -> dict[str, Any]:
        """What `Dealer` needs to go on, by the names of its arguments."""
        return {"num_blocks": self._num_blocks, "num_waiting": self.num_waiting}


def shard_folder(replica: Replica) -> str:
    """Where a replica's segments are below the replay's directory; "" for one that is alone."""
    return f"shard-{replica.rank}" if replica.world_size > 1 else ""


def in_shard(segments: SegmentList, folder: str) -> SegmentList:
    """Segments with names relative to the directory that `folder` is in."""
    return [Segment({**segment, "file": str(Path(folder, segment["file"]))}) for segment in segments]


def of_shard(segments: SegmentList, folder: str) -> SegmentList:
    """Those of `segments` that are in `folder`, with names relative to it."""
    paths = [(Path(segment["file"]), segment) for segment in segments]
    return [Segment({**segment, "file": path.name}) for path, segment in paths if path.parent == Path(folder)]


def count_rows(segments: SegmentList) -> int:
    """Rows ever added to all the shards that have these segments."""
    last = {Path(segment["file"]).parent: segment["end"] for segment in segments}
    return sum(last.values())


def load_shard(
    replay: Replay, replica: Replica, segments: SegmentList, total_rows: int, directory: Path
) -> SegmentList:
    """Fills `replay` as a replica's shard was.

    Args:
        replay: Of the capacity that the shard had.
        replica: Whose shard it was.
        segments: Those of all shards, names relative to `directory`.
        total_rows: Rows ever added to all shards.
        directory: Where the segments are.

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
    replay: Replay,
    replica: Replica,
    segments: SegmentList,
    total_rows: int,
    capacities: list[int],
    directory: Path,
) -> None:
    """Fills a shard with what falls to it of the rows that another number of shards held, one by one.

    Args:
        replay: The shard; what it held is forgotten, and its rows are numbered from 0.
        replica: Whose it is.
        segments: Those of all shards, names relative to `directory`.
        total_rows: Rows ever added to all shards.
        capacities: Of the shards that held them.
        directory: Where the segments are.

    Raises:
        CheckpointError: If a segment is missing or damaged.
    """
    sources = [Replica(rank, len(capacities)) for rank in range(len(capacities))]
    rows_ever = [total_rows] if len(sources) == 1 else [_rows_of(segments, source) for source in sources]
    lengths = [min(each) for each in zip(rows_ever, capacities, strict=True)]
    mine = _oldest_first(lengths)[replica.rank :: replica.world_size]
    rows = np.empty((len(mine), replay.layout.width), np.float32)
    first = 0
    for source, capacity, length in zip(sources, capacities, lengths, strict=True):
        shard = Replay(replay.layout, capacity)  # one at a time: together they may not fit
        load_shard(shard, source, segments, total_rows, directory)
        held = [*shard.read(shard.total_rows - length, shard.total_rows), rows[:0]]
        here = (mine >= first) & (mine < first + length)
        rows[here] = np.concatenate(held)[mine[here] - first]
        first += length
    replay.clear()
    replay.add(rows)


def _rows_of(segments: SegmentList, replica: Replica) -> int:
    """Rows ever added to one of several shards."""
    return count_rows(of_shard(segments, shard_folder(replica)))


def _oldest_first(lengths: list[int]) -> npt.NDArray[np.intp]:
    """Places, counted on from shard to shard, of all rows of shards that were filled in turn."""
    ages = [(np.arange(length) + 0.5) / max(1, length) for length in lengths]
    return np.argsort(np.concatenate(ages), kind="stable")

"""Test a sharded replay: every row in exactly one shard, saved, restored, and resharded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.algorithms.sac import SoftActorCriticModel
from rllib_hpo.errors import CheckpointError
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.learning.trainer import Trainer
from rllib_hpo.optim.replicas import Replica
from rllib_hpo.replay.segments import SegmentList
from rllib_hpo.replay.shards import Deal, Dealer, count_rows
from rllib_hpo.settings import SACSettings

CAPACITY = 20
Rows = npt.NDArray[np.float32]


def _learner(rank: int = 0, world_size: int = 1) -> ReplayLearner:
    settings = SACSettings(hidden_units=4, replay_capacity=CAPACITY, train_batch_size_per_learner=2)
    model = SoftActorCriticModel(1, 1, settings, seed=0)
    trainer = Trainer(make_method(settings), model, replica=Replica(rank, world_size))
    return ReplayLearner(trainer)


def _learners(world_size: int) -> list[ReplayLearner]:
    return [_learner(rank, world_size) for rank in range(world_size)]


def _fill(learners: list[ReplayLearner], num_blocks: int, first: int = 0, block: int = 3) -> None:
    """Distribute blocks of rows, each row filled with its number."""
    dealer = Dealer(len(learners), num_blocks=first // block)
    for start in range(first, first + num_blocks * block, block):
        rows = np.repeat(np.arange(start, start + block, dtype=np.float32)[:, None], 5, axis=1)
        learners[dealer.deal(0).shard].add_transitions(rows)


def _rows(learner: ReplayLearner) -> list[int]:
    """Return the numbers of a shard's rows, oldest first."""
    replay = learner.replay
    pieces = replay.read(replay.total_rows - replay.num_rows, replay.total_rows)
    return [int(row[0]) for piece in pieces for row in piece]


def _save(learners: list[ReplayLearner], directory: Path) -> SegmentList:
    return [segment for learner in learners for segment in learner.save_replay(str(directory))]


def _load(learners: list[ReplayLearner], directory: Path, segments: SegmentList, num_shards: int) -> None:
    for learner in learners:
        learner.load_replay(str(directory), segments, count_rows(segments), num_shards)


def test_blocks_are_dealt_in_turn_and_updates_wait_until_every_shard_has_rows() -> None:
    dealer = Dealer(3)
    deals = [dealer.deal(num_updates) for num_updates in (0, 4, 5, 6, 7)]
    assert deals == [Deal(0, 0), Deal(1, 0), Deal(2, 9), Deal(0, 6), Deal(1, 7)]
    begun = Dealer(3)
    for num_updates in (0, 4):
        begun.deal(num_updates)
    gone_on = Dealer(3, **begun.get_state())
    assert [gone_on.deal(num_updates) for num_updates in (5, 6, 7)] == deals[2:]
    assert [Dealer(1).deal(num_updates) for num_updates in (0, 4)] == [Deal(0, 0), Deal(0, 4)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_shards_share_the_capacity(world_size: int) -> None:
    capacities = [learner.replay.capacity for learner in _learners(world_size)]
    assert sum(capacities) == CAPACITY
    assert max(capacities) - min(capacities) <= 1


@pytest.mark.parametrize("num_blocks", [0, 1, 5, 9])
def test_shards_are_saved_and_restored(num_blocks: int, tmp_path: Path) -> None:
    """This holds also if the ring has wrapped around, a shard is empty, or new rows are saved separately."""
    learners = _learners(3)
    _fill(learners, num_blocks)
    first = _save(learners, tmp_path)
    assert {Path(segment["file"]).parent.name for segment in first} == {
        f"shard-{rank}" for rank in range(min(num_blocks, 3))
    }
    _fill(learners, 1, first=3 * num_blocks)
    segments = _save(learners, tmp_path)
    assert sum(segment["end"] - segment["start"] for segment in segments if segment not in first) == 3
    found = _learners(3)
    _load(found, tmp_path, segments, 3)
    assert [_rows(learner) for learner in found] == [_rows(learner) for learner in learners]
    kept = sorted(row for learner in found for row in _rows(learner))
    assert len(set(kept)) == len(kept) == min(3 * num_blocks + 3, len(kept))
    assert _save(found, tmp_path) == segments  # nothing is written again


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 4])
@pytest.mark.parametrize("num_blocks", [1, 4, 12])
def test_another_number_of_learners_gets_every_row_once(
    before: int, after: int, num_blocks: int, tmp_path: Path
) -> None:
    saved = _learners(before)
    _fill(saved, num_blocks)
    segments = _save(saved, tmp_path)
    found = _learners(after)
    _load(found, tmp_path, segments, before)
    expected = sorted(row for learner in saved for row in _rows(learner))
    assert sorted(row for learner in found for row in _rows(learner)) == expected
    sizes = [learner.replay.num_rows for learner in found]
    assert max(sizes) - min(sizes) <= (1 if before != after else 3)
    assert all(size <= learner.replay.capacity for size, learner in zip(sizes, found, strict=True))
    again = _save(found, tmp_path)
    assert count_rows(again) == sum(learner.replay.total_rows for learner in found)
    reloaded = _learners(after)
    _load(reloaded, tmp_path, again, after)
    assert [_rows(learner) for learner in reloaded] == [_rows(learner) for learner in found]


def test_rows_dealt_anew_stay_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    """The oldest are then overwritten first, up to the size of the distributed blocks."""
    saved, alone = _learners(2), _learner()
    _fill(saved, 6)
    _load([alone], tmp_path, _save(saved, tmp_path), 2)
    rows = np.array(_rows(alone))
    assert np.abs(rows - np.arange(18)).max() <= 3
    assert sorted(rows) == list(range(18))


@pytest.mark.parametrize("after", [2, 1])
def test_a_damaged_shard_is_refused(after: int, tmp_path: Path) -> None:
    saved = _learners(2)
    _fill(saved, 4)
    segments = _save(saved, tmp_path)
    path = tmp_path / segments[-1]["file"]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match=r"shard-1/rows-.* is damaged"):
        _load(_learners(after), tmp_path, segments, 2)

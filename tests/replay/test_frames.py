"""Test the replay of frames, bit by bit, against a naive one that copies every observation."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_hpo.errors import CheckpointError
from rllib_hpo.replay.frames import FrameLayout, FrameReplay, FrameRows, joined
from rllib_hpo.replay.layout import Batch, Column
from rllib_hpo.replay.segments import SegmentList, load_segments, save_new_segment
from rllib_hpo.streams import torch_generator

STACK, FRAME_BYTES = 3, 5
LAYOUT = FrameLayout(STACK * FRAME_BYTES, 2, STACK, (Column("cost"),))


class Naive(NamedTuple):
    """One transition with copies of both of its observations."""

    obs: np.ndarray
    action: np.ndarray
    reward: float
    terminated: bool
    next_obs: np.ndarray
    cost: float


class Camera:
    """An environment slot that shows random frames, some of which look alike; episodes end at random."""

    def __init__(self, rng: np.random.Generator, mean_length: float) -> None:
        self._rng, self._end = rng, 1 / mean_length
        self._frames: list[np.ndarray] = []

    def _frame(self) -> np.ndarray:
        shades = 2 if self._rng.random() < 0.1 else 256
        return self._rng.integers(0, shades, FRAME_BYTES, dtype=np.uint8)

    def step(self) -> Naive:
        if not self._frames:
            self._frames = [self._frame()] * STACK
        obs = np.concatenate(self._frames)
        self._frames = [*self._frames[1:], self._frame()]
        next_obs, is_over = np.concatenate(self._frames), bool(self._rng.random() < self._end)
        action = self._rng.normal(size=2).astype(np.float32)
        reward, cost = self._rng.normal(size=2).astype(np.float32)
        if is_over:
            self._frames = []
        return Naive(obs, action, float(reward), is_over, next_obs, float(cost))


def packed(transitions: list[Naive]) -> FrameRows:
    """Write transitions as a runner does, a few at a time and as floats."""
    writer = LAYOUT.writer(len(transitions))
    for start in range(0, len(transitions), 3):
        columns = [np.stack(column) for column in zip(*transitions[start : start + 3], strict=True)]
        obs, action, reward, terminated, next_obs, cost = columns
        both = obs.astype(np.float32), next_obs.astype(np.float32)
        writer.write(start, both[0], action, reward, terminated, both[1], cost[:, None])
    return writer.finished()


def assert_equal(batch: Batch, expected: list[Naive]) -> None:
    obs, action, reward, terminated, next_obs, cost = (
        np.stack(column) for column in zip(*expected, strict=True)
    )
    assert batch.obs.dtype == batch.next_obs.dtype == torch.uint8
    assert np.array_equal(batch.obs, obs)
    assert np.array_equal(batch.next_obs, next_obs)
    assert np.array_equal(batch.action, action)
    assert np.array_equal(batch.reward, reward.astype(np.float32))
    assert np.array_equal(batch.terminated, terminated.astype(np.float32))
    assert np.array_equal(batch.extras["cost"], cost.astype(np.float32))


def assert_holds_newest(replay: FrameReplay, naive: list[Naive]) -> None:
    """Compare all transitions of the replay, and those that it draws."""
    assert replay.total_rows == len(naive)
    if not replay.num_rows:
        return
    oldest = len(naive) - replay.num_rows
    indices = torch.arange(oldest, len(naive)) % replay.capacity
    assert_equal(replay.gather(indices), naive[oldest:])
    drawn = replay.draw_indices(64, torch_generator(0, "test"))
    assert set(drawn.tolist()) <= set(indices.tolist())
    numbers = [max(n for n in range(index, len(naive), replay.capacity)) for index in drawn.tolist()]
    assert_equal(replay.gather(drawn), [naive[number] for number in numbers])


@given(
    seed=st.integers(0, 2**16),
    capacity=st.sampled_from([1, 7, 40, 400]),
    num_slots=st.integers(1, 4),
    mean_length=st.sampled_from([1.0, 2.0, 9.0, 1000.0]),
    blocks=st.lists(st.integers(1, 120), min_size=1, max_size=9),
)
@settings(max_examples=40, deadline=None)
def test_it_holds_what_a_naive_replay_holds(
    seed: int, capacity: int, num_slots: int, mean_length: float, blocks: list[int]
) -> None:
    """Across episode ends, the wrap of the ring, slots that act in turn, and blocks cut anywhere."""
    rng = np.random.default_rng(seed)
    cameras = [Camera(rng, mean_length) for _ in range(num_slots)]
    replay, naive = FrameReplay(LAYOUT, capacity), list[Naive]()
    for num in blocks:
        block = [cameras[k % num_slots].step() for k in range(num)]
        rows, cut = packed(block), int(rng.integers(0, num + 1))
        for part in (rows[:cut], pickle.loads(pickle.dumps(rows[cut:])).copy()):
            replay.add(part)
        naive += block
        assert_holds_newest(replay, naive)
    if mean_length > 5 and capacity == 400:
        assert replay.num_rows == min(capacity, len(naive))


def test_each_frame_is_stored_once() -> None:
    """Whole episodes, single steps and slots in turn: an episode of T steps has T + 1 frames."""
    rng = np.random.default_rng(0)
    replay, steps, episodes = FrameReplay(LAYOUT, 1000), 0, 0
    cameras = [Camera(rng, 20) for _ in range(3)]
    frames = set()
    for size in [1] * 60 + [50] * 5:
        block = [cameras[(steps + k) % 3].step() for k in range(size)]
        steps += size
        episodes += sum(transition.terminated for transition in block)
        frames |= {
            bytes(part)
            for each in block
            for obs in (each.obs, each.next_obs)
            for part in np.split(obs, STACK)
        }
        replay.add(packed(block))
    assert episodes > 5
    assert len(frames) <= replay.rings["frames"].total_rows <= steps + episodes + len(cameras)


def test_frames_travel_once() -> None:
    camera = Camera(np.random.default_rng(0), 1000)
    rows = packed([camera.step() for _ in range(50)])
    assert len(rows.frames) == 51
    assert len(rows[10:40].frames) == 30 + STACK
    back = joined([rows[:10], rows[10:]])
    assert np.array_equal(back.observations, rows.observations)
    assert np.array_equal(rows[np.array([4, 1])].observations, rows.observations[[4, 1]])


@given(
    seed=st.integers(0, 2**16),
    mean_length=st.sampled_from([1.0, 3.0, 1000.0]),
    blocks=st.lists(st.integers(1, 90), min_size=2, max_size=8),
)
@settings(max_examples=25, deadline=None)
def test_a_reloaded_replay_goes_on_as_the_saved_one(
    seed: int, mean_length: float, blocks: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also where episodes are so short that transitions are dropped early."""
    directory = tmp_path_factory.mktemp("replay")
    camera = Camera(np.random.default_rng(seed), mean_length)
    replay, other, segments = FrameReplay(LAYOUT, 150), FrameReplay(LAYOUT, 150), SegmentList()
    for num in blocks:
        rows = packed([camera.step() for _ in range(num)])
        replay.add(rows)
        other.add(rows)
        assert_same(replay, other)
        segments = save_new_segment(replay, segments, directory)
        other = FrameReplay(LAYOUT, 150)
        load_segments(other, segments, replay.total_rows, directory)
        assert_same(replay, other)
    copied = FrameReplay(LAYOUT, 150)
    copied.copy_from(replay)
    assert_same(replay, copied)
    kept = {segment["file"] for segment in segments}
    assert len(kept) == len(segments)
    rest = FrameReplay(LAYOUT, 150)
    rest.clear(replay.total_rows - replay.num_rows)
    for piece in replay.read(rest.total_rows, replay.total_rows):
        rest.add(piece)
    indices = torch.arange(rest.total_rows - rest.num_rows, rest.total_rows) % 150
    assert rest.num_rows
    assert torch.equal(rest.gather(indices).obs, replay.gather(indices).obs)


def assert_same(one: FrameReplay, other: FrameReplay) -> None:
    """Compare what is held and what is drawn."""
    assert (one.total_rows, one.num_rows) == (other.total_rows, other.num_rows)
    assert list(one._known.items()) == list(other._known.items())
    if one.num_rows:
        drawn = [replay.draw_indices(32, torch_generator(0, "test")) for replay in (one, other)]
        assert torch.equal(*drawn)
        for first, second in zip(
            one.gather(drawn[0]).tensors(), other.gather(drawn[0]).tensors(), strict=True
        ):
            assert torch.equal(first, second)


def test_a_damaged_frame_is_found(tmp_path: Path) -> None:
    camera = Camera(np.random.default_rng(0), 10)
    replay = FrameReplay(LAYOUT, 50)
    replay.add(packed([camera.step() for _ in range(20)]))
    segments = save_new_segment(replay, [], tmp_path)
    (name,) = [segment["file"] for segment in segments if segment["file"].startswith("frames-")]
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        load_segments(FrameReplay(LAYOUT, 50), segments, 20, tmp_path)


def test_batches_are_gathered_into_given_memory() -> None:
    camera = Camera(np.random.default_rng(0), 10)
    replay = FrameReplay(LAYOUT, 50)
    replay.add(packed([camera.step() for _ in range(20)]))
    indices = torch.tensor([3, 19, 3, 0])
    parts = [torch.empty((4, part.width), dtype=part.dtype) for part in LAYOUT.parts]
    replay.gather_into(parts, indices)
    for found, expected in zip(
        LAYOUT.unpack_parts(parts).tensors(), replay.gather(indices).tensors(), strict=True
    ):
        assert torch.equal(found, expected)


def test_a_hundred_thousand_transitions_of_the_papers_size_fit_in_2_3_gigabytes() -> None:
    """Memory is taken as frames arrive, so nothing of it is here."""
    replay = FrameReplay(FrameLayout(9 * 84 * 84, 6, 3), 100_000)
    assert replay.num_bytes <= 2.3e9
    assert replay.rings["frames"].row.num_bytes == 3 * 84 * 84

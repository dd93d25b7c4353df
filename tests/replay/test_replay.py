"""Test the replay, a ring of rows, against a list."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_hpo.replay.layout import RowLayout
from rllib_hpo.replay.ring import Replay
from rllib_hpo.streams import torch_generator

LAYOUT = RowLayout(obs_dim=2, action_dim=1)


def numbered(start: int, end: int) -> npt.NDArray[np.float32]:
    """Make rows whose every value is the row's number."""
    column = np.arange(start, end, dtype=np.float32)[:, None]
    return column + np.arange(LAYOUT.width, dtype=np.float32) / 16


@given(capacity=st.integers(1, 12), blocks=st.lists(st.integers(0, 30), max_size=8))
@settings(max_examples=150, deadline=None)
def test_it_holds_the_newest_rows(capacity: int, blocks: list[int]) -> None:
    replay, total = Replay(LAYOUT, capacity), 0
    for num in blocks:
        replay.add(numbered(total, total + num))
        total += num
    assert replay.total_rows == total
    assert replay.num_rows == min(total, capacity)
    oldest = total - replay.num_rows
    pieces = replay.read(oldest, total)
    assert len(pieces) <= 2
    read = np.concatenate([np.empty((0, LAYOUT.width), np.float32), *pieces])
    assert np.array_equal(read, numbered(oldest, total))
    for row in range(oldest, total):
        stored = replay.gather(torch.tensor([row % capacity]))
        assert stored.obs[0, 0] == row


def test_columns_come_back_as_they_were_packed() -> None:
    rng = np.random.default_rng(0)
    layout = RowLayout(obs_dim=3, action_dim=2)
    obs, next_obs = (rng.normal(size=(5, 3)).astype(np.float32) for _ in range(2))
    action = rng.uniform(-1, 1, (5, 2)).astype(np.float32)
    reward, terminated = rng.normal(size=5), np.array([True, False, True, False, False])
    rows = np.full((5, layout.width), np.nan, np.float32)
    layout.pack(obs, action, reward, terminated, next_obs, out=rows)
    assert np.isfinite(rows).all()
    replay = Replay(layout, 10)
    replay.add(rows)
    batch = replay.gather(torch.arange(5))
    assert np.array_equal(batch.obs, obs)
    assert np.array_equal(batch.action, action)
    assert np.array_equal(batch.reward, reward.astype(np.float32))
    assert batch.terminated.tolist() == [1, 0, 1, 0, 0]
    assert np.array_equal(batch.next_obs, next_obs)


def test_indices_are_uniform_over_what_is_there() -> None:
    replay = Replay(LAYOUT, 10)
    replay.add(numbered(0, 4))
    drawn = replay.draw_indices(40_000, torch_generator(0, "test"))
    shares = torch.bincount(drawn, minlength=10) / len(drawn)
    assert shares[4:].sum() == 0
    assert (shares[:4] - 0.25).abs().max() < 0.01
    replay.add(numbered(4, 27))
    drawn = replay.draw_indices(40_000, torch_generator(0, "test"))
    assert (torch.bincount(drawn) / len(drawn) - 0.1).abs().max() < 0.01


@pytest.mark.parametrize(("start", "end"), [(0, 5), (14, 13), (5, 26), (-1, 3)])
def test_rows_that_are_not_there_are_refused(start: int, end: int) -> None:
    replay = Replay(LAYOUT, 10)
    replay.add(numbered(0, 25))
    with pytest.raises(ValueError, match=f"rows {start} to {end} are not in the replay"):
        replay.read(start, end)


def test_the_caller_may_reuse_its_rows() -> None:
    replay, rows = Replay(LAYOUT, 10), numbered(0, 3)
    replay.add(rows)
    rows[:] = -1
    assert np.array_equal(replay.read(0, 3)[0], numbered(0, 3))


@pytest.mark.filterwarnings("error")
def test_rows_may_be_read_only() -> None:
    replay, rows = Replay(LAYOUT, 10), numbered(0, 3)
    rows.setflags(write=False)
    replay.add(rows)
    assert np.array_equal(replay.read(0, 3)[0], rows)

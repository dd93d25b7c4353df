"""Test runs whose replay grows while they learn, as on a GPU: its readers follow each move.

The GPU is pretended: CPU memory that is allocated at once and limited.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rllib_hpo.learning.graph import WARM_UPS
from rllib_hpo.replay import ring as replay_module
from rllib_hpo.replay.feed import IndexFeed, RowFeed
from rllib_hpo.replay.ring import Replay
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from tests.rllib.tiny import EVERY_ALGORITHM_IN_TIME, assert_equal, facts, running, tiny_config, train_to

CAPACITY = 200
SIZES = [13, 25, 50, 100, 200]
"""Successive sizes of the replay."""


class PretendedGPU:
    """Place all later replays on a pretended GPU.

    Args:
        monkeypatch: pytest's fixture.
        room: Largest number of rows of a replay there; larger requests fail as in torch.
    """

    ELSEWHERE = torch.device("meta")
    """Replaces the host, so that it differs from the learner's device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int = CAPACITY) -> None:
        self.room, self.is_full = room, False
        make = Replay._new_rows

        def new_rows(replay: Replay, num_rows: int, device: torch.device) -> Tensor:
            if num_rows > self.room and not self.is_full:
                self.is_full = True
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return make(replay, num_rows, torch.device("cpu"))

        here = torch.device("cpu")
        monkeypatch.setattr(replay_module, "FIRST_ROWS", 16)
        monkeypatch.setattr(Replay, "_new_rows", new_rows)
        monkeypatch.setattr(Replay, "_grows", lambda replay, device: not self.is_full)
        monkeypatch.setattr(Replay, "device", property(lambda _: self.ELSEWHERE if self.is_full else here))


class PlacedCapture:
    """Replay a function by calling it; as for a graph, its inputs must not have moved.

    Args:
        algorithm: Algorithm whose updates are captured.
    """

    def __init__(self, algorithm: ActorCriticAlgorithm) -> None:
        self._core = algorithm.local_learner
        self.warm_ups = self.captures = 0
        self._core.trainer.update_in_bulk(self)

    @property
    def feed(self) -> Any:
        """Source of batches."""
        return self._core.trainer.bulk._feed  # type: ignore[union-attr]

    def warm_up(self, function: Callable[[], None]) -> None:
        self.warm_ups += 1
        function()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        places = self._places()

        def repeat() -> None:
            assert self._places() == places
            function()

        return repeat

    def _places(self) -> list[int]:
        places = [tensor.data_ptr() for tensor in self.feed.tensors()]
        return [*places, self._core.replay.rows.data_ptr()] if isinstance(self.feed, IndexFeed) else places


def _facts_of_a_run(algorithm: str, steps: int) -> dict[str, Any]:
    """Return the facts of a run whose replay has its full size from the beginning."""
    with running(tiny_config(algorithm, replay_capacity=CAPACITY)) as built:
        PlacedCapture(built)
        train_to(built, steps)
        return facts(built)


@EVERY_ALGORITHM_IN_TIME
def test_updates_follow_a_replay_that_grows(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each growth moves the rows and causes a recapture; nothing else changes, also around the ring's end."""
    expected = _facts_of_a_run(algorithm, 240)
    PretendedGPU(monkeypatch)
    with running(tiny_config(algorithm, replay_capacity=CAPACITY)) as built:
        capture, sizes = PlacedCapture(built), []
        while built.env_steps < 240:
            built.train()
            sizes.append(len(built.local_learner.replay.rows))
        assert_equal(expected, facts(built))
        num_kinds = len(set(built.local_learner.trainer.kinds(2)))
    assert sizes == [50, 100, 200, 200, 200, 200]
    # Updates begin at 20 rows, for which there are 25 places, and meet three larger ones.
    # With two kinds the five updates of the first size do not get beyond their warm-ups.
    captures = 4 if num_kinds == 1 else 3 * num_kinds
    assert (capture.captures, capture.warm_ups) == (captures, captures * WARM_UPS)


@EVERY_ALGORITHM_IN_TIME
def test_updates_follow_a_replay_that_moves_to_the_host(
    algorithm: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If memory runs out during growth, no row or update is lost, and the log says why the replay moved."""
    expected = _facts_of_a_run(algorithm, 240)
    gpu = PretendedGPU(monkeypatch, room=50)
    with running(tiny_config(algorithm, replay_capacity=CAPACITY)) as built:
        capture = PlacedCapture(built)
        train_to(built, 40)
        assert isinstance(capture.feed, IndexFeed)
        assert not gpu.is_full
        train_to(built, 240)
        assert isinstance(capture.feed, RowFeed)
        assert len(built.local_learner.replay.rows) == CAPACITY
        assert_equal(expected, facts(built))
        num_kinds = len(set(built.local_learner.trainer.kinds(2)))
    # For 25 places, for 50, and for batches that the host gathers.
    captures = 3 if num_kinds == 1 else 2 * num_kinds
    assert (capture.captures, capture.warm_ups) == (captures, captures * WARM_UPS)
    (moved,) = (record for record in caplog.records if record.name == replay_module.__name__)
    assert moved.levelname == "WARNING"
    assert re.fullmatch(
        r"The replay moves to host memory, and batches reach the GPU through pinned memory: "
        r"it grows to 100 rows, and \w+ does not have the required 0\.0 GiB free\.",
        moved.getMessage(),
    )


@pytest.mark.parametrize("room", [CAPACITY, 50])
def test_a_checkpoint_fills_a_replay_that_grows(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the checkpoint's rows do not fit, the run continues from the host's memory."""
    expected = _facts_of_a_run("sac", 160)
    with running(tiny_config(replay_capacity=CAPACITY)) as built:
        PlacedCapture(built)
        train_to(built, 80)
        built.save_to_path(tmp_path)
    gpu = PretendedGPU(monkeypatch, room)
    with running(tiny_config(replay_capacity=CAPACITY)) as other:
        capture = PlacedCapture(other)
        other.restore_from_path(tmp_path)
        train_to(other, 160)
        assert gpu.is_full == (room == 50)
        assert isinstance(capture.feed, RowFeed if gpu.is_full else IndexFeed)
        assert_equal(expected, facts(other))

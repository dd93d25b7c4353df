"""Test a real GPU whose memory does not suffice: replays grow, move to the host, and errors name remedies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.errors import UserError
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.learning.trainer import Trainer
from rllib_hpo.replay.layout import RowLayout
from rllib_hpo.replay.ring import FIRST_ROWS, Replay
from rllib_hpo.settings import SACSettings
from tests.devices import GPU_MARKS

pytestmark = GPU_MARKS

MIB = 2**20
LAYOUT = RowLayout(40, 8)


@pytest.fixture(autouse=True)
def whole_gpu() -> Iterator[None]:
    """Give back what a test has held or limited."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def leave(num_bytes: int) -> None:
    """Limit this process to so many bytes more than it holds now."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + num_bytes) / total)


def rows_of(num: int, seed: int, layout: RowLayout = LAYOUT) -> npt.NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(num, layout.width)).astype(np.float32)
    rows[:, layout.obs_dim + layout.action_dim + 1] = 0
    return rows


def learner_with(capacity: int, **changes: int) -> ReplayLearner:
    settings = SACSettings(**{"hidden_units": 16, **changes}).model_copy(
        update={"replay_capacity": capacity, "train_batch_size_per_learner": 64}
    )
    method = make_method(settings)
    learner = ReplayLearner(
        Trainer(method, method.make_model(LAYOUT.obs_dim, LAYOUT.action_dim, 0).to("cuda"))
    )
    learner.add_transitions(rows_of(1_000, seed=0, layout=learner.trainer.layout))
    return learner


def test_a_replay_grows_on_the_gpu() -> None:
    """It doubles as rows arrive, and holds what a replay on the host holds."""
    capacity = 5 * FIRST_ROWS
    here, there = Replay(LAYOUT, capacity), Replay(LAYOUT, capacity, "cuda")
    sizes = set()
    for seed in range(6):
        for replay in (here, there):
            replay.add(rows_of(FIRST_ROWS, seed))
        sizes.add(len(there.rows))
    assert there.device.type == "cuda"
    assert len(sizes) >= 3
    assert max(sizes) == capacity
    first = here.total_rows - capacity
    for ours, theirs in zip(
        there.read(first, there.total_rows), here.read(first, here.total_rows), strict=True
    ):
        assert np.array_equal(ours, theirs)


def test_a_replay_without_room_is_on_the_host_from_the_start(caplog: pytest.LogCaptureFixture) -> None:
    leave(256 * MIB)
    learner = learner_with(capacity=1_000 * MIB // LAYOUT.num_bytes)
    assert learner.replay.device.type == "cpu"
    assert "The replay is in host memory, and batches reach the GPU through pinned memory" in caplog.text
    learner.update_from_replay(40)
    assert learner.flush_metrics()["num_updates"] == 40


def test_a_replay_moves_to_the_host_when_it_cannot_grow(caplog: pytest.LogCaptureFixture) -> None:
    """Updates go on, with the rows that it held."""
    learner = learner_with(capacity=4 * FIRST_ROWS)
    learner.update_from_replay(40)
    assert learner.replay.device.type == "cuda"
    leave(MIB)
    learner.add_transitions(rows_of(FIRST_ROWS, seed=1, layout=learner.trainer.layout))
    assert learner.replay.device.type == "cpu"
    assert "The replay moves to host memory" in caplog.text
    assert np.array_equal(learner.replay.read(0, 1_000)[0], rows_of(1_000, 0, learner.trainer.layout))
    torch.cuda.set_per_process_memory_fraction(1.0)
    learner.update_from_replay(40)
    assert learner.flush_metrics()["num_updates"] == 80


def test_what_does_not_fit_says_what_to_do() -> None:
    learner = learner_with(capacity=10_000, hidden_units=4_096)
    leave(MIB)
    with pytest.raises(
        UserError, match=r"does not fit into its share of GPU memory: give it a larger fraction"
    ):
        learner.update_from_replay(20)

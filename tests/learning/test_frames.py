"""Test learning from a replay of frames: in bulk, on the host for a GPU, traced, and resumed, as one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_hpo.algorithms.registry import find_settings, make_method
from rllib_hpo.learning import updates as updates_module
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.learning.trainer import Trainer
from rllib_hpo.replay.feed import IndexFeed, RowFeed
from rllib_hpo.replay.frames import FrameReplay, FrameRows
from rllib_hpo.settings import parse_settings
from tests.kinds import OF_IMAGES

SIZE, FRAMES, DIM, ROWS = 11, 2, 2, 8
OBS = 3 * FRAMES * SIZE**2
SMALL: dict[str, Any] = {
    "frame_stack": FRAMES, "conv_layers": 2, "conv_filters": 4, "latent_dim": 5, "hidden_units": 16,
    "train_batch_size_per_learner": ROWS, "replay_capacity": 200, "diagnostics_interval": 5,
    "augmentation": "shift", "decoder_every": 3,
}  # fmt: skip
EVERY = pytest.mark.parametrize("algorithm", OF_IMAGES)


def transitions(seed: int, number: int = 100) -> FrameRows:
    """Make an episode of random frames."""
    rng = np.random.default_rng(seed)
    method = make_method(parse_settings(find_settings("sac-ae"), SMALL))
    writer = method.layout(OBS, DIM).writer(number)
    shown = rng.integers(0, 256, (number + FRAMES, 3 * SIZE**2), dtype=np.uint8)
    stacks = np.stack([shown[k : k + FRAMES].reshape(-1) for k in range(number + 1)]).astype(np.float32)
    action, reward = np.tanh(rng.normal(size=(number, DIM))), rng.normal(size=number)
    writer.write(0, stacks[:-1], action, reward, np.arange(number) % 7 == 0, stacks[1:])
    return writer.finished()


def learner_of(algorithm: str, **changes: Any) -> ReplayLearner:
    method = make_method(parse_settings(find_settings(algorithm), SMALL | changes))
    learner = ReplayLearner(Trainer(method, method.make_model(OBS, DIM, seed=0)))
    learner.add_transitions(transitions(0))
    return learner


def parameters(learner: ReplayLearner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.trainer.model.state_dict().items()}


def assert_alike(one: ReplayLearner, other: ReplayLearner, **tolerance: float) -> None:
    for (name, ours), theirs in zip(parameters(one).items(), parameters(other).values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda m, name=name: f"{name}: {m}", **tolerance)


@EVERY
def test_bulk_updates_from_host_and_device_are_the_same(
    algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames are gathered in the update, or by the host into the memory of a batch."""
    monkeypatch.setattr(updates_module, "BYTES_AT_A_TIME", 200_000)
    here, there = learner_of(algorithm), learner_of(algorithm)
    for learner in (here, there):
        learner.trainer.update_in_bulk(None)
        assert 1 < learner.trainer.updates_at_a_time < 10
    here.update_from_replay(11)
    monkeypatch.setattr(FrameReplay, "device", torch.device("meta"))
    there.update_from_replay(11)
    assert isinstance(here.trainer.bulk._feed, IndexFeed)
    assert isinstance(there.trainer.bulk._feed, RowFeed)
    assert_alike(here, there, rtol=0, atol=0)
    assert here.flush_metrics() == pytest.approx(there.flush_metrics())


@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param("sac-ae", marks=pytest.mark.exhaustive),
        pytest.param("sac-ae-hpo", marks=pytest.mark.slow),
    ],
)
def test_traced_updates_equal_eager_ones(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kind, four of them here; inductor is given the trace."""
    traces: list[Any] = []

    def keep(graph: Any, arguments: list[Tensor]) -> Callable[..., Any]:
        traces.append(graph)
        return graph

    monkeypatch.setattr("torch._inductor.compile", keep)
    eager, traced = learner_of(algorithm), learner_of(algorithm, compile_update=True)
    eager.trainer.update_in_bulk(None)
    for learner in (eager, traced):
        learner.update_from_replay(7)
    assert len(traces) == len(traced.trainer.all_kinds()) == 4
    assert_alike(eager, traced, rtol=1e-3, atol=1e-4)


@EVERY
def test_a_resumed_learner_goes_on_bitwise(algorithm: str, tmp_path: Path) -> None:
    """Frames, parameters, optimizers and streams are those of the saved one."""
    whole, resumed = learner_of(algorithm), learner_of(algorithm)
    whole.update_from_replay(5)
    whole.add_transitions(transitions(1))
    segments = whole.save_replay(str(tmp_path))
    resumed.take_over(whole)
    resumed.load_replay(str(tmp_path), segments, whole.total_rows())
    for learner in (whole, resumed):
        learner.add_transitions(transitions(2, 30))
        learner.update_from_replay(4)
    assert_alike(whole, resumed, rtol=0, atol=0)
    assert whole.replay.num_rows == resumed.replay.num_rows == 200


def test_shards_of_frames_are_dealt_anew(tmp_path: Path) -> None:
    """Two shards become one, oldest first, and lose no transition."""
    from rllib_hpo.optim.replicas import Replica

    method = make_method(parse_settings(find_settings("sac-ae"), SMALL))
    shards = []
    for rank in range(2):
        trainer = Trainer(method, method.make_model(OBS, DIM, seed=0), replica=Replica(rank, 2))
        shards.append(ReplayLearner(trainer))
        shards[-1].add_transitions(transitions(rank, 40))
    segments = [each for shard in shards for each in shard.save_replay(str(tmp_path))]
    alone = ReplayLearner(Trainer(method, method.make_model(OBS, DIM, seed=0)))
    alone.load_replay(str(tmp_path), segments, 80, num_shards=2)
    assert alone.replay.num_rows == alone.total_rows() == 80
    (found,) = alone.replay.read(0, 80)
    expected = np.concatenate([transitions(rank, 40).observations for rank in range(2)])
    assert {row.tobytes() for row in found.observations} == {row.tobytes() for row in expected}
    rewards = [transitions(rank, 40).numbers[:, DIM] for rank in range(2)]
    assert sorted(found.numbers[:, DIM]) == sorted(np.concatenate(rewards))

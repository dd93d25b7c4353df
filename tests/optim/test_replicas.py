"""Test that several learners take the steps of one with the concatenated batch, and that a failure stops them all."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.algorithms.sac import SoftActorCriticModel
from rllib_hpo.errors import NonFiniteError, WorkerDiedError
from rllib_hpo.learning.trainer import Trainer
from rllib_hpo.optim.replicas import ALONE, Replica, merge_metrics
from rllib_hpo.replay.layout import Batch
from rllib_hpo.samplers.base import Noise, draw_noise
from rllib_hpo.streams import TorchStreams
from tests.learning.engine import make_optimizers, update
from tests.learning.options import SETTINGS
from tests.optim.replicas import in_processes, processes

OBS, DIM, ROWS, UPDATES = 5, 3, 8, 20
NAMES = (
    "sac",
    "sac, automatic temperature",
    "sac-nf, automatic temperature",
    "sac-hpo, automatic temperature",
)
each_algorithm = pytest.mark.parametrize("name", NAMES)
several = pytest.mark.parametrize("world_size", [pytest.param(2, marks=pytest.mark.exhaustive), 3])


def _batch(seed: int, dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, ROWS, OBS, generator=generator, dtype=dtype)
    action = 2 * torch.rand(ROWS, DIM, generator=generator, dtype=dtype) - 1
    reward = torch.randn(ROWS, generator=generator, dtype=dtype)
    return Batch(obs, action, reward, (torch.arange(ROWS) % 4 == 0).to(dtype), next_obs)


def _drawn(
    model: SoftActorCriticModel, number: int, ranks: range, world_size: int, dtype: torch.dtype
) -> tuple[Batch, Noise]:
    """Return the noise of the replicas `ranks` of `world_size` for an update, concatenated."""
    seeds = [number * world_size + rank for rank in ranks]
    batch = Batch(*(torch.cat(x) for x in zip(*(_batch(s, dtype).tensors() for s in seeds), strict=True)))
    noises = [draw_noise(model.sampler, 2 * ROWS, TorchStreams(seed, "test")) for seed in seeds]
    halves = slice(0, ROWS), slice(ROWS, None)
    noise = {
        name: torch.cat([each[name][half] for half in halves for each in noises]).to(dtype)
        for name in noises[0]
    }
    return batch, noise


def _train(name: str, dtype: torch.dtype, replica: Replica, ranks: range, world_size: int) -> dict[str, Any]:
    """Make updates with given batches and noise; return the first gradients, and everything learned."""
    settings = SETTINGS[name]
    model = SoftActorCriticModel(OBS, DIM, settings, seed=0).to(dtype)
    optimizers, gradients = make_optimizers(model, settings), {}
    for number in range(UPDATES):
        update(model, optimizers, *_drawn(model, number, ranks, world_size, dtype), settings, replica)
        if number == 0:
            gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    states = [optimizer.state_dict()["state"] for optimizer in optimizers.values()]
    return {"gradients": gradients, "parameters": model.state_dict(), "optimizers": states}


def _train_all(replica: Replica) -> dict[tuple[str, torch.dtype], dict[str, Any]]:
    ranks = range(replica.rank, replica.rank + 1)
    return {
        (name, dtype): _train(name, dtype, replica, ranks, replica.world_size)
        for name in NAMES
        for dtype in (torch.float32, torch.float64)
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[Any]]:
    """Return what each replica has learned, for every algorithm; train once."""
    found: dict[int, list[Any]] = {}

    def of(world_size: int) -> list[Any]:
        if world_size not in found:
            found[world_size] = in_processes(world_size, _train_all, tmp_path_factory.mktemp("replicas"))
        return found[world_size]

    return of


def _distance(one: Any, other: Any) -> float:
    """Return the largest difference of nested tensors of one shape."""
    if isinstance(one, torch.Tensor):
        return float((one - other).abs().max())
    keys = list(one) if isinstance(one, dict) else range(len(one))
    assert keys == (list(other) if isinstance(other, dict) else range(len(other)))
    pairs = ((one[key], other[key]) for key in keys)
    return max((_distance(*pair) for pair in pairs), default=0.0)


@several
@each_algorithm
def test_steps_are_those_of_the_concatenated_batch(
    name: str, world_size: int, trained: Callable[[int], list[Any]]
) -> None:
    """Gradients agree to 1e-6; after twenty updates all tensors are bitwise equal among the learners."""
    for dtype, gradients_to, learned_to in ((torch.float32, 1e-6, 1e-4), (torch.float64, 1e-14, 1e-11)):
        first, *others = [each[name, dtype] for each in trained(world_size)]
        for other in others:
            assert _distance(first, other) == 0
        alone = _train(name, dtype, ALONE, range(world_size), world_size)
        assert first["gradients"].keys() == alone["gradients"].keys()
        assert ("log_alpha" in alone["gradients"]) == ("automatic" in name)
        assert _distance(first["gradients"], alone["gradients"]) < gradients_to
        for what in ("parameters", "optimizers"):
            assert _distance(first[what], alone[what]) < learned_to
        # And other steps than those of its own batch alone.
        lonely = _train(name, dtype, ALONE, range(1), world_size)
        assert _distance(first["gradients"], lonely["gradients"]) > 1e-4


def _trainer(replica: Replica, name: str = "sac-hpo, automatic temperature") -> Trainer:
    model = SoftActorCriticModel(OBS, DIM, SETTINGS[name], seed=0)
    return Trainer(make_method(SETTINGS[name]), model, seed=7, replica=replica)


def test_the_first_replica_draws_what_one_alone_would_and_the_others_something_else() -> None:
    def drawn(rank: int, joined_at: int = 0) -> list[bytes]:
        trainer = _trainer(Replica(rank, 3))
        if joined_at:
            trainer.join(joined_at)
        return [torch.randn(4, generator=trainer.streams[n]).numpy().tobytes() for n in ("replay", "base")]

    alone = [
        torch.randn(4, generator=_trainer(ALONE).streams[n]).numpy().tobytes() for n in ("replay", "base")
    ]
    assert drawn(0) == alone
    all_drawn = [
        *drawn(0),
        *drawn(1),
        *drawn(2),
        *drawn(0, 100),
        *drawn(1, 100),
        *drawn(2, 100),
        *drawn(1, 200),
    ]
    assert len(set(all_drawn)) == len(all_drawn)


def _meet_a_bad_reward(replica: Replica) -> tuple[str, bool]:
    trainer = _trainer(replica)
    trainer.learn(_batch(replica.rank, torch.float32))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    batch = _batch(10 + replica.rank, torch.float32)
    if replica.rank == 1:
        batch.reward[2] = torch.nan
    try:
        trainer.learn(batch)
    except NonFiniteError as error:
        after = trainer.model.state_dict()
        return str(error), all(torch.equal(before[name], after[name]) for name in before)
    return "", False


def test_a_bad_loss_of_one_stops_all_with_the_same_words(tmp_path: Path) -> None:
    found = in_processes(3, _meet_a_bad_reward, tmp_path)
    assert found == [("The critic loss is nan at update 2", True)] * 3


def _outlive_the_other(directory: Path, signal_number: int, replica: Replica) -> str:
    """Kill or stop the second replica during training; return the first one's error."""
    trainer = _trainer(replica)
    torch.distributed.barrier()  # one may import for long; patience is with what comes now
    for number in range(1_000_000):
        if (replica.rank, number) == (1, 5):
            os.kill(os.getpid(), signal_number)
        try:
            trainer.learn(_batch(number, torch.float32))
        except WorkerDiedError as error:
            (directory / "said").write_text(f"{error} ({number})")
            break
    return ""


@pytest.mark.parametrize(
    "signal_number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_one_that_dies_or_falls_silent_is_not_waited_for(
    signal_number: signal.Signals, tmp_path: Path
) -> None:
    job = partial(_outlive_the_other, tmp_path, signal_number)
    with processes(2, job, tmp_path / "store", timeout_s=10.0) as started:
        started.processes[0].join(200)
        assert not started.processes[0].is_alive()
    said = (tmp_path / "said").read_text()
    assert said == "A remote learner died; resume the run from its last checkpoint. (5)"


def _begin_apart(replica: Replica) -> dict[str, torch.Tensor]:
    model = SoftActorCriticModel(OBS, DIM, SETTINGS["sac-nf"], seed=replica.rank)
    replica.broadcast(list(model.state_dict().values()))
    return model.state_dict()


def test_all_begin_where_the_first_does(tmp_path: Path) -> None:
    first = SoftActorCriticModel(OBS, DIM, SETTINGS["sac-nf"], seed=0).state_dict()
    for found in in_processes(2, _begin_apart, tmp_path):
        assert _distance(first, found) == 0


def test_metrics_are_means_rows_a_sum_and_memory_the_most() -> None:
    merged = merge_metrics(
        [
            {"loss": 1.0, "replay_rows": 5.0, "gpu_memory_bytes": 9.0},
            {"loss": 3.0, "gate": 0.5, "replay_rows": 6.0, "gpu_memory_bytes": 7.0},
        ]
    )
    assert merged == {"loss": 2.0, "gate": 0.5, "replay_rows": 11.0, "gpu_memory_bytes": 9.0}

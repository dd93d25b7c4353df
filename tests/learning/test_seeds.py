"""Test the updates of several seeds together: those of each seed alone, for every algorithm, option and kind.

On a CPU a test asks for stacked tensors, in the form of the networks that a GPU uses.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_hpo.algorithms.registry import find_settings, make_method
from rllib_hpo.kernels import products, q_networks
from rllib_hpo.learning import seeds as seeds_module
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.learning.seeds import SeedGroup
from rllib_hpo.learning.stacking import stack_graph
from rllib_hpo.learning.trainer import Trainer
from rllib_hpo.settings import SACSettings, Settings
from tests.kinds import OF_VECTORS
from tests.learning.options import OTHERS, SETTINGS

OBS, DIM, ROWS = 5, 3, 32
SEEDS = 3
SMALL = SACSettings(hidden_units=16, alpha="auto")
OPTIONS = SETTINGS | OTHERS
FEW = ("sac-hpo, penalty", "td3, every third")
"""Options whose updates differ most, in their losses and their kinds."""


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate the networks of an update together, and multiply by torch."""
    monkeypatch.setattr(products, "HAS_ONEDNN", False)
    monkeypatch.setattr(
        q_networks, "separate", lambda weights, biases: [q_networks.Layers(list(weights), list(biases))]
    )


@pytest.fixture
def operators_of_large_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "WORTH_ONEDNN", 1)
    monkeypatch.setattr(q_networks, "ROWS_WORTH_SPLITTING", 2)


def learner_of(settings: Settings, seed: int, *, bulk: bool = True, interval: int = 10**6) -> ReplayLearner:
    changes = {
        "train_batch_size_per_learner": ROWS,
        "replay_capacity": 500,
        "diagnostics_interval": interval,
    }
    method = make_method(settings.model_copy(update=changes))
    learner = ReplayLearner(Trainer(method, method.make_model(OBS, DIM, seed=seed), seed=seed))
    if bulk:
        learner.trainer.update_in_bulk(None)
    layout = learner.trainer.layout
    rows = np.random.default_rng(seed).normal(size=(300, layout.width)).astype(np.float32)
    rows[:, OBS : OBS + DIM] = np.tanh(rows[:, OBS : OBS + DIM])
    rows[:, OBS + DIM + 1] = rows[:, OBS + DIM + 1] > 1
    learner.add_transitions(rows)
    return learner


def learners_of(settings: Settings, **options: Any) -> list[ReplayLearner]:
    return [learner_of(settings, seed, **options) for seed in range(SEEDS)]


def stacked_group(settings: Settings, *, compiled: bool = False, **options: Any) -> SeedGroup:
    group = SeedGroup(learners_of(settings, **options))
    group.stack(None, compiled=compiled)
    return group


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        distance = (mine - other).double().norm()
        assert distance <= 1e-4 * other.double().norm() + 1e-9, (other.shape, distance)


def assert_bitwise(ours: ReplayLearner, theirs: ReplayLearner) -> None:
    for mine, other in zip(ours.trainer.tensors(), theirs.trainer.tensors(), strict=True):
        assert torch.equal(mine, other)


def assert_same_streams(ours: ReplayLearner, theirs: ReplayLearner) -> None:
    mine, other = (learner.trainer.streams.get_state() for learner in (ours, theirs))
    assert mine.keys() == other.keys()
    assert all(np.array_equal(mine[name], other[name]) for name in other)


def compare_single_updates(settings: Settings, number: int, *, compiled: bool = False) -> None:
    """Make single updates from `number` states that each seed passes through alone."""
    alone, group = learners_of(settings), stacked_group(settings, compiled=compiled)
    for learner in alone:
        learner.update_from_replay(8)  # makes what kinds make on first use
    group.update_from_replay(8)
    for _ in range(number):
        for ours, theirs in zip(group.learners, alone, strict=True):
            with torch.no_grad():
                for mine, other in zip(ours.trainer.tensors(), theirs.trainer.tensors(), strict=True):
                    mine.copy_(other)
            theirs.update_from_replay(1)
        group.update_from_replay(1)
        for ours, theirs in zip(group.learners, alone, strict=True):
            assert_close(ours.trainer.tensors(), theirs.trainer.tensors())
    for ours, theirs in zip(group.learners, alone, strict=True):
        assert_same_streams(ours, theirs)
    for seed, metrics in group.flush_metrics().items():
        assert metrics == pytest.approx(alone[seed].flush_metrics(), rel=1e-3, abs=1e-5)
    assert group.failures == {}


@pytest.mark.parametrize("name", FEW)
def test_single_updates_equal_those_of_each_seed_alone(
    name: str, as_on_a_gpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    compare_single_updates(OPTIONS[name], 7)
    assert caplog.messages == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", OPTIONS)
def test_single_updates_of_every_option_equal_those_of_each_seed_alone(
    name: str, as_on_a_gpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    compare_single_updates(OPTIONS[name], 13)
    assert caplog.messages == []


def test_every_algorithm_is_among_those_compared() -> None:
    assert {type(settings) for settings in OPTIONS.values()} >= {find_settings(name) for name in OF_VECTORS}


def test_operators_of_this_package_run_seed_by_seed(
    operators_of_large_networks: None, caplog: pytest.LogCaptureFixture
) -> None:
    compare_single_updates(SMALL, 3)
    assert caplog.messages == []


def test_what_is_compiled_is_the_update_of_all_seeds(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def keep(graph: Any, arguments: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph

    monkeypatch.setattr("torch._inductor.compile", keep)
    compare_single_updates(SMALL, 3, compiled=True)
    assert len(compiled) == 1
    assert not [node for node in compiled[0].graph.nodes if "fused_adam" in str(node.target)]


_VIEWS = {"alias", "detach", "expand", "permute", "select", "slice", "split", "squeeze", "t", "transpose"} | {
    "unbind",
    "unsqueeze",
    "view",
    "_unsafe_view",
}
"""Operations that launch nothing on a GPU."""


def num_operations(graph: Any) -> dict[str, int]:
    names = [
        node.target.name().split("::")[1].split(".")[0]
        for node in graph.graph.nodes
        if node.op == "call_function" and hasattr(node.target, "name")
    ]
    return dict(Counter(name for name in names if name not in _VIEWS))


def test_eight_seeds_take_few_more_operations_than_one(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So eight seeds on a GPU, where an update waits for launches, make more than five times one seed's updates."""
    counts: list[dict[str, int]] = []

    def count(graph: Any, arguments: Any, num_seeds: int) -> Any:
        stacked = stack_graph(graph, arguments, num_seeds)
        counts.extend(num_operations(each) for each in (graph, stacked))
        return stacked

    monkeypatch.setattr(seeds_module, "stack_graph", count)
    group = SeedGroup([learner_of(SACSettings(hidden_units=16), seed) for seed in range(8)])
    group.stack(None)
    group.update_from_replay(1)
    one, eight = counts
    assert eight["_fused_adam_"] == 8 * one["_fused_adam_"]
    assert 8 * sum(one.values()) / sum(eight.values()) > 6


@pytest.mark.slow
def test_compiled_updates_of_all_seeds_equal_those_of_each_alone(as_on_a_gpu: None) -> None:
    compare_single_updates(SMALL, 50, compiled=True)


def test_a_loss_that_is_not_finite_stops_one_seed(as_on_a_gpu: None) -> None:
    """The others go on as if it were not there; it is named, and none of its tensors has changed."""
    group, alone = stacked_group(SMALL), learners_of(SMALL)
    group.update_from_replay(3)
    bad = group.learners[1]
    before = copy.deepcopy(bad.trainer.model.state_dict())
    bad.replay.rows[:] = float("nan")
    group.update_from_replay(4)
    assert sorted(group.flush_metrics()) == [0, 2]
    assert {seed: str(error) for seed, error in group.failures.items()} == {
        1: "The critic loss is not finite at update 4"
    }
    after = bad.trainer.model.state_dict()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    group.update_from_replay(2)
    for seed in (0, 2):
        for number in (3, 4, 2):
            alone[seed].update_from_replay(number)
        assert_same_streams(group.learners[seed], alone[seed])
        ours, theirs = (each.trainer.model.state_dict() for each in (group.learners[seed], alone[seed]))
        assert_close(list(ours.values()), list(theirs.values()))
    assert sorted(group.flush_metrics()) == [0, 2]


def test_on_a_cpu_seeds_take_turns_bitwise() -> None:
    group, alone = SeedGroup(learners_of(SMALL, bulk=False)), learners_of(SMALL, bulk=False)
    group.learners[1].replay.rows[:] = float("nan")
    for number in (5, 3):
        group.update_from_replay(number)
        for seed in (0, 2):
            alone[seed].update_from_replay(number)
    for seed in (0, 2):
        assert_bitwise(group.learners[seed], alone[seed])
        assert_same_streams(group.learners[seed], alone[seed])
    assert {seed: str(error) for seed, error in group.failures.items()} == {
        1: "The critic loss is nan at update 1"
    }
    assert sorted(group.flush_metrics()) == [0, 2]


def test_diagnostics_come_when_they_are_due(as_on_a_gpu: None) -> None:
    group, alone = stacked_group(SMALL, interval=7), learners_of(SMALL, interval=7)
    group.update_from_replay(40)
    for learner in alone:
        learner.update_from_replay(40)
    metrics = group.flush_metrics()
    for seed, learner in enumerate(alone):
        theirs = learner.flush_metrics()
        assert metrics[seed].keys() == theirs.keys()
        assert metrics[seed]["num_updates"] == 40
        assert_same_streams(group.learners[seed], learner)


class CountedCapture:
    """Replay a function by calling it, and count the captures."""

    captures = 0

    def warm_up(self, function: Callable[[], None]) -> None:
        function()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        return function


def test_a_seed_that_loads_a_state_goes_on_from_there(as_on_a_gpu: None) -> None:
    """Loading replaces the optimizers' tensors; they are stacked again, and the update is captured again."""
    capture, group, other = CountedCapture(), SeedGroup(learners_of(SMALL)), learner_of(SMALL, seed=7)
    group.stack(capture)
    for number, captures in ((9, 1), (8, 1)):
        group.update_from_replay(number)
        assert capture.captures == captures
    for number in (9, 8):
        other.update_from_replay(number)
    group.learners[2].take_over(other)
    for each in (group, other):
        each.update_from_replay(6)
    assert capture.captures == 2
    ours = group.learners[2].trainer
    assert_close(list(ours.model.state_dict().values()), list(other.trainer.model.state_dict().values()))
    for name, optimizer in ours.optimizers.items():
        states = other.trainer.optimizers[name].state_dict()["state"]
        for place, state in optimizer.state_dict()["state"].items():
            assert_close(list(state.values()), list(states[place].values()))


def test_what_cannot_be_stacked_takes_turns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is logged once, and no update and no draw is lost."""

    def fail(*_: object) -> None:
        raise RuntimeError("no batching rule for an operation")

    monkeypatch.setattr(seeds_module, "stack_graph", fail)
    settings = SACSettings(hidden_units=16)
    group, alone = stacked_group(settings), learners_of(settings)
    with caplog.at_level(logging.WARNING):
        group.update_from_replay(5)
        group.update_from_replay(2)
    assert caplog.messages == [
        "The seeds take turns: their updates cannot be stacked (no batching rule for an operation)."
    ]
    for ours, theirs in zip(group.learners, alone, strict=True):
        for number in (5, 2):
            theirs.update_from_replay(number)
        assert_bitwise(ours, theirs)
        assert_same_streams(ours, theirs)


def test_seeds_differ_in_nothing_else() -> None:
    learners = [learner_of(SACSettings(hidden_units=units), 0) for units in (16, 16, 8)]
    with pytest.raises(ValueError, match="settings of the seeds differ"):
        SeedGroup(learners[1:])
    learners[0].update_from_replay(1)
    group = SeedGroup(learners[:2])
    group.stack(None)
    with pytest.raises(ValueError, match="numbers of updates of the seeds differ"):
        group.update_from_replay(1)

"""Test compiled updates: equal to eager ones for every algorithm and kind, resumed bitwise, eager where they fail.

Inductor takes half a minute for an update, so most tests run what it would be given: the trace.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_hpo.algorithms.registry import find_settings, make_method
from rllib_hpo.errors import NonFiniteError
from rllib_hpo.kernels import products, q_networks
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.learning.trainer import Trainer
from rllib_hpo.settings import SACHPOSettings, SACSettings, Settings
from tests.kinds import OF_VECTORS
from tests.learning.options import OTHERS, SETTINGS

OBS, DIM, ROWS = 5, 3, 32
DIFFERENT = {
    name: SETTINGS[name]
    for name in ("sac, automatic temperature", "sac-nf", "sac-hpo, penalty", "sac-hpo, learned step size")
} | OTHERS
"""Settings whose updates differ most in their operations."""
FIRST = {type(settings): name for name, settings in reversed(DIFFERENT.items())}.values()
"""One of each algorithm."""


@pytest.fixture(autouse=True)
def operators_of_large_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use what large products and batches use."""
    monkeypatch.setattr(products, "WORTH_ONEDNN", 1)
    monkeypatch.setattr(q_networks, "ROWS_WORTH_SPLITTING", 2)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run traces as they are; returns them."""
    traces: list[Any] = []

    def keep(graph: Any, arguments: list[Tensor]) -> Callable[..., Any]:
        traces.append(graph)
        return graph

    monkeypatch.setattr("torch._inductor.compile", keep)
    return traces


def learner_of(settings: Settings, compile_update: bool) -> ReplayLearner:
    changes = {"train_batch_size_per_learner": ROWS, "replay_capacity": 500, "compile_update": compile_update}
    method = make_method(settings.model_copy(update=changes))
    learner = ReplayLearner(Trainer(method, method.make_model(OBS, DIM, seed=0)))
    if not compile_update:
        learner.trainer.update_in_bulk(None)
    layout = learner.trainer.layout
    rows = np.random.default_rng(0).normal(size=(300, layout.width)).astype(np.float32)
    rows[:, OBS : OBS + DIM] = np.tanh(rows[:, OBS : OBS + DIM])
    rows[:, OBS + DIM + 1] = rows[:, OBS + DIM + 1] > 1
    learner.add_transitions(rows)
    return learner


def compare_single_updates(settings: Settings, number: int) -> None:
    """Make single updates from `number` states that eager updates pass through."""
    eager, compiled = learner_of(settings, False), learner_of(settings, True)
    for learner in (eager, compiled):
        learner.update_from_replay(8)  # makes what kinds make on first use
    for k in range(number):
        with torch.no_grad():
            for ours, theirs in zip(compiled.trainer.tensors(), eager.trainer.tensors(), strict=True):
                ours.copy_(theirs)
        for learner in (eager, compiled):
            learner.update_from_replay(1)
        for ours, theirs in zip(compiled.trainer.tensors(), eager.trainer.tensors(), strict=True):
            distance = (ours - theirs).double().norm()
            assert distance <= 1e-4 * theirs.double().norm() + 1e-9, (k, theirs.shape, distance)
    assert compiled.flush_metrics() == pytest.approx(eager.flush_metrics(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings, id=name, marks=[] if name in FIRST else pytest.mark.exhaustive)
        for name, settings in DIFFERENT.items()
    ],
)
def test_traced_updates_equal_eager_ones(settings: Settings, uncompiled: list[Any]) -> None:
    compare_single_updates(settings, 7)
    kinds = {make_method(settings).kind(k) for k in range(1, 16)}
    assert len(uncompiled) == len(kinds)


@pytest.mark.slow
def test_compiled_updates_equal_eager_ones(caplog: pytest.LogCaptureFixture) -> None:
    compare_single_updates(SETTINGS["sac-hpo"], 200)
    assert [record.message for record in caplog.records if record.name.startswith("rllib_hpo")] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("settings", (SETTINGS | OTHERS).values(), ids=SETTINGS | OTHERS)
def test_compiled_updates_of_every_option_equal_eager_ones(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    compare_single_updates(settings, 200)
    assert [record.message for record in caplog.records if record.name.startswith("rllib_hpo")] == []


def test_every_algorithm_is_among_those_compared() -> None:
    compared = {type(settings) for settings in DIFFERENT.values()} | {SACSettings}
    assert compared >= {find_settings(name) for name in OF_VECTORS}


def test_a_resumed_learner_goes_on_bitwise(uncompiled: list[Any]) -> None:
    """No update is made eagerly first, so it does not matter where a run was interrupted."""
    whole, begun, resumed = (learner_of(SACHPOSettings(hidden_units=16), True) for _ in range(3))
    whole.update_from_replay(9)
    begun.update_from_replay(4)
    resumed.take_over(begun)
    resumed.update_from_replay(5)
    assert len(uncompiled) == 3
    for ours, theirs in zip(resumed.trainer.tensors(), whole.trainer.tensors(), strict=True):
        if ours.dim():  # sums of metrics begin at a resume
            assert torch.equal(ours, theirs)


def test_what_fails_to_compile_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is logged once, no update is lost, and none is made twice."""

    def fail(*_: object) -> None:
        raise RuntimeError("\nCppCompileError: g++ is not there\ndetails")

    monkeypatch.setattr("torch._inductor.compile", fail)
    failing, eager = (learner_of(SACSettings(hidden_units=16), wanted) for wanted in (True, False))
    for learner in (failing, eager):
        learner.update_from_replay(40)
    assert caplog.messages == ["Updates are not compiled: CppCompileError: g++ is not there."]
    for ours, theirs in zip(failing.trainer.tensors(), eager.trainer.tensors(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_damaged_cache_does_not_keep_updates_from_being_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that is killed while it compiles leaves half a library, which every later one would find."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def compiled(graph: Any, arguments: list[Tensor]) -> Any:
        if os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path):
            raise ImportError("a.main.so: file too short")
        return graph

    monkeypatch.setattr("torch._inductor.compile", compiled)
    learner = learner_of(SACSettings(hidden_units=16), True)
    learner.update_from_replay(2)
    assert caplog.messages == []
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


def test_it_is_compiled_again_when_a_learning_rate_changes(uncompiled: list[Any]) -> None:
    learner = learner_of(SACSettings(hidden_units=16), True)
    learner.update_from_replay(3)
    for group in learner.trainer.optimizers["critic"].param_groups:
        group["lr"] = 0.0
    before = [parameter.clone() for parameter in learner.trainer.model.critics.parameters()]
    learner.update_from_replay(3)
    assert len(uncompiled) == 2
    after = list(learner.trainer.model.critics.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_loss_that_is_not_finite_changes_nothing(uncompiled: list[Any]) -> None:
    learner = learner_of(SACSettings(hidden_units=16), True)
    learner.update_from_replay(3)
    before = [parameter.clone() for parameter in learner.trainer.model.parameters()]
    learner.replay.rows[:] = float("nan")
    learner.update_from_replay(2)
    after = list(learner.trainer.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with pytest.raises(NonFiniteError, match="critic loss is not finite at update 4"):
        learner.flush_metrics()


def test_a_trace_holds_none_of_its_arguments(uncompiled: list[Any]) -> None:
    """Else torch finds each twice, and prepares for memory that they share in every call."""
    learner_of(SETTINGS["sac, automatic temperature"], True).update_from_replay(8)
    assert uncompiled
    for trace in uncompiled:
        assert [*trace.parameters(), *trace.buffers()] == []
        assert not [value for value in vars(trace).values() if isinstance(value, Tensor)]

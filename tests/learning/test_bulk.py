"""Test updates in bulk: equal to eager ones, recaptured when tensors move, frozen by a non-finite loss.

On a CPU a capture calls the function itself; everything else runs as on a GPU.
"""

from __future__ import annotations

import copy
import logging
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.algorithms.sac import SoftActorCriticModel
from rllib_hpo.errors import NonFiniteError
from rllib_hpo.kernels import products, q_networks
from rllib_hpo.learning.graph import WARM_UPS, Capture, CudaGraphCapture, make_capture
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.learning.trainer import Trainer
from rllib_hpo.optim.guards import DeviceGuard
from rllib_hpo.replay import ring as replay_module
from rllib_hpo.replay.feed import RowFeed
from rllib_hpo.replay.layout import Batch, RowLayout
from rllib_hpo.replay.ring import Replay, fits
from rllib_hpo.settings import SACHPOSettings, SACSettings, Settings
from tests.devices import DEVICES, on_a_gpu
from tests.learning.options import OTHERS, SETTINGS

OBS, DIM, ROWS = 5, 3, 32
LAYOUT = RowLayout(OBS, DIM)
CHANGES: dict[str, Any] = {
    "train_batch_size_per_learner": ROWS,
    "replay_capacity": 500,
    "diagnostics_interval": 7,
}

DIFFERENT = {
    name: SETTINGS[name]
    for name in (
        "sac, automatic temperature",
        "sac-nf",
        "sac-hpo",
        "sac-hpo, penalty",
        "sac-hpo, learned step size",
        "sac-hpo, target critics in the objective",
    )
} | OTHERS
"""Settings whose updates differ most in their operations."""


class DirectCapture:
    """Replay a function by calling it, and count the calls."""

    def __init__(self, error: str = "") -> None:
        self.warm_ups, self.captures, self._error = 0, 0, error

    def warm_up(self, function: Callable[[], None]) -> None:
        self.warm_ups += 1
        function()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        if self._error:  # and then, as with torch, a second one
            try:
                raise RuntimeError(self._error)
            except RuntimeError as error:
                raise RuntimeError("operation failed due to a previous error during capture") from error
        return function


def _learner(settings: Settings, capture: Capture | None = None, device: str = "cpu") -> ReplayLearner:
    """Make a learner, in bulk if it gets a capture, else with one update after the other."""
    settings = settings.model_copy(update=CHANGES)
    method = make_method(settings)
    trainer = Trainer(method, method.make_model(OBS, DIM, seed=0).to(device))
    if capture is None:
        trainer.bulk = None
    else:
        trainer.update_in_bulk(capture)
    learner = ReplayLearner(trainer)
    learner.add_transitions(_rows(300, layout=trainer.layout))
    return learner


def _rows(num: int, seed: int = 0, layout: RowLayout = LAYOUT) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num, layout.width)).astype(np.float32)
    rows[:, OBS : OBS + DIM] = np.tanh(rows[:, OBS : OBS + DIM])
    rows[:, OBS + DIM + 1] = rows[:, OBS + DIM + 1] > 1
    return rows


def _tensors(learner: ReplayLearner) -> dict[str, Tensor]:
    """Return every parameter, target and optimizer state."""
    trainer = learner.trainer
    found = {f"model.{name}": value for name, value in trainer.model.state_dict().items()}
    for kind, optimizer in trainer.optimizers.items():
        for k, state in optimizer.state_dict()["state"].items():
            found |= {f"{kind}.{k}.{name}": value for name, value in state.items()}
    return {name: value.detach().cpu().clone() for name, value in found.items()}


def _capture(device: str) -> Capture:
    return CudaGraphCapture(torch.device(device)) if device == "cuda" else DirectCapture()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", DIFFERENT.values(), ids=DIFFERENT)
def test_updates_in_bulk_equal_eager_ones(settings: Settings, device: str) -> None:
    """With equal batches and noise, every parameter, target and optimizer state agrees after many updates.

    On a CPU they agree bitwise if eager updates are guarded too. Otherwise target critics differ by rounding: they
    change by target + tau (online - target) under a guard that may freeze them, and by one `lerp` without.
    """
    eager, bulk = _learner(settings, None, device), _learner(settings, _capture(device), device)
    guarded = _learner(settings, None, device)
    guarded.trainer.guard_with(DeviceGuard(guarded.trainer.device))
    generator = torch.Generator().manual_seed(0)
    draws, num_kinds = eager.trainer.draws, len(set(eager.trainer.kinds(6)))
    for k in range(60 if device == "cpu" else 200):
        layout = bulk.trainer.layout
        batch = layout.unpack(torch.from_numpy(_rows(ROWS, seed=k, layout=layout)).to(device))
        noise = {
            name: torch.randn((draw.rows * ROWS, *draw.shape), generator=generator).to(device)
            for name, draw in draws.items()
        }
        for learner in (eager, guarded):
            kinds = learner.trainer.kinds(1)
            learner.trainer.update(batch, noise, *kinds)
            learner.trainer.count(kinds, lambda batch=batch, noise=noise: (batch, noise))
        _update_in_bulk(bulk, batch, noise)
    assert bulk.trainer.bulk is not None
    assert bulk.trainer.bulk.num_captures == num_kinds
    if device == "cpu":
        ours, theirs = _tensors(bulk), _tensors(guarded)
        assert [name for name, value in theirs.items() if not torch.equal(ours[name], value)] == []
    _assert_close(bulk, eager)


@on_a_gpu
@pytest.mark.parametrize("settings", DIFFERENT.values(), ids=DIFFERENT)
def test_a_graph_that_draws_from_the_replay_equals_eager_updates(settings: Settings) -> None:
    """It makes 200 updates from equal streams, 32 at a time as in production."""
    eager, graph = (_learner(settings, _capture("cuda"), "cuda") for _ in range(2))
    eager.trainer.update_in_bulk(None)
    for learner in (eager, graph):
        learner.update_from_replay(200)
    assert graph.trainer.bulk is not None
    assert graph.trainer.bulk.num_captures == len(set(graph.trainer.kinds(6)))
    _assert_close(graph, eager)


def _assert_close(one: ReplayLearner, other: ReplayLearner) -> None:
    """Compare parameters, targets, optimizer states and metrics to float32's accuracy after some hundred updates.

    The tolerance on a CPU is a few roundings of a tensor's largest value. The largest difference of any settings was
    3e-6 of it, for Langevin flows, which measure distances between nearly equal actions; 4e-7 without them. A GPU may
    sum products in another order and in TF32; its tolerance is not measured and may be too large.
    """
    ours, theirs, on_cpu = _tensors(one), _tensors(other), one.trainer.device.type == "cpu"
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        rounding = float(40 * torch.finfo(torch.float32).eps * value.abs().max())
        rtol, atol = (0.0, rounding) if on_cpu else (2e-3, 2e-5)
        torch.testing.assert_close(
            ours[name], value, rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
        )
    first, second = one.flush_metrics(), other.flush_metrics()
    assert first.keys() == second.keys()
    # A gain in Q is a difference of sums, and loses digits.
    assert first == pytest.approx(second, rel=1e-5 if on_cpu else 1e-3, abs=1e-6 if on_cpu else 1e-4)


def _update_in_bulk(learner: ReplayLearner, batch: Batch, noise: dict[str, Tensor]) -> None:
    """Make one captured update, with this batch and noise in place of the drawn ones."""
    bulk, trainer = learner.trainer.bulk, learner.trainer
    assert bulk is not None
    draw = RowFeed.draw_noise

    def inject(feed: RowFeed, num: int, streams: Any) -> None:
        draw(feed, num, streams)
        for name, value in noise.items():
            feed._noise[name][0] = value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowFeed, "draw_noise", inject)
        trainer.learn(batch)


@pytest.mark.parametrize("device", DEVICES)
def test_batches_come_from_the_replay(device: str) -> None:
    """Bulk updates draw the same rows as single ones, and the host the same as the device."""
    settings = SACSettings(hidden_units=16)
    bulk, seen = _learner(settings, DirectCapture(), device), []
    update = bulk.trainer.update

    def observed(batch: Batch, noise: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
        seen.append(batch.obs.cpu().clone())
        return update(batch, noise, kind)

    bulk.trainer.update = observed  # type: ignore[method-assign]
    bulk.update_from_replay(50)
    streams, replay = _learner(settings).trainer.streams, Replay(LAYOUT, 500)
    replay.add(_rows(300))
    expected = [replay.gather(replay.draw_indices(ROWS, streams["replay"])).obs for _ in range(50)]
    assert len(seen) == 50
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_a_replay_on_the_host_feeds_the_same_updates() -> None:
    """They agree bitwise with updates on rows gathered by the device."""
    settings = SACHPOSettings(hidden_units=16)
    on_device, on_host = _learner(settings, DirectCapture()), _learner(settings, DirectCapture())
    on_device.update_from_replay(40)
    bulk = on_host.trainer.bulk
    assert bulk is not None
    feed = RowFeed(LAYOUT, on_host.trainer.draws, ROWS, 32, torch.device("cpu"))
    for num in (7, 7, 7, 7, 7, 5):
        feed.draw(on_host.replay, num, on_host.trainer.streams)
        bulk._run(feed, num)
    ours, theirs = _tensors(on_host), _tensors(on_device)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert on_host.flush_metrics() == on_device.flush_metrics()


def test_the_host_counts_and_describes_as_ever() -> None:
    learner = _learner(SACHPOSettings(hidden_units=16), DirectCapture())
    learner.update_from_replay(6)
    assert learner.latest_diagnostics() == {}
    learner.update_from_replay(30)
    assert learner.trainer.num_updates == 36
    assert "displacement" in learner.latest_diagnostics()
    metrics = learner.flush_metrics()
    assert metrics["num_updates"] == 36
    assert metrics["alpha"] == pytest.approx(0.2)
    assert "critic_loss" not in learner.flush_metrics()


def test_it_is_captured_anew_when_settings_change_or_tensors_move() -> None:
    capture = DirectCapture()
    learner = _learner(SACSettings(hidden_units=16), capture)
    learner.update_from_replay(20)
    assert (capture.warm_ups, capture.captures) == (WARM_UPS, 1)
    learner.update_from_replay(20)
    assert capture.captures == 1
    for group in learner.trainer.optimizers["critic"].param_groups:
        group["lr"] = 1e-3
    learner.update_from_replay(20)
    assert (capture.warm_ups, capture.captures) == (2 * WARM_UPS, 2)
    optimizer = learner.trainer.optimizers["policy"]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    learner.update_from_replay(20)
    assert capture.captures == 3
    learner.replay._rows = learner.replay.rows.clone()
    learner.update_from_replay(20)
    assert capture.captures == 4


def test_what_cannot_be_captured_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    """The reason is logged once, and no update is lost."""
    capture = DirectCapture(error="operation not permitted when stream is capturing\ndetails")
    learner, other = (
        _learner(SACSettings(hidden_units=16), capture),
        _learner(SACSettings(hidden_units=16), DirectCapture()),
    )
    for core in (learner, other):
        core.update_from_replay(50)
    assert capture.captures == 1
    assert caplog.messages == [
        "Updates run without a CUDA graph: operation not permitted when stream is capturing."
    ]
    ours, theirs = _tensors(learner), _tensors(other)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@on_a_gpu
def test_a_capture_that_fails_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    """Eager updates and other captures continue, memory is released, and the default generator still draws."""
    settings = SACSettings(hidden_units=16)
    other = _learner(settings, _capture("cuda"), "cuda")
    other.update_from_replay(50)
    torch.manual_seed(0)
    expected = torch.randn(3, device="cuda")
    torch.manual_seed(0)
    learner = _learner(settings, _capture("cuda"), "cuda")
    update = learner.trainer.update

    def waiting(batch: Batch, noise: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
        metrics = update(batch, noise, kind)
        metrics["critic_loss"].item()
        return metrics

    learner.trainer.update = waiting  # type: ignore[method-assign]
    learner.update_from_replay(50)
    assert len(caplog.messages) == 1
    assert "captur" in caplog.messages[0]
    assert "previous error" not in caplog.messages[0]
    assert torch.equal(torch.randn(3, device="cuda"), expected)
    other.update_from_replay(50)
    learner.update_from_replay(50)
    assert (other.trainer.bulk.num_captures, learner.trainer.bulk.num_captures) == (1, 0)
    _assert_close(learner, other)
    third = _learner(settings, _capture("cuda"), "cuda")
    third.update_from_replay(100)
    assert third.trainer.bulk is not None
    assert third.trainer.bulk.num_captures == 1
    torch.empty(2**30, device="cuda")
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < 2**30


class Operations(TorchDispatchMode):
    """Collect the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [*SETTINGS.values(), *OTHERS.values()], ids=[*SETTINGS, *OTHERS])
def test_a_captured_update_asks_for_no_value(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, it reads no value back, has no value-dependent shape, and copies none from the host."""
    monkeypatch.setattr(q_networks, "separate", lambda w, b: [q_networks.Layers(list(w), list(b))])
    monkeypatch.setattr(products, "HAS_ONEDNN", False)
    capture = DirectCapture()
    learner = _learner(settings, capture)
    learner.update_from_replay(12)
    assert capture.captures == len(set(learner.trainer.kinds(6)))
    trainer, found = learner.trainer, Operations()
    assert trainer.bulk is not None
    repeated = trainer.bulk._repeated
    assert repeated is not None
    with found:
        repeated.run(trainer.kinds(2))
    assert "aten._fused_adam_" in found.names
    forbidden = {
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "lift_fresh",
        "_unique2",
        "randn",
        "randint",
    }
    assert not {f"aten.{name}" for name in forbidden} & found.names


def test_why_nothing_is_captured_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The reason is a setting or several learners, logged at the level of a failed capture."""
    assert make_capture(SACSettings(cuda_graph=False), torch.device("cuda")) is None
    assert make_capture(SACSettings(), torch.device("cuda"), num_learners=2) is None
    assert [message.rsplit(": ", 1)[1] for message in caplog.messages] == [
        "cuda_graph=False.",
        "2 learners average their gradients.",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@on_a_gpu
def test_a_gpu_gets_graphs_without_being_asked() -> None:
    """By default 200 updates are captured in one call on a GPU; with cuda_graph=False none is."""
    for wanted in (True, False):
        settings = SACHPOSettings(hidden_units=16, cuda_graph=wanted).model_copy(update=CHANGES)
        model = SoftActorCriticModel(OBS, DIM, settings, seed=0).to("cuda")
        trainer = Trainer(make_method(settings), model, seed=0)
        learner = ReplayLearner(trainer)
        learner.add_transitions(_rows(300))
        learner.update_from_replay(200)
        assert trainer.bulk is not None
        assert trainer.bulk.num_captures == int(wanted)
        assert learner.flush_metrics()["num_updates"] == 200


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("alpha", [0.2, "auto"])
@pytest.mark.parametrize("bad_update", [1, 12])
def test_a_loss_that_is_not_finite_freezes(device: str, alpha: Any, bad_update: int) -> None:
    """From then on nothing changes, bitwise; the next check names the loss and its update."""
    learner = _learner(SACSettings(hidden_units=16, alpha=alpha), _capture(device), device)
    for k in range(bad_update - 1):
        learner.trainer.learn(LAYOUT.unpack(torch.from_numpy(_rows(ROWS, seed=k)).to(device)))
    learner.check_finite()
    before = _tensors(learner)
    rows = torch.from_numpy(_rows(ROWS, seed=100)).to(device)
    rows[3, OBS + DIM] = float("inf")
    learner.trainer.learn(LAYOUT.unpack(rows))
    learner.update_from_replay(30)
    after = _tensors(learner)
    for name, value in after.items():
        # A state that the first update makes starts at zero.
        torch.testing.assert_close(value, before.get(name, torch.zeros_like(value)), rtol=0, atol=0)
    for look in (learner.check_finite, learner.flush_metrics):
        with pytest.raises(NonFiniteError, match=f"The critic loss is not finite at update {bad_update}$"):
            look()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("alpha", [0.2, "auto"])
def test_a_policy_loss_that_is_not_finite_freezes_what_follows(device: str, alpha: Any) -> None:
    """The critics have taken their step by then, as they have when an error is raised at once."""
    learner = _learner(SACSettings(hidden_units=16, alpha=alpha), _capture(device), device)
    learner.update_from_replay(11)
    before = _tensors(learner)
    noise = torch.zeros(2 * ROWS, DIM, device=device)
    noise[ROWS:] = float("nan")
    _update_in_bulk(learner, LAYOUT.unpack(torch.from_numpy(_rows(ROWS)).to(device)), {"base": noise})
    frozen = _tensors(learner)
    changed = {name for name, value in frozen.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("critic.", "model.critics.")) for name in changed)
    learner.update_from_replay(30)
    assert all(torch.equal(value, frozen[name]) for name, value in _tensors(learner).items())
    with pytest.raises(NonFiniteError, match=r"The policy loss is not finite at update 12$"):
        learner.flush_metrics()


@pytest.mark.parametrize("in_bulk", [True, False])
def test_a_restored_run_knows_nothing_of_what_was_before(in_bulk: bool) -> None:
    """It reports what it would have reported, also after a non-finite loss."""
    settings = SACHPOSettings(hidden_units=16)
    good, bad = (_learner(settings, DirectCapture() if in_bulk else None) for _ in range(2))
    good.update_from_replay(15)
    good.flush_metrics()
    bad.update_from_replay(8)
    rows = torch.from_numpy(_rows(ROWS))
    rows[3, OBS + DIM] = float("inf")

    def learn_and_look() -> None:
        bad.trainer.learn(LAYOUT.unpack(rows))
        bad.latest_diagnostics()

    with pytest.raises(NonFiniteError):
        learn_and_look()
    bad.take_over(good)
    for learner in (good, bad):
        learner.update_from_replay(5)
    assert bad.flush_metrics() == good.flush_metrics()


def test_a_replay_grows_where_memory_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It doubles up to its capacity, and holds the same rows as a replay of full size."""
    whole = Replay(LAYOUT, 100)
    monkeypatch.setattr(replay_module, "FIRST_ROWS", 8)
    monkeypatch.setattr(Replay, "_grows", lambda self, device: True)
    replay = Replay(LAYOUT, 100)
    sizes = []
    for k in range(15):
        for ring in (replay, whole):
            ring.add(_rows(9, seed=k))
        sizes.append(len(replay.rows))
    assert sizes == [13, 25, 50, 50, 50, *[100] * 10]
    assert all(np.array_equal(a, b) for a, b in zip(replay.read(35, 135), whole.read(35, 135), strict=True))


class Ledger:
    """Count the existing rows of replays, from allocation to release."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held = self.most = 0
        monkeypatch.setattr(Replay, "_grows", lambda _, device: True)
        monkeypatch.setattr(Replay, "_new_rows", self._allocate)

    def _allocate(self, num_rows: int, device: torch.device) -> Tensor:
        self.held += num_rows
        self.most = max(self.most, self.held)
        rows = torch.empty((num_rows, 1), device="meta")
        weakref.finalize(rows, self._release, num_rows)
        return rows

    def _release(self, num_rows: int) -> None:
        self.held -= num_rows


CAPACITIES = [
    *range(1, 40),
    *(near + 65_536 * factor for factor in (1, 2, 3, 15, 16) for near in (-1, 0, 1)),
    *(100_000, 500_001, 1_000_000, 1_100_000, 3_000_000, 12_345_679),
]


@pytest.mark.parametrize("first", [1, 7, 65_536])
def test_growing_takes_half_as_much_again_and_no_more(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For single rows, large blocks and any capacity, the peak equals the room that was checked."""
    monkeypatch.setattr(replay_module, "FIRST_ROWS", first)
    for capacity in CAPACITIES:
        for block in {1, capacity // 3 + 1, capacity}:
            ledger = Ledger(monkeypatch)
            replay, places = Replay(LAYOUT, capacity), 0
            assert len(replay.rows) <= first
            while places < capacity:
                # The next block that there is no place for.
                places = min(capacity, max(places + block, len(replay.rows) + 1))
                replay._make_room(places)
                assert len(replay.rows) >= places
            assert len(replay.rows) == ledger.held == capacity
            assert ledger.most <= replay_module.most_rows(capacity) <= 1.5 * capacity + 0.5
            if block == 1:
                assert ledger.most == replay_module.most_rows(capacity)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_arrive_in_pieces(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Staging passes any number at a time, also around the end of the ring."""
    monkeypatch.setattr(replay_module, "STAGED_ROWS", 4)
    whole = Replay(LAYOUT, 50)
    staged = Replay(LAYOUT, 50, device)
    for k, num in enumerate((3, 0, 4, 9, 30, 1, 17, 120, 8)):
        whole.add(_rows(num, seed=k))
        with monkeypatch.context() as patch:
            patch.setattr(Replay, "_is_staged", lambda self, device: True)
            staged.add(_rows(num, seed=k))
    assert np.array_equal(np.concatenate(staged.read(142, 192)), np.concatenate(whole.read(142, 192)))


@on_a_gpu
def test_adding_rows_does_not_wait_for_the_device() -> None:
    """torch reports no synchronisation for rows and indices of an update, between two diagnoses."""
    learner = _learner(SACSettings(hidden_units=16), _capture("cuda"), "cuda")
    learner.update_from_replay(70)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for k in range(5):
            learner.add_transitions(_rows(3, seed=k))
            learner.update_from_replay(1)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_memory_is_taken_as_rows_arrive() -> None:
    """A replay of 4 GB with a hundred used rows takes a few pages."""
    before = _resident_bytes()
    replay = Replay(RowLayout(500, 0), 1_000_000)
    replay.add(np.ones((100, replay.layout.width), np.float32))
    assert replay.rows.nbytes > 4e9
    assert _resident_bytes() - before < 50e6


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("needed", "free", "expected"), [(60, 80, True), (70, 80, True), (71, 80, False), (11, 20, False)]
)
def test_what_fits(needed: int, free: int, expected: bool) -> None:
    """A tenth of the device stays free."""
    assert fits(needed, free, 100) is expected


@pytest.mark.parametrize(
    ("share", "reserved", "expected"),
    [(1.0, 0, "cuda"), (0.5, 0, "cuda"), (0.25, 0, "cpu"), (0.5, 30, "cpu")],
)
def test_a_replay_keeps_to_its_share_of_a_gpu(
    share: float, reserved: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of memory for 100 rows, 80 are usable: for 20 rows, which take half as much again when they grow."""
    layout = RowLayout(OBS, DIM)
    row = layout.num_bytes
    monkeypatch.setattr(replay_module, "FIRST_ROWS", 10)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * row, 100 * row))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda index: share)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved * row)
    assert replay_module._with_room(layout, 20, torch.device("cuda:0")).type == expected

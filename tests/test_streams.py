"""Test named random streams: independent of each other, equal for equal names, resumable."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from rllib_hpo.streams import TorchStreams, numpy_generator, seed_sequence, torch_generator
from tests.devices import on_a_gpu

NAMES: list[tuple[Any, ...]] = [
    (0, "runner", 0, 0, "explore"),
    (0, "runner", 0, 1, "explore"),
    (0, "runner", 1, 0, "explore"),
    (0, "runner", 0, 0, "warmup"),
    (0, "learner", "replay"),
    (0, "evaluation", 0),
    (0, "evaluation", 1),
    (1, "evaluation", 0),
    (1, "runner", 0, 0, "explore"),
    (0, "explore", "runner", 0, 0),
]


def test_streams_of_different_names_differ() -> None:
    draws = [torch.randn(4, generator=torch_generator(*names)) for names in NAMES]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(draws, 2))


@pytest.mark.parametrize("names", NAMES)
def test_a_name_always_means_the_same_stream(names: tuple[Any, ...]) -> None:
    one, other = (torch.randn(4, generator=torch_generator(*names)) for _ in range(2))
    assert torch.equal(one, other)
    first, second = (numpy_generator(*names).random(4) for _ in range(2))
    assert np.array_equal(first, second)


def test_streams_do_not_depend_on_the_process() -> None:
    """Words are hashed by CRC, not by Python's `hash`, which differs between processes."""
    assert seed_sequence(7, "evaluation", 3).generate_state(2).tolist() == [4069181259, 2606962738]


def test_nothing_draws_from_the_global_generator() -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    torch.randn(3, generator=TorchStreams(0, "a")["b"])
    numpy_generator(0, "a").random()
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


def test_the_state_continues_every_stream() -> None:
    streams = TorchStreams(5, "learner")
    torch.randn(7, generator=streams["replay"])
    torch.randint(9, (5,), generator=streams["base"])
    state = streams.get_state()
    expected = [torch.randn(6, generator=streams[name]) for name in ("replay", "base", "unused")]
    other = TorchStreams(5, "learner")
    torch.randn(1, generator=other["replay"])
    torch.randn(1, generator=other["unused"])
    other.set_state(state)
    for name, numbers in zip(("replay", "base", "unused"), expected, strict=True):
        assert torch.equal(torch.randn(6, generator=other[name]), numbers), name


def test_a_stream_of_another_kind_of_device_starts_afresh(caplog: pytest.LogCaptureFixture) -> None:
    """Like a stream that joins, it repeats neither its beginning nor its draws after another such change."""
    streams = TorchStreams(5, "learner")
    torch.randn(7, generator=streams["replay"])
    state = streams.get_state()
    expected = torch.randn(6, generator=streams["replay"])
    draws = [torch.randn(6, generator=TorchStreams(5, "learner")["base"])]
    for position in (1, 2, 2):
        other = TorchStreams(5, "learner")
        other.set_state({**state, "base": np.full(16, position, np.uint8)})  # as long as a GPU's
        draws.append(torch.randn(6, generator=other["base"]))
        assert torch.equal(torch.randn(6, generator=other["replay"]), expected)
    beginning, one, two, again = draws
    assert not torch.equal(one, beginning)
    assert not torch.equal(one, two)
    assert torch.equal(two, again)
    assert "another kind of device: base." in caplog.messages[0]


@on_a_gpu
@pytest.mark.parametrize(("saved_on", "loaded_on"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_streams_cross_between_devices(saved_on: str, loaded_on: str) -> None:
    streams = TorchStreams(5, "learner", device=saved_on, on_host=("replay",))
    for name in ("replay", "base"):
        torch.randn(7, generator=streams[name], device=streams[name].device)
    other = TorchStreams(5, "learner", device=loaded_on, on_host=("replay",))
    other.set_state(streams.get_state())
    for name in ("replay", "base"):
        one, two = (torch.randn(6, generator=s[name], device=s[name].device).cpu() for s in (streams, other))
        assert torch.equal(one, two) is (name == "replay" or saved_on == loaded_on)


def test_a_stream_does_not_notice_the_others() -> None:
    alone = torch.randn(4, generator=TorchStreams(5, "learner")["base"])
    streams = TorchStreams(5, "learner")
    torch.randn(100, generator=streams["momentum"])
    assert torch.equal(torch.randn(4, generator=streams["base"]), alone)

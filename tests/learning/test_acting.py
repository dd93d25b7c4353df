"""Test acting on a device with noise drawn on the host, as a run in one process does.

The device "meta" replaces the GPU. It computes nothing; the tests check for what a GPU would reject.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from rllib_hpo.algorithms.sac import SamplerActor
from rllib_hpo.samplers.base import draw_noise, zero_noise
from rllib_hpo.settings import ActorCriticSettings, SACHPOSettings
from rllib_hpo.streams import TorchStreams
from tests.devices import on_a_gpu
from tests.learning.options import SETTINGS

OBS, DIM = 5, 3
COPIES = ("aten._to_copy", "aten.copy_")


class OneDevice(TorchDispatchMode):
    """Reject what a GPU rejects: a generator, or an operand that is not a scalar, of another device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        generator, device = kwargs.get("generator"), kwargs.get("device")
        if generator is not None and device is not None and generator.device != torch.device(device):
            raise RuntimeError(f"{func}: a generator on {generator.device} for numbers on {device}")
        operands = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        devices = {value.device for value in operands if value.ndim or value.device.type != "cpu"}
        if len(devices) > 1 and str(func.overloadpacket) not in COPIES:
            raise RuntimeError(f"{func}: operands on {devices}")
        return func(*args, **kwargs)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("explores", [True, False])
def test_networks_on_a_device_act_with_streams_of_the_host(
    settings: ActorCriticSettings, explores: bool
) -> None:
    actor, streams = SamplerActor(OBS, DIM, settings, seed=0).to("meta"), TorchStreams(0, "runner")
    with OneDevice():
        action = actor.act(torch.zeros(4, OBS).to("meta"), streams if explores else None)
    assert (action.device.type, tuple(action.shape)) == ("meta", (4, DIM))


def whole_draw(actor: SamplerActor, obs: Tensor, streams: TorchStreams | None) -> Tensor:
    """Return the actions of a draw with its log-density, as losses get them, by autograd's operations."""
    noise = (
        zero_noise(actor.sampler, len(obs))
        if streams is None
        else draw_noise(actor.sampler, len(obs), streams)
    )
    return actor.sample(obs, noise, "train" if streams is None else "explore").action.detach()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("rows", [1, 3])
def test_acting_leaves_out_only_what_losses_need(settings: ActorCriticSettings, rows: int) -> None:
    """Actions are those of whole draws, also after weights were loaded or moved, which no earlier action keeps."""
    actor, other = (SamplerActor(OBS, DIM, settings, seed) for seed in (0, 1))
    obs = torch.randn(rows, OBS, generator=torch.Generator().manual_seed(2))
    changes: list[Callable[[], Any]] = [
        lambda: None,
        lambda: actor.load_state_dict(other.state_dict()),
        lambda: actor.load_state_dict(SamplerActor(OBS, DIM, settings, 3).state_dict(), assign=True),
        actor.double,
    ]
    for change in changes:
        change()
        given = obs.to(actor.log_alpha.dtype)
        for explores in (True, False):
            streams = [TorchStreams(0, "runner") if explores else None for _ in range(2)]
            expected = whole_draw(actor, given, streams[0])
            torch.testing.assert_close(actor.act(given, streams[1], {}), expected, rtol=2e-6, atol=2e-6)


def test_copies_and_pickles_act_by_their_own_weights() -> None:
    """What acting keeps of critics is neither copied nor pickled with them."""
    actor = SamplerActor(OBS, DIM, SACHPOSettings(hidden_units=16), seed=0)
    obs = torch.randn(1, OBS, generator=torch.Generator().manual_seed(2))
    before, size = actor.act(obs), len(pickle.dumps(actor))
    copied = copy.deepcopy(actor)
    with torch.no_grad():
        for parameter in copied.target_critics.parameters():
            parameter.neg_()
    assert torch.equal(actor.act(obs), before)
    assert not torch.equal(copied.act(obs), before)
    assert len(pickle.dumps(actor)) == size


@on_a_gpu
def test_the_noise_is_that_of_the_host() -> None:
    """It does not depend on the networks' device."""
    sampler = SamplerActor(OBS, DIM, SACHPOSettings(hidden_units=16), seed=0).sampler
    here = draw_noise(sampler, 4, TorchStreams(0, "runner"))
    there = draw_noise(sampler, 4, TorchStreams(0, "runner"), torch.device("cuda"))
    assert {value.device.type for value in there.values()} == {"cuda"}
    assert all(torch.equal(there[name].cpu(), value) for name, value in here.items())

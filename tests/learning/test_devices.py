"""Test that a GPU computes what a CPU computes: acting and updates, in float64, for every algorithm.

On a CPU the operations that a GPU gets are compared with those that a CPU gets.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.kernels import q_networks
from rllib_hpo.learning.trainer import Trainer
from rllib_hpo.optim.guards import DeviceGuard
from rllib_hpo.settings import Settings
from rllib_hpo.streams import TorchStreams
from tests.devices import GPU_MARKS
from tests.learning.options import OTHERS, SETTINGS

OBS, DIM, ROWS, UPDATES = 5, 3, 80, 6
ALL = {**SETTINGS, **OTHERS}
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.exhaustive),
    pytest.param("cuda", marks=GPU_MARKS),
]


def trainer_on(settings: Settings, device: str) -> Trainer:
    """Make a guarded trainer of a float64 model."""
    method = make_method(settings)
    trainer = Trainer(method, method.make_model(OBS, DIM, seed=0).double().to(device))
    trainer.bulk = None
    trainer.guard_with(DeviceGuard(trainer.device))
    return trainer


def update_number(trainer: Trainer, number: int) -> None:
    """Make an update with rows and noise that depend on its number alone."""
    generator = torch.Generator().manual_seed(number)
    rows = torch.randn(ROWS, trainer.layout.width, generator=generator, dtype=torch.float64)
    rows[:, OBS : OBS + DIM].tanh_()
    rows[:, OBS + DIM + 1] = (rows[:, OBS + DIM + 1] > 1).double()
    noise = {}
    for name, draw in trainer.draws.items():
        law = torch.randn if draw.law == "normal" else torch.rand
        drawn = law((draw.rows * ROWS, *draw.shape), generator=generator, dtype=torch.float64)
        noise[name] = drawn.to(trainer.device)
    batch = trainer.layout.unpack(rows.to(trainer.device))
    kinds = trainer.kinds(1)
    trainer.update(batch, noise, *kinds)
    trainer.count(kinds, lambda: (batch, noise))


def together(weights: list[Tensor], biases: list[Tensor]) -> list[q_networks.Layers]:
    return [q_networks.Layers(list(weights), list(biases))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", ALL.values(), ids=ALL)
def test_updates_are_those_of_a_cpu(settings: Settings, device: str) -> None:
    """After six updates of all kinds, every tensor agrees to float64's accuracy."""
    here, there = trainer_on(settings, "cpu"), trainer_on(settings, device)
    for number in range(UPDATES):
        update_number(here, number)
        with mock.patch.object(q_networks, "separate", together):
            update_number(there, number)
    for name, value in here.model.state_dict().items():
        torch.testing.assert_close(
            there.model.state_dict()[name].cpu(),
            value,
            rtol=1e-8,
            atol=1e-9,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", ALL.values(), ids=ALL)
def test_actions_are_those_of_a_cpu(settings: Settings, device: str) -> None:
    """Noise-free actions and exploration with noise of the host agree to float64's accuracy."""
    method = make_method(settings)
    obs = torch.randn(ROWS, OBS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actors = [method.make_actor(OBS, DIM, seed=0).double().to(where) for where in ("cpu", device)]
    for streams in (None, (TorchStreams(0, "runner"), TorchStreams(0, "runner"))):
        own = streams or (None, None)
        here = actors[0].act(obs, own[0])
        with mock.patch.object(q_networks, "separate", together):
            there = actors[1].act(obs.to(device), own[1])
        torch.testing.assert_close(there.cpu(), here, rtol=1e-8, atol=1e-9)

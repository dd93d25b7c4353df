"""Derive named, independent random streams from one run seed; checkpoints hold their states.

Streams never share a generator, so disabling one (such as the momentum) does not change any other draw.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_logger = logging.getLogger(__name__)


def seed_sequence(seed: int, *names: str | int) -> np.random.SeedSequence:
    """Return the seed sequence of the stream `names` of the run `seed`, independent of all others."""
    key = [zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names]
    return np.random.SeedSequence(entropy=seed, spawn_key=key)


def derived_seed(seed: int, *names: str | int) -> int:
    """Return a seed from 0 to 2**31 - 1, for libraries that take no seed sequence."""
    return int(seed_sequence(seed, *names).generate_state(1)[0] >> 1)


def torch_generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Make the torch generator of the stream `names` of the run `seed`."""
    generator = torch.Generator(device=device)
    generator.manual_seed(int(seed_sequence(seed, *names).generate_state(1, np.uint64)[0]))
    return generator


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Make the NumPy generator of the stream `names` of the run `seed`."""
    return np.random.Generator(np.random.PCG64(seed_sequence(seed, *names)))


class Draw(NamedTuple):
    """Random numbers of one update: (rows * B, *shape) for a batch of B transitions."""

    rows: int
    shape: tuple[int, ...]
    law: Literal["normal", "uniform"] = "normal"
    """Standard normal, or uniform in [0, 1)."""

    def fill(self, out: Tensor, generator: torch.Generator) -> None:
        """Draw into `out`, on the generator's device."""
        draw = torch.randn if self.law == "normal" else torch.rand
        draw(out.shape, generator=generator, out=out)


class TorchStreams:
    """Make torch generators by name, on first use, all derived from one seed.

    Args:
        seed: The run's seed.
        owner: Words that distinguish this owner's streams from another's, e.g. ("runner", 3).
        device: Device on which the generators draw.
        on_host: Names of streams that always draw on the CPU.
    """

    def __init__(
        self,
        seed: int,
        *owner: str | int,
        device: str | torch.device = "cpu",
        on_host: Collection[str] = (),
    ) -> None:
        self._seed, self._owner, self._device = seed, owner, torch.device(device)
        self._on_host = frozenset(on_host)
        self._generators: dict[str, torch.Generator] = {}

    def __getitem__(self, name: str) -> torch.Generator:
        if name not in self._generators:
            device = "cpu" if name in self._on_host else self._device
            self._generators[name] = torch_generator(self._seed, *self._owner, name, device=device)
        return self._generators[name]

    def get_state(self) -> dict[str, Any]:
        """Return the position of every stream used so far, as NumPy arrays."""
        return {name: generator.get_state().numpy().copy() for name, generator in self._generators.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the position of every stream in `state`; other streams start at their beginning.

        A stream saved on another kind of device gets a fresh sequence, since its state does not transfer. It repeats
        none of its earlier draws, on either device.
        """
        self._generators.clear()
        foreign = [name for name, value in state.items() if not self._set_state(name, value)]
        if foreign:
            _logger.warning(
                "Random streams are restarted on %s, since their saved states belong to another kind of device: %s.",
                self._device,
                ", ".join(foreign),
            )

    def _set_state(self, name: str, state: npt.NDArray[np.uint8]) -> bool:
        """Restore one stream; False if the state is of another kind of device, whose generators differ."""
        generator = self[name]
        if len(state) == generator.get_state().numel():
            generator.set_state(torch.tensor(state))
            return True
        position = zlib.crc32(state.tobytes())  # where it stopped, as streams that join at a step
        names = (*self._owner, name, position)
        self._generators[name] = torch_generator(self._seed, *names, device=generator.device)
        return False


def draw_all(draws: Mapping[str, Draw], batch_size: int, streams: TorchStreams) -> dict[str, Tensor]:
    """Draw the random numbers of one update, each from the stream of its name, on that stream's device."""
    noise = {}
    for name, draw in draws.items():
        generator = streams[name]  # torch draws only on the generator's own device
        noise[name] = torch.empty((draw.rows * batch_size, *draw.shape), device=generator.device)
        draw.fill(noise[name], generator)
    return noise

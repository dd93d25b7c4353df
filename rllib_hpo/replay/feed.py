"""Draw batches and noise of many updates into buffers at fixed addresses, for CUDA graphs to read.

The host fills the buffers for up to `capacity` updates and puts the slot back to the first; each update reads its slot
and moves it on, on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rllib_hpo.replay.frames import FrameLayout, FrameReplay
from rllib_hpo.replay.layout import Batch, RowLayout
from rllib_hpo.replay.ring import Replay
from rllib_hpo.replay.staging import Staging
from rllib_hpo.streams import Draw, TorchStreams


class Feed:
    """Noise of many updates; a subclass provides their batches.

    Args:
        layout: What a row of a batch holds.
        draws: The random numbers of one update, by name.
        batch_size: B.
        capacity: Updates to draw for at a time.
        device: Where updates are made.
    """

    def __init__(
        self,
        layout: RowLayout | FrameLayout,
        draws: Mapping[str, Draw],
        batch_size: int,
        capacity: int,
        device: torch.device,
    ) -> None:
        self._layout, self.device = layout, device
        self.batch_size, self.capacity = batch_size, capacity
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)
        self._draws = dict(draws)
        self._noise = {
            name: torch.empty((capacity, draw.rows * batch_size, *draw.shape), device=device)
            for name, draw in draws.items()
        }

    def draw_noise(self, num: int, streams: TorchStreams) -> None:
        """Draw noise for `num` updates and return to the first slot."""
        for name, noise in self._noise.items():
            self._draws[name].fill(noise[:num], streams[name])
        self._slot.zero_()

    def draw(self, replay: Replay | FrameReplay, num: int, streams: TorchStreams) -> None:
        """Draw batches of a replay and noise for `num` updates, and return to the first slot."""
        raise NotImplementedError

    def next(self) -> tuple[Batch, dict[str, Tensor]]:
        """Batch and noise of the next slot; can be captured."""
        batch = self._layout.unpack_parts(self.parts())
        noise = {name: noise.index_select(0, self._slot)[0] for name, noise in self._noise.items()}
        self._slot.add_(1)
        return batch, noise

    def last(self) -> tuple[Batch, dict[str, Tensor]]:
        """The result of the latest `next`."""
        self._slot.sub_(1)
        return self.next()

    def tensors(self) -> list[Tensor]:
        """All tensors that `next` reads; a graph is valid as long as none of them moves."""
        return [self._slot, *self._noise.values()]

    def parts(self) -> list[Tensor]:
        """The next batch as the layout's `parts`; can be captured."""
        raise NotImplementedError


class IndexFeed(Feed):
    """Gather batches in the update itself, from a replay on the same device."""

    def __init__(
        self,
        layout: RowLayout | FrameLayout,
        draws: Mapping[str, Draw],
        batch_size: int,
        capacity: int,
        device: torch.device,
    ) -> None:
        super().__init__(layout, draws, batch_size, capacity, device)
        self._replay: Replay | FrameReplay | None = None
        self._drawn = Staging((capacity, batch_size), torch.int64, device)
        self._indices = torch.zeros((capacity, batch_size), dtype=torch.int64, device=device)

    def draw(self, replay: Replay | FrameReplay, num: int, streams: TorchStreams) -> None:
        """Draw indices and noise for `num` updates."""
        self._replay = replay
        drawn = self._drawn.begin()
        for k in range(num):
            drawn[k] = replay.draw_indices(self.batch_size, streams["replay"])
        self._drawn.copy_to(self._indices[:num])
        self.draw_noise(num, streams)

    def tensors(self) -> list[Tensor]:
        """Tensors of every feed, and the rows of the replay, which move when it grows."""
        return [*super().tensors(), self._indices, *self._drawn_from.tensors()]

    def parts(self) -> list[Tensor]:
        """See `Feed.parts`."""
        return self._drawn_from.gather_parts(self._indices.index_select(0, self._slot)[0])

    @property
    def _drawn_from(self) -> Replay | FrameReplay:
        if self._replay is None:
            raise ValueError("nothing has been drawn yet")
        return self._replay


class RowFeed(Feed):
    """Batches gathered by the host: from a replay in its memory, or given ones."""

    def __init__(
        self,
        layout: RowLayout | FrameLayout,
        draws: Mapping[str, Draw],
        batch_size: int,
        capacity: int,
        device: torch.device,
    ) -> None:
        super().__init__(layout, draws, batch_size, capacity, device)
        formats = [((capacity, batch_size, part.width), part.dtype) for part in layout.parts]
        self._gathered = [Staging(shape, dtype, device) for shape, dtype in formats]
        self._parts = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in formats]

    def draw(self, replay: Replay | FrameReplay, num: int, streams: TorchStreams) -> None:
        """Gather batches of a replay in the host's memory, and draw noise, for `num` updates."""
        gathered = [staging.begin() for staging in self._gathered]
        for k in range(num):
            indices = replay.draw_indices(self.batch_size, streams["replay"])
            replay.gather_into([part[k] for part in gathered], indices)
        for staging, part in zip(self._gathered, self._parts, strict=True):
            staging.copy_to(part[:num])
        self.draw_noise(num, streams)

    def put(self, batch: Batch, streams: TorchStreams) -> None:
        """Store a given batch, and draw the noise of its update."""
        for column, value in zip(self._first().tensors(), batch.tensors(), strict=True):
            column.copy_(value)
        self.draw_noise(1, streams)

    def tensors(self) -> list[Tensor]:
        """Tensors of every feed, and the batches."""
        return [*super().tensors(), *self._parts]

    def _first(self) -> Batch:
        return self._layout.unpack_parts([part[0] for part in self._parts])

    def parts(self) -> list[Tensor]:
        """See `Feed.parts`."""
        return [part.index_select(0, self._slot)[0] for part in self._parts]


class StackedFeed:
    """Batches and noise of several seeds, stacked along a leading dimension.

    Each seed's feed still draws from its own replay and streams: into its slice of the stacked buffers.

    Args:
        feeds: A feed for each seed, of equal capacity; they share one slot from now on.
    """

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds, self._slot = feeds, feeds[0]._slot
        self._noise = {name: torch.stack([feed._noise[name] for feed in feeds]) for name in feeds[0]._noise}
        for seed, feed in enumerate(feeds):
            feed._slot = self._slot
            feed._noise = {name: noise[seed] for name, noise in self._noise.items()}

    def next(self) -> tuple[Batch, dict[str, Tensor]]:
        """Batches (N, B, ...) and noise (N, rows * B, ...) of the next slot; can be captured."""
        parts = zip(*(feed.parts() for feed in self.feeds), strict=True)
        batch = self.feeds[0]._layout.unpack_parts([torch.stack(part) for part in parts])
        noise = {name: noise.index_select(1, self._slot)[:, 0] for name, noise in self._noise.items()}
        self._slot.add_(1)
        return batch, noise

    def tensors(self) -> list[Tensor]:
        """All tensors that `next` reads."""
        return [tensor for feed in self.feeds for tensor in feed.tensors()]

"""A replay of image observations, which stores each frame once and stacks frames when a batch is drawn.

An observation is a stack of K frames of bytes, oldest first. Consecutive observations share K - 1 frames, so a naive
replay would store each frame 2 K times. Here a transition holds the places of its frames. Frames are recognised by
their content, so neither episodes, nor environments that act in turn, nor fragments of remote runners need an order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rllib_hpo.replay.layout import Batch, Column, RowFormat, RowLayout
from rllib_hpo.replay.ring import ROWS, Replay, Ring, copy_ring

_LEAST_SLACK = 256
_SLACK_SHARE = 20
"""One in this many frames is room for those that begin or end an episode."""


class FrameLayout(NamedTuple):
    """Layout of a transition whose observations are stacks of frames."""

    obs_dim: int
    """Number of bytes S of a stack of frames."""
    action_dim: int
    stack: int
    """Frames K of an observation."""
    columns: tuple[Column, ...] = ()
    """Additional columns."""

    @property
    def frame_bytes(self) -> int:
        """Number of bytes of a frame."""
        return self.obs_dim // self.stack

    @property
    def numbers(self) -> RowLayout:
        """Layout of all but the observations."""
        return RowLayout(0, self.action_dim, self.columns)

    @property
    def num_bytes(self) -> int:
        """Size in bytes of a transition that shares all frames but one with the transition before it."""
        return self.frame_bytes + self.numbers.num_bytes + 2 * self.stack * torch.int64.itemsize

    @property
    def parts(self) -> tuple[RowFormat, ...]:
        """Formats of the tensors that hold a gathered batch: its numbers, and its observations as bytes."""
        return RowFormat(self.numbers.width), RowFormat(2 * self.obs_dim, torch.uint8)

    def unpack_parts(self, parts: Sequence[Tensor]) -> Batch:
        """Return the tensors of `parts`, (..., B, width), as columns; observations are bytes."""
        numbers, images = parts
        batch = self.numbers.unpack(numbers)
        return batch._replace(obs=images[..., : self.obs_dim], next_obs=images[..., self.obs_dim :])

    def writer(self, num_rows: int) -> FrameWriter:
        """Return what collects `num_rows` transitions."""
        return FrameWriter(self, num_rows)


class FrameRows:
    """N transitions and the frames of their observations, each once.

    Args:
        numbers: All but the observations, (N, width) of `FrameLayout.numbers`.
        stacks: Rows of `frames`, (N, 2 K): those of the observation, then those of the next one, oldest first.
        frames: Frames, (F, frame_bytes) of uint8.
        keys: Hashes of the frames, (F,) of int64.
    """

    def __init__(
        self,
        numbers: npt.NDArray[np.float32],
        stacks: npt.NDArray[np.int64],
        frames: npt.NDArray[np.uint8],
        keys: npt.NDArray[np.int64],
    ) -> None:
        self.numbers, self.stacks, self.frames, self.keys = numbers, stacks, frames, keys

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, which: slice | npt.NDArray[Any]) -> FrameRows:
        """Return some of the transitions with the frames that they need."""
        used, stacks = np.unique(self.stacks[which], return_inverse=True)
        # In the order of their first use, in which a replay stores them.
        _, first = np.unique(stacks.reshape(-1), return_index=True)
        order = np.argsort(first, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        chosen = used[order]
        return FrameRows(
            self.numbers[which],
            place[stacks.reshape(-1, self.stacks.shape[1])],
            self.frames[chosen],
            self.keys[chosen],
        )

    def copy(self) -> FrameRows:
        """Return a copy that shares no memory."""
        return FrameRows(self.numbers.copy(), self.stacks.copy(), self.frames.copy(), self.keys.copy())

    @property
    def observations(self) -> npt.NDArray[np.uint8]:
        """Observations and next observations, (N, 2, K * frame_bytes)."""
        return self.frames[self.stacks].reshape(len(self), 2, -1)


Transitions = npt.NDArray[np.float32] | FrameRows
"""Transitions as they travel: rows of a `RowLayout`, or `FrameRows`."""


def joined(parts: Sequence[Any]) -> Any:
    """Concatenate `Transitions` of one kind; there must be at least one part."""
    if not isinstance(parts[0], FrameRows):
        return np.concatenate(parts)
    starts = np.cumsum([0, *(len(part.frames) for part in parts)])
    return FrameRows(
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.stacks + start for part, start in zip(parts, starts, strict=False)]),
        np.concatenate([part.frames for part in parts]),
        np.concatenate([part.keys for part in parts]),
    )


def numbers_of(rows: Transitions) -> npt.NDArray[np.float32]:
    """Return the rows of transitions, (N, width), without observations if these are frames."""
    return rows.numbers if isinstance(rows, FrameRows) else rows


class FrameWriter:
    """Collect transitions whose observations arrive as stacks.

    Args:
        layout: Layout of the transitions.
        num_rows: Number of transitions N.
    """

    def __init__(self, layout: FrameLayout, num_rows: int) -> None:
        self._layout, self._numbers = layout, layout.numbers
        self._rows = np.empty((num_rows, self._numbers.width), np.float32)
        self._stacks = np.empty((num_rows, 2 * layout.stack), np.int64)
        self._frames: dict[int, tuple[int, npt.NDArray[np.uint8]]] = {}

    def write(
        self,
        place: int,
        obs: npt.NDArray[np.floating],
        action: npt.NDArray[np.floating],
        reward: npt.NDArray[np.floating],
        terminated: npt.NDArray[np.bool_],
        next_obs: npt.NDArray[np.floating],
        extras: npt.NDArray[np.floating] | None = None,
    ) -> None:
        """Write N transitions from index `place` on; see `RowLayout.pack`. Observations are whole numbers to 255."""
        nothing = np.empty((len(obs), 0), np.float32)
        out = self._rows[place : place + len(obs)]
        self._numbers.pack(nothing, action, reward, terminated, nothing, out=out, extras=extras)
        shape = len(obs), self._layout.stack, self._layout.frame_bytes
        both = [each.astype(np.uint8).reshape(shape) for each in (obs, next_obs)]
        for k in range(len(obs)):
            self._stacks[place + k] = [self._index(frame) for each in both for frame in each[k]]

    def _index(self, frame: npt.NDArray[np.uint8]) -> int:
        """Return the index of a frame, which is kept if it is new."""
        key = key_of(frame)
        if key not in self._frames:
            self._frames[key] = len(self._frames), frame.copy()  # without the stack that it is a part of
        return self._frames[key][0]

    def finished(self) -> FrameRows:
        """Return all transitions."""
        frames = np.empty((len(self._frames), self._layout.frame_bytes), np.uint8)
        for index, frame in self._frames.values():
            frames[index] = frame
        return FrameRows(self._rows, self._stacks, frames, np.array(list(self._frames), np.int64))


def key_of(frame: npt.NDArray[np.uint8]) -> int:
    """Return a 64-bit hash of a frame's bytes."""
    digest = hashlib.blake2b(np.ascontiguousarray(frame).data, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class FrameReplay:
    """Sample transitions whose observations are stacks of frames; each frame is stored once.

    Three rings hold numbers, places of frames and frames. The ring of frames has room for a twentieth more than the
    capacity, since each episode has one frame more than transitions. Where episodes are so short that this does not
    suffice, the oldest transitions are dropped early, and `num_rows` stays below the capacity.

    Args:
        layout: Layout of a transition.
        capacity: Transitions kept; older ones are overwritten.
        device: Device of the rings. If they do not fit, they stay in the host's memory.
    """

    def __init__(self, layout: FrameLayout, capacity: int, device: str | torch.device = "cpu") -> None:
        self.layout, self.capacity = layout, capacity
        slack = max(_LEAST_SLACK, capacity // _SLACK_SHARE)
        self._window = slack // 2
        """A transition may refer to this many frames before its own; an older frame is stored again."""
        self._frames = Ring(RowFormat(layout.frame_bytes, torch.uint8), capacity + slack, device)
        where = self._frames.device
        self._numbers = Ring(RowFormat(layout.numbers.width), capacity, where)
        # Numbers of the frames, and the number of frames that were there before the transition.
        self._links = Ring(RowFormat(2 * layout.stack + 1, torch.int64), capacity, where)
        self._before = np.zeros(capacity, np.int64)
        self._known: dict[int, int] = {}
        """Numbers of the latest frames by their keys, oldest first."""
        self._oldest = 0

    @property
    def rings(self) -> Mapping[str, Ring]:
        """The rings by the names of their files; the first has a row for each transition."""
        return {ROWS: self._numbers, "links": self._links, "frames": self._frames}

    @property
    def device(self) -> torch.device:
        """Device of the frames."""
        return self._frames.device

    @property
    def total_rows(self) -> int:
        """Transitions ever added; transition n stands at n modulo capacity."""
        return self._numbers.total_rows

    @property
    def num_rows(self) -> int:
        """Number of transitions that can be sampled."""
        return self.total_rows - self._oldest

    @property
    def num_bytes(self) -> int:
        """Size in bytes of all rings."""
        return sum(ring.capacity * ring.row.num_bytes for ring in self.rings.values())

    def add(self, rows: FrameRows) -> None:
        """Append transitions in order, overwriting the oldest."""
        skipped = max(0, len(rows) - self.capacity)
        own = rows[skipped:] if skipped else rows
        for ring in (self._numbers, self._links):
            ring.total_rows += skipped
        links, new = self._link(own)
        self._before[(self.total_rows + np.arange(len(own))) % self.capacity] = links[:, -1]
        self._frames.add(own.frames[new])
        self._links.add(links)
        self._numbers.add(own.numbers)
        self._drop_dead()
        if self._links.device != self.device:  # the frames have outgrown the GPU
            for ring in (self._numbers, self._links):
                ring.move_to(self.device)

    def _link(self, rows: FrameRows) -> tuple[npt.NDArray[np.int64], list[int]]:
        """Return the links of transitions, (N, 2 K + 1), and the indices of frames to store, in order."""
        links, new = np.empty((len(rows), rows.stacks.shape[1] + 1), np.int64), list[int]()
        first, known = self._frames.total_rows, self._known
        keys = rows.keys.tolist()
        for n, stack in enumerate(rows.stacks.tolist()):
            before = first + len(new)
            for j, frame in enumerate(stack):
                number = known.get(keys[frame])
                if number is None or number < before - self._window:
                    known.pop(keys[frame], None)  # so that it is put at the end
                    number = known[keys[frame]] = first + len(new)
                    new.append(frame)
                links[n, j] = number
            links[n, -1] = before
        self._forget_old(first + len(new))
        return links, new

    def _forget_old(self, num_frames: int) -> None:
        while self._known and next(iter(self._known.values())) < num_frames - self._window:
            del self._known[next(iter(self._known))]

    def _drop_dead(self) -> None:
        """Move the oldest transition past those whose frames may be overwritten."""
        self._oldest = max(self._oldest, self.total_rows - self.capacity)
        least = self._frames.total_rows - self._frames.capacity + self._window
        while self._oldest < self.total_rows and self._before[self._oldest % self.capacity] < least:
            self._oldest += 1

    def draw_indices(self, num: int, generator: torch.Generator) -> Tensor:
        """Draw `num` indices uniformly with replacement, (num,)."""
        drawn = torch.randint(self.num_rows, (num,), generator=generator, device=generator.device)
        return (drawn + self._oldest) % self.capacity

    def gather(self, indices: Tensor) -> Batch:
        """Transitions at `indices` (B,); observations are bytes, (B, S)."""
        return self.layout.unpack_parts(self.gather_parts(indices.to(self.device)))

    def gather_parts(self, indices: Tensor) -> list[Tensor]:
        """Return transitions at `indices` (B,), on the replay's device, as the layout's `parts`."""
        frames = self._frames.rows.index_select(0, self._places(indices).flatten())
        return [self._numbers.rows.index_select(0, indices), frames.view(len(indices), -1)]

    def gather_into(self, out: Sequence[Tensor], indices: Tensor) -> None:
        """Write transitions at `indices` (B,) into tensors of the layout's `parts`, on the replay's device."""
        torch.index_select(self._numbers.rows, 0, indices, out=out[0])
        places = self._places(indices).flatten()
        frames = out[1].view(len(places), self.layout.frame_bytes)
        torch.index_select(self._frames.rows, 0, places, out=frames)

    def _places(self, indices: Tensor) -> Tensor:
        """Return the places of the frames of transitions, (B, 2 K)."""
        return self._links.rows.index_select(0, indices)[:, :-1] % self._frames.capacity

    def tensors(self) -> list[Tensor]:
        """Return the tensors that `gather` reads; growing replaces them."""
        return [ring.rows for ring in self.rings.values()]

    def read(self, start: int, end: int) -> list[FrameRows]:
        """Return transitions number `start` to `end` (exclusive), which must not be overwritten."""
        if not self._oldest <= start <= end <= self.total_rows:
            raise ValueError(f"rows {start} to {end} are not in the replay")
        if start == end:
            return []
        numbers, links = (np.concatenate(ring.read(start, end)) for ring in (self._numbers, self._links))
        used, stacks = np.unique(links[:, :-1], return_inverse=True)
        at = torch.from_numpy(used % self._frames.capacity).to(self.device)
        frames = self._frames.rows.index_select(0, at).cpu().numpy()
        keys = np.array([key_of(frame) for frame in frames], np.int64)
        return [FrameRows(numbers, stacks.reshape(len(links), -1), frames, keys)]

    def clear(self, total_rows: int = 0) -> None:
        """Empty the replay; the next transition gets number `total_rows`."""
        self._numbers.clear(total_rows)
        self._links.clear(total_rows)
        self._frames.clear()
        self._known.clear()
        self._oldest = total_rows

    def copy_from(self, other: FrameReplay) -> None:
        """Replace everything by what `other` holds, under the same numbers."""
        for name, ring in self.rings.items():
            copy_ring(ring, other.rings[name])
        self.reloaded()

    def reloaded(self) -> None:
        """Compute what depends on the rings' rows, after they were filled."""
        held = min(self.total_rows, self.capacity)
        start = self.total_rows - held
        before = [links[:, -1] for links in self._links.read(start, self.total_rows)]
        self._before[(start + np.arange(held)) % self.capacity] = np.concatenate([*before, []])
        self._oldest = start
        self._drop_dead()
        total = self._frames.total_rows
        number = max(0, total - min(self._window, self._frames.capacity))
        self._known = {}
        for piece in self._frames.read(number, total):
            for frame in piece:
                key = key_of(frame)
                self._known.pop(key, None)
                self._known[key] = number
                number += 1


def random_batch(layout: RowLayout | FrameLayout, size: int, device: str | torch.device = "cpu") -> Batch:
    """Return B random transitions, always the same, for trying and timing updates."""
    return layout.unpack_parts(random_parts(layout, size, device))


def random_parts(
    layout: RowLayout | FrameLayout, size: int, device: str | torch.device = "cpu"
) -> list[Tensor]:
    """Return the tensors (B, width) that hold the transitions of `random_batch`."""
    generator, parts = torch.Generator().manual_seed(0), []
    for width, dtype in layout.parts:
        values = torch.rand((size, width), generator=generator)
        parts.append((255 * values if dtype == torch.uint8 else values).to(device, dtype))
    return parts


def make_replay(
    layout: RowLayout | FrameLayout, capacity: int, device: str | torch.device = "cpu"
) -> Replay | FrameReplay:
    """Make the replay of this layout's transitions."""
    kind: Any = FrameReplay if isinstance(layout, FrameLayout) else Replay
    replay: Replay | FrameReplay = kind(layout, capacity, device)
    return replay

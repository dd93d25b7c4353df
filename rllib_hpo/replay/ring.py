"""The replay: a ring of transition rows on the learner's device."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rllib_hpo.replay.layout import Batch, RowFormat, RowLayout
from rllib_hpo.replay.staging import Staging

_logger = logging.getLogger(__name__)

FIRST_ROWS = 65_536
"""Greatest initial number of rows on a GPU; the ring doubles as it fills. (A CPU allocates pages as rows arrive.)"""

STAGED_ROWS = 1024
"""Number of rows copied to a GPU at a time."""

ROWS = "rows"
"""Name of the ring of transitions."""

SPARE_SHARE = 0.1
"""Share of a GPU's memory that a replay leaves free for everything else."""


class Ring:
    """Keep the newest rows. It allocates memory as rows arrive.

    Rows reach a GPU through pinned memory, so adding rows does not wait for running updates. A ring in the host's
    memory is not pinned, even if a GPU learns from it: pinning would allocate all memory at once and lock it, and the
    GPU reads no row from it. Batches are gathered by the host, into pinned memory (`rllib_hpo.replay.feed.RowFeed`).

    Args:
        row: Format of a row.
        capacity: Rows kept; older ones are overwritten.
        device: Device of the rows. If they do not all fit, they stay in the host's memory.
    """

    def __init__(self, row: RowFormat, capacity: int, device: str | torch.device = "cpu") -> None:
        self.row, self.capacity = row, capacity
        self._rows = self._first_rows(_with_room(row, capacity, torch.device(device)))
        self._staging: Staging | None = None
        self.total_rows = 0
        """Rows ever added; row number n stands at n modulo capacity."""

    @property
    def rows(self) -> Tensor:
        """Rows (N, width); index k of the ring is row k. Growing replaces this tensor."""
        return self._rows

    @property
    def device(self) -> torch.device:
        """Device of the rows."""
        return self._rows.device

    @property
    def num_rows(self) -> int:
        """Number of rows that the ring holds."""
        return min(self.total_rows, self.capacity)

    def add(self, rows: npt.NDArray[np.generic]) -> None:
        """Append rows (N, width) in order, overwriting the oldest."""
        # Ray's arrays are read-only, which torch does not accept.
        kept = torch.from_numpy(np.require(rows[-self.capacity :], requirements="W"))
        start = (self.total_rows + len(rows) - len(kept)) % self.capacity
        head = min(len(kept), self.capacity - start)
        self._make_room(start + head)
        self._write(start, kept[:head])
        if head < len(kept):
            self._write(0, kept[head:])
        self.total_rows += len(rows)

    def _write(self, place: int, rows: Tensor) -> None:
        if not self._is_staged(self.device):
            self._rows[place : place + len(rows)] = rows
            return
        if self._staging is None:
            self._staging = Staging((STAGED_ROWS, self.row.width), self.row.dtype, self.device)
        for piece in rows.split(STAGED_ROWS) if len(rows) else ():
            self._staging.begin()[: len(piece)] = piece
            self._staging.copy_to(self._rows[place : place + len(piece)])
            place += len(piece)

    @staticmethod
    def _is_staged(device: torch.device) -> bool:
        return device.type == "cuda"

    @staticmethod
    def _grows(device: torch.device) -> bool:
        # A CPU allocates pages when they are written, a GPU all memory at once.
        return device.type != "cpu"

    def _first_rows(self, device: torch.device) -> Tensor:
        num_rows = sizes_while_growing(self.capacity)[0] if self._grows(device) else self.capacity
        return self._new_rows(num_rows, device)

    def _new_rows(self, num_rows: int, device: torch.device) -> Tensor:
        return torch.empty((num_rows, self.row.width), dtype=self.row.dtype, device=device)

    def _make_room(self, places: int) -> None:
        """Double until the ring has room for `places` rows; move to the host's memory if the device has too little."""
        if places <= len(self._rows):
            return
        num_rows = next(size for size in sizes_while_growing(self.capacity) if size >= places)
        try:
            grown = self._new_rows(num_rows, self.device)
        except torch.OutOfMemoryError:
            _logger.warning(
                "The replay moves to host memory, and batches reach the GPU through pinned memory: it grows to %d "
                "rows, and %s does not have the required %.1f GiB free.",
                num_rows,
                self.device,
                num_rows * self.row.num_bytes / 2**30,
            )
            grown = self._first_rows(torch.device("cpu"))
        grown[: len(self._rows)] = self._rows
        self._rows = grown

    def read(self, start: int, end: int) -> list[npt.NDArray[np.generic]]:
        """Rows number `start` to `end` (exclusive), which must not be overwritten, in one or two pieces."""
        if not max(0, self.total_rows - self.capacity) <= start <= end <= self.total_rows:
            raise ValueError(f"rows {start} to {end} are not in the replay")
        pieces = []
        while start < end:
            place = start % self.capacity
            length = min(end - start, self.capacity - place)
            pieces.append(self._rows[place : place + length].cpu().numpy())
            start += length
        return pieces

    def clear(self, total_rows: int = 0) -> None:
        """Empty the ring; the next row gets number `total_rows`."""
        self.total_rows = total_rows

    def move_to(self, device: torch.device) -> None:
        """Move the rows to another device."""
        self._rows = self._rows.to(device)


class Replay(Ring):
    """Sample transitions uniformly from a ring of rows; see `Ring`.

    Args:
        layout: Layout of a row.
        capacity: Rows kept; older ones are overwritten.
        device: Device of the rows.
    """

    def __init__(self, layout: RowLayout, capacity: int, device: str | torch.device = "cpu") -> None:
        self.layout = layout
        super().__init__(RowFormat(layout.width), capacity, device)

    @property
    def rings(self) -> dict[str, Ring]:
        """The rings that hold the transitions, by the names of their files; the first has a row for each."""
        return {ROWS: self}

    def draw_indices(self, num: int, generator: torch.Generator) -> Tensor:
        """Draw `num` indices uniformly with replacement, (num,)."""
        return torch.randint(self.num_rows, (num,), generator=generator, device=generator.device)

    def gather(self, indices: Tensor) -> Batch:
        """Transitions at `indices` (B,), in one gather of whole rows."""
        return self.layout.unpack_parts(self.gather_parts(indices.to(self.device)))

    def gather_parts(self, indices: Tensor) -> list[Tensor]:
        """Return transitions at `indices` (B,), on the replay's device, as the layout's `parts`."""
        return [self._rows.index_select(0, indices)]

    def gather_into(self, out: Sequence[Tensor], indices: Tensor) -> None:
        """Write transitions at `indices` (B,) into tensors of the layout's `parts`, on the replay's device."""
        torch.index_select(self._rows, 0, indices, out=out[0])

    def tensors(self) -> list[Tensor]:
        """Return the tensors that `gather` reads; growing replaces them."""
        return [self._rows]

    def copy_from(self, other: Replay) -> None:
        """Replace all rows by those of `other`, under the same numbers."""
        copy_ring(self, other)

    def reloaded(self) -> None:
        """Do nothing: the rows are all there is to load."""


def copy_ring(ring: Ring, other: Ring) -> None:
    """Replace the rows of `ring` by those of `other`, under the same numbers."""
    held = min(other.total_rows, other.capacity)
    ring.clear(other.total_rows - held)
    for rows in other.read(ring.total_rows, other.total_rows):
        ring.add(rows)


def _with_room(row: RowFormat | RowLayout, capacity: int, device: torch.device) -> torch.device:
    """`device`, or the CPU if the ring would not fit on it."""
    if device.type != "cuda":
        return device
    needed = most_rows(capacity) * row.num_bytes
    free, total = _memory(device)
    if fits(needed, free, total):
        return device
    _logger.warning(
        "The replay is in host memory, and batches reach the GPU through pinned memory: its %d rows take %.1f GiB "
        "while it grows, and %s has %.1f GiB free for them.",
        capacity,
        needed / 2**30,
        device,
        free / 2**30,
    )
    return torch.device("cpu")


def _memory(device: torch.device) -> tuple[int, int]:
    """Free and total bytes of this process: its share of a shared GPU."""
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device.index))
    return min(free, allowed - torch.cuda.memory_reserved(device)), allowed


def sizes_while_growing(capacity: int) -> list[int]:
    """Sizes in rows through which a replay on a GPU grows: its capacity, halved repeatedly."""
    sizes = [capacity]
    while sizes[-1] > FIRST_ROWS:
        sizes.append(-(-sizes[-1] // 2))
    return sizes[::-1]


def most_rows(capacity: int) -> int:
    """Greatest number of rows allocated at a time: half the capacity and all of it, when it last grows."""
    return sum(sizes_while_growing(capacity)[-2:])


def fits(needed: int, free: int, total: int) -> bool:
    """Whether `needed` bytes fit a device with `free` of `total` bytes free."""
    return needed <= free - SPARE_SHARE * total

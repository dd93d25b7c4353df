"""The way from the host to a GPU on which neither waits for the other."""

from __future__ import annotations

import torch
from torch import Tensor


class Staging:
    """Memory of the host that a GPU copies from while the host goes on: it is written, copied, written again.

    A copy from memory that is not pinned would make the host wait for all that the GPU still has to do.

    Args:
        shape: Of what it holds; the first dimension may be used in part.
        dtype: Of its numbers.
        device: Where copies go.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._memory = torch.empty(shape, dtype=dtype, pin_memory=is_cuda)
        self._copied = torch.cuda.Event() if is_cuda else None

    def begin(self) -> Tensor:
        """The memory, once the latest copy has left it and it may be written."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._memory

    def copy_to(self, target: Tensor) -> None:
        """Copies the first rows, as many as `target` has, in the order of the current stream of its device."""
        target.copy_(self._memory[: len(target)], non_blocking=True)
        if self._copied is not None:
            # Without a stream it would be that of the current device, which may be another GPU.
            self._copied.record(torch.cuda.current_stream(target.device))

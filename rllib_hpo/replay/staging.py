"""Copy from the host to a GPU through pinned memory, without either waiting for the other."""

from __future__ import annotations

import torch
from torch import Tensor


class Staging:
    """Hold pinned host memory, which is written, copied to the GPU asynchronously, and written again.

    A copy from unpinned memory would make the host wait for all pending work of the GPU.

    Args:
        shape: Shape of the memory; the first dimension may be used in part.
        dtype: Type of its values.
        device: Target of the copies.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._memory = torch.empty(shape, dtype=dtype, pin_memory=is_cuda)
        self._copied = torch.cuda.Event() if is_cuda else None

    def begin(self) -> Tensor:
        """Return the memory for writing, once the latest copy from it is complete."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._memory

    def copy_to(self, target: Tensor) -> None:
        """Copy the first rows, as many as `target` has, in the order of the current stream of its device."""
        target.copy_(self._memory[: len(target)], non_blocking=True)
        if self._copied is not None:
            # Without an argument this would be the stream of the current device, which may be another GPU.
            self._copied.record(torch.cuda.current_stream(target.device))

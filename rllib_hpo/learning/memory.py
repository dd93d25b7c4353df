"""What a learner may hold of a GPU's memory, and what is said when that is not enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from rllib_hpo.errors import UserError


def limit_gpu_memory(
    share: float,
    device: torch.device,
    limit: Callable[[float, torch.device], None] = torch.cuda.set_per_process_memory_fraction,
) -> None:
    """Bounds what torch allocates in this process on a GPU that others share, so that none can starve them.

    CUDA's own context, some hundred megabytes for each process, comes on top of it.

    Args:
        share: Of the GPU, in [0, 1]; a whole one is not bounded.
        device: Nothing happens where it is a CPU.
        limit: What bounds.
    """
    if device.type == "cuda" and 0 < share < 1:
        limit(share, device)


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Says what can be done where a GPU's memory does not suffice.

    Raises:
        UserError: In place of torch.OutOfMemoryError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "The learner does not fit into the GPU memory that it may use: give it a larger share of a GPU "
            "(num_gpus_per_learner, or num_gpus on RLlib's old API stack), smaller batches or smaller networks."
        ) from error

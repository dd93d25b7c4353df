"""Limit a learner's GPU memory, and explain an out-of-memory error."""

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
    """Limit the memory that torch allocates in this process on a shared GPU.

    CUDA's own context, some hundred megabytes for each process, is not included.

    Args:
        share: Share of the GPU, in [0, 1]; 0 and 1 set no limit.
        device: The device; a CPU has no limit.
        limit: Function that sets the limit.
    """
    if device.type == "cuda" and 0 < share < 1:
        limit(share, device)


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turn a CUDA out-of-memory error into one that names the remedies.

    Raises:
        UserError: In place of torch.OutOfMemoryError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "The learner does not fit into its share of GPU memory: give it a larger fraction of a GPU "
            "(num_gpus_per_learner, or num_gpus on RLlib's old API stack), or use smaller batches or networks."
        ) from error

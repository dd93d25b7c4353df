"""Set torch's options in every process of a run."""

from __future__ import annotations

import torch


def set_torch_options(num_threads: int) -> None:
    """Threads, and no filling of new tensors.

    Where torch has no CUDA, RLlib's seeding turns on torch's deterministic mode, which fills with NaN whatever
    torch allocates: a replay would take all of its memory at once, and an update 3 % longer. Nothing here reads
    what it has not written.
    """
    torch.set_num_threads(num_threads)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

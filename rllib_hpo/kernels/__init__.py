"""Compute hand-written forward and backward passes and matrix products, each tested in `tests/kernels`.

The passes replace autograd where it would run many small operations; each has a gradcheck. Callers use plain torch
instead when no gradient is needed or when export or a compiler traces the program (`wants_gradients`).
"""

from __future__ import annotations

import torch


def wants_gradients() -> bool:
    """Return whether to run the hand-written passes: autograd records, and neither compiler nor exporter traces."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()

"""Hand-written forward and backward passes, each with a gradcheck in `tests/kernels`, and the matrix products below.

They replace autograd where it would run many small operations. The mathematics elsewhere calls them by name, and calls
plain torch instead where nobody wants a gradient, or where a program is traced for export (`wants_gradients`).
"""

from __future__ import annotations

import torch


def wants_gradients() -> bool:
    """Whether to run the hand-written passes: autograd records, and no compiler or exporter traces."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()

"""Mark tests that need a GPU; `python -m benchmarks.gpu_check` runs all of them (`pytest -m gpu`)."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch

T = TypeVar("T")

GPU_MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU_MARKS)]
"""Parameters of tests that run on a CPU and on a GPU."""


def on_a_gpu(test: T) -> T:
    """Mark a test that runs on a GPU alone."""
    for mark in GPU_MARKS:
        test = mark(test)
    return test

"""The oldest NVIDIA driver with which torch finds a GPU."""

from __future__ import annotations

import re

DRIVERS = {12: 525, 13: 580}
"""The oldest driver for each CUDA that a torch is built with.

NVIDIA's table: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
"""
TORCH, TORCH_CUDA = "2.13", 13
"""The torch of constraints.txt, and the CUDA of its wheels on PyPI (since 2.11)."""
DRIVER = DRIVERS[TORCH_CUDA]
"""The oldest driver for it. A test compares it with the number in cluster files and documentation."""
OLDER_CUDA = "https://download.pytorch.org/whl/cu126"
"""Package index of the same torch for CUDA 12, which works with older drivers."""


def needed_driver(cuda: str | None) -> int:
    """The oldest driver for a `torch.version.cuda`; for an unknown one that of the newest known CUDA."""
    major = int(cuda.partition(".")[0]) if cuda else TORCH_CUDA
    return DRIVERS.get(major, DRIVERS[max(DRIVERS)])


def image_driver(image: str) -> int | None:
    """The driver in the name of a machine image, as in Google's families (`...-nvidia-580`)."""
    found = re.search(r"nvidia-(\d{3})(?!\d)", image)
    return int(found[1]) if found else None


def kernel_driver(version: str) -> int | None:
    """The driver in the text of /proc/driver/nvidia/version; None if there is none."""
    found = re.search(r"\s(\d{3,})\.\d+(?:\.\d+)?\s", version)
    return int(found[1]) if found else None

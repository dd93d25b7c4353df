"""The environment of every test, set before torch, Ray or Weights & Biases are imported."""

from __future__ import annotations

import os

DEFAULTS = {
    "OMP_NUM_THREADS": "1",  # equal numbers of threads give equal numbers
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_MODE": "offline",
}
for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)

"""State what is aimed at on one H200 with 16 cores: batch 256, networks of 256 units, Hopper's sizes."""

from __future__ import annotations

UPDATES_PER_S = {"sac": 8_000, "sac-hpo, K = 3": 4_000}
"""Least updates per second, by the fastest mode."""
TIMES_EAGER = 8.0
"""Least speed of a graph, relative to eager updates."""
KERNELS = {"sac": 60, "sac-hpo, K = 3": 110}
"""Most kernels of a compiled update."""
LARGEST_DISTANCE = 1e-4
"""Most that single updates of two modes differ by, relative to the norm of each tensor."""
STEPS_PER_S = 1_500
"""Least environment steps per second of Hopper from end to end, at one update a step."""
TIMES_ONE_SEED = 3.0
"""Least speed of five trials that share the GPU, relative to one."""

"""Measure whole runs on one GPU: Hopper from end to end, and five trials that share the GPU."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import targets
from benchmarks.gpu_check.rows import Row


def hopper(device: str, emit: Callable[[Row], None], results: Path) -> None:
    """Measure environment steps per second of SAC on Hopper, by the number of runners."""
    from benchmarks import train_speed

    cores, out = os.cpu_count() or 1, results / "train_speed_gpu.json"
    counts = [str(count) for count in (4, 12) if count <= cores - 2] or ["1"]
    rounds, steps = ("3", "3000") if device == "cuda" else ("1", "100")
    gpu = ["--gpu"] if device == "cuda" else []
    what = ["--task", "hopper", "--update-to-data", "1", "--rounds", rounds, "--steps", steps]
    train_speed.main([*gpu, *what, "--runners", *counts, "--out", str(out)])
    (measured,) = _read(out)["updates_per_step"].values()
    for name, row in measured.items():
        emit(Row("Hopper end to end, " + name + ", steps/s", "measured", row["steps_per_s"]))
    fastest = max(row["steps_per_s"] for row in measured.values())
    emit(Row.at_least("Hopper end to end, steps/s at one update a step", fastest, targets.STEPS_PER_S))


def trials(device: str, emit: Callable[[Row], None], results: Path) -> None:
    """Measure the speed of five concurrent trials with a fifth of the GPU each, relative to one with all of it."""
    from benchmarks import grid

    out = results / "grid_gpu.json"
    counts, steps, every = (("1", "5"), "8000", "1000") if device == "cuda" else (("1", "2"), "900", "200")
    gpu = ["--gpu"] if device == "cuda" else []
    runners = "2" if (os.cpu_count() or 1) >= 16 else "0"
    size = ["--steps", steps, "--every", every, "--rounds", "1", "--num-env-runners", runners]
    grid.main([*gpu, "--trials", *counts, *size, "--out", str(out)])
    found = _read(out)["trials"]
    for count, row in found.items():
        emit(Row(f"{count} trials at a time, steps/s in all", "measured", row["steps_per_s"]))
    times = found[counts[-1]]["times_fewest"]["value"]
    emit(Row.at_least(f"{counts[-1]} trials, times one", times, targets.TIMES_ONE_SEED))


def _read(path: Path) -> Mapping[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content

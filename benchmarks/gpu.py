"""Measure every figure that needs a GPU with one command, and compare it with its target.

    python -m benchmarks.gpu                 # about half an hour on a machine with one GPU and 16 cores

It runs `update_speed` (graphs against eager updates), `train_speed --runners` on Hopper with the learner on the GPU,
and `grid --gpu` with one seed and with five that share it, each with runners of its own. `python -m
benchmarks.grid_cost` then prices the paper's grid.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import grid, machine, train_speed, update_speed

UPDATES, RUNNERS, GRID = "update_speed_gpu.json", "train_speed_gpu.json", "grid_gpu.json"
UPDATES_PER_S = {"sac": 5_000, "sac-hpo, K = 3": 2_500}
TIMES_EAGER, STEPS_PER_S, TIMES_ONE_SEED = 8.0, 1_500, 3.0
"""Targets on one H100 with 16 cores, batch 256."""


def figures(results: Path) -> Iterator[tuple[str, float, float]]:
    """Return each figure, its value, and its target."""
    rows = [row for row in _read(results / UPDATES)["updates"] if row["mode"] == "graph"]
    for row in rows:
        least = UPDATES_PER_S.get(row["algorithm"])
        if row["size"] == "Hopper" and least is not None:
            yield f"{row['algorithm']}, updates/s", row["updates_per_second"], least
            yield f"{row['algorithm']}, times eager", 1 / row["times_eager"]["value"], TIMES_EAGER
    (measured,) = _read(results / RUNNERS)["updates_per_step"].values()
    fastest = max(row["steps_per_s"] for row in measured.values())
    yield "Hopper end to end, steps/s at one update a step", fastest, STEPS_PER_S
    yield (
        "five seeds, times one",
        _read(results / GRID)["trials"]["5"]["times_fewest"]["value"],
        TIMES_ONE_SEED,
    )


def verdicts(found: Sequence[tuple[str, float, float]]) -> list[str]:
    """Format one line per figure."""
    return [
        f"{name}: {value:,.1f}, target >= {least:,g}: {'reached' if value >= least else 'MISSED'}"
        for name, value, least in found
    ]


def _read(path: Path) -> Mapping[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything, and print which targets were reached.

    Raises:
        SystemExit: If torch finds no GPU.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="where the JSON files go")
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device here; run this on a machine with one.")
    cores = os.cpu_count() or 1
    counts = [str(count) for count in (4, 8, 12) if count == 4 or count <= cores - 2]
    update_speed.main(["--devices", "cuda", "--out", str(options.results / UPDATES)])
    runs = ["--task", "hopper", "--update-to-data", "1", "--rounds", "5", "--steps", "5000"]
    train_speed.main(["--gpu", *runs, "--runners", *counts, "--out", str(options.results / RUNNERS)])
    runners = "2" if cores >= 16 else "1"
    trials = ["--trials", "1", "5", "--steps", "20000", "--every", "1000", "--num-env-runners", runners]
    grid.main(["--gpu", *trials, "--out", str(options.results / GRID)])
    print("\n".join(verdicts(list(figures(options.results)))))


if __name__ == "__main__":
    main()

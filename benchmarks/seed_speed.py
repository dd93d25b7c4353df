"""Measure how many updates a second several seeds make together, against one seed alone.

    python -m benchmarks.seed_speed                     # on a GPU, if torch finds one: seeds stacked in one CUDA graph
    python -m benchmarks.seed_speed --devices cpu       # seeds take turns, which must cost no more than running alone

Each seed has networks, replay and streams of its own (`rllib_hpo.learning.seeds`). Groups of seeds and one seed alone
take turns in one process, one chunk each per round. Updates of a group count for each of its seeds. Sizes, batches and
clocks are those of `benchmarks.update_speed`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.pairs import Ratio
from benchmarks.update_speed import GPU_SECONDS, Contestant, chunk_for, make_learner, timed

SEEDS = (2, 4, 8)
ALGORITHMS = ("sac", "sac-hpo, K = 3")
TIMES_ONE_SEED = {"cuda": {8: 5.0}, "cpu": {8: 1.0}}
"""Targets: least updates a second of so many seeds, in those of one."""


def make_updates(algorithm: str, size: str, device: str, num_seeds: int) -> Callable[[int], None]:
    """Make a function that runs a given number of updates of every seed."""
    from rllib_hpo.learning.seeds import SeedGroup

    contestant = Contestant(algorithm, size, device, "graph" if device == "cuda" else "eager")
    learners = [make_learner(contestant, seed, diagnostics_interval=10**9) for seed in range(num_seeds)]
    return SeedGroup(learners).update_from_replay if num_seeds > 1 else learners[0].update_from_replay


def measure(
    algorithm: str, size: str, device: str, seeds: Iterable[int] = SEEDS, rounds: int = 15, chunk: int = 20
) -> list[dict[str, Any]]:
    """Return updates a second of all seeds, and their ratio to those of one seed, by number of seeds."""
    runs = {number: make_updates(algorithm, size, device, number) for number in (1, *seeds)}
    chunks = {}
    for number, run in runs.items():
        run(2 * chunk)
        chunks[number] = chunk if device == "cpu" else chunk_for(GPU_SECONDS, run, chunk)
    speeds: dict[int, list[float]] = {number: [] for number in runs}
    for _ in range(rounds):
        for number, run in runs.items():
            speeds[number].append(number * 1e3 / timed(run, chunks[number], device))
    return [
        {"algorithm": algorithm, "size": size, "device": device, "seeds": number}
        | {"updates_per_second": sorted(rates)[len(rates) // 2]}
        | {"times_one_seed": asdict(Ratio.of(rates, speeds[1]))}
        for number, rates in speeds.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows in Markdown, with what is aimed at."""
    lines = ["| algorithm | seeds | updates/s | x one seed | aim |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        aim = TIMES_ONE_SEED[row["device"]].get(row["seeds"], "")
        lines.append(
            f"| {row['algorithm']}, {row['size']}, {row['device']} | {row['seeds']} | "
            f"{row['updates_per_second']:.0f} | {Ratio(**row['times_one_seed'])} | {aim} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seed_speed", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--chunk", type=int, default=20, help="updates of one contestant in a round")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="sizes of the groups")
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), help="default: all that there are")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "seed_speed.json", help="JSON file")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    facts = machine.facts()
    devices = options.devices or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if "cuda" in devices:
        facts["gpu"] = torch.cuda.get_device_name()
    rows = [
        row
        for device in devices
        for algorithm in ALGORITHMS
        for row in measure(algorithm, "Hopper", device, options.seeds, options.rounds, options.chunk)
    ]
    print(table(rows))
    machine.write_json(options.out, {"benchmark": "seed_speed", "machine": facts, "updates": rows})


if __name__ == "__main__":
    main()

"""Measure the cost of a runner's step by task and algorithm: environment, action and row.

    python -m benchmarks.sampling_speed

A runner of one environment samples with untrained weights, as one core of a CPU node does for a remote learner.
Algorithms take turns. The results are medians over the rounds of environment steps per CPU second, with one torch
thread.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine

ALGORITHMS = ("sac", "sac-nf", "sac-hpo")
Sampler = Callable[[int], object]
"""Function that takes the given number of environment steps."""


def runner(algorithm: str, task: str) -> Sampler:
    """Make in this process what one of RLlib's environment runner actors runs."""
    from rllib_hpo.rllib.algorithms import make_config
    from rllib_hpo.rllib.new_stack.env_runner import ColumnarEnvRunner
    from rllib_hpo.tasks import find_task

    found = find_task(task)
    config = make_config(algorithm).environment(found.env_id).debugging(seed=0)
    config.training(**found.defaults.get(algorithm, {})).validate()
    made = ColumnarEnvRunner(config=config)
    return lambda steps: made.sample(num_steps=steps)


def measure(runners: Mapping[str, Sampler], rounds: int, steps: int) -> dict[str, list[float]]:
    """Return environment steps per CPU second, by runner, one value per round."""
    speeds: dict[str, list[float]] = {name: [] for name in runners}
    for sample in runners.values():
        sample(steps)
    gc.collect()
    gc.disable()  # otherwise one algorithm's rounds may pay for garbage of the whole process
    try:
        for _ in range(rounds):
            for name, sample in runners.items():
                began = time.process_time()
                sample(steps)
                speeds[name].append(steps / (time.process_time() - began))
    finally:
        gc.enable()
    return speeds


def table(speeds: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Format medians in Markdown, one line per task."""
    lines = [f"| task | {' | '.join(ALGORITHMS)} |", "| --- |" + " ---: |" * len(ALGORITHMS)]
    for task, row in speeds.items():
        cells = [f"{row[name]['steps_per_cpu_s']:.0f}" for name in ALGORITHMS]
        lines.append("| " + " | ".join([task, *cells]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sampling_speed", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--task", action="append", help="may be given several times; all eight unless given")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=300, help="environment steps of one runner in a round")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "sampling_speed.json")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from rllib_hpo.tasks import TABLE_ONE

    torch.set_num_threads(1)
    facts = machine.facts()
    tasks = options.task or [task.name for task in TABLE_ONE]
    speeds: dict[str, dict[str, Any]] = {}
    for task in tasks:
        rounds = measure({name: runner(name, task) for name in ALGORITHMS}, options.rounds, options.steps)
        speeds[task] = {
            name: {"steps_per_cpu_s": float(np.median(values)), "rounds": values}
            for name, values in rounds.items()
        }
        print(f"measured {task}", flush=True)
    print("\n" + table(speeds))
    machine.write_json(options.out, {"benchmark": "sampling_speed", "machine": facts, "tasks": speeds})


if __name__ == "__main__":
    main()

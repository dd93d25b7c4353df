"""Measure the aggregate speed of N concurrent trials on one machine, by sweeps of N seeds.

    python -m benchmarks.grid                                   # 1, 2, 4, ... trials, up to the machine's cores
    python -m benchmarks.grid --trials 1 5 --gpu                # seeds that share a GPU, 1/N of it each

Every round runs `rllib-hpo sweep` once for each N, in turn, and reads the times from the sweep's event logs. It counts
the steps of all trials while all were learning: from the latest first evaluation after a warm-up to the earliest last
evaluation, with steps between two evaluations interpolated. An evaluation is one episode, so that it costs little. The
results are medians over the rounds, and ratios to one trial with the 10th to 90th percentile of the rounds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import machine
from benchmarks.pairs import Ratio
from rllib_hpo.experiments.tracking.events import EVENTS_FILE, read_events

WARMUP_STEPS = 500
Curve = tuple[Sequence[float], Sequence[int]]
"""Times (s) at which a trial had made numbers of environment steps."""


def sweep_file(task: str, algorithm: str, steps: int, every: int) -> dict[str, Any]:
    """Return a sweep of one trial per seed, without anything that disturbs the measurement."""
    settings = {
        "steps": steps,
        "warmup_steps": WARMUP_STEPS,
        "evaluation_every": every,
        "evaluation_episodes": 1,
        "checkpoint_every": 10 * steps,
        "steps_per_iteration": every,
    }
    return {
        "sweep": "grid",
        "algorithms": [algorithm],
        "tasks": [task],
        "seeds": [0],
        "settings": settings,
    }


def run(
    sweep: Mapping[str, Any], num_trials: int, gpu: bool, num_env_runners: int, directory: Path
) -> list[Curve]:
    """Run the sweep with `num_trials` concurrent seeds, and return one curve per trial.

    Raises:
        SystemExit: If the sweep fails, with its output.
    """
    source, out = directory / "sweep.yaml", directory / "out"
    source.write_text(yaml.safe_dump(dict(sweep)))
    options = ["--seeds", f"0-{num_trials - 1}", "--wandb", "disabled", "--out", str(out)]
    options += ["--gpus-per-learner", str(round(1 / num_trials, 3))] if gpu else []
    options += ["--num-env-runners", str(num_env_runners)]
    command = [sys.executable, "-m", "rllib_hpo.cli", "sweep", str(source), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}"
        )
    return [curve(path) for path in sorted(out.glob(f"trials/*/{EVENTS_FILE}"))]


def curve(events: Path) -> Curve:
    """Return when a trial's evaluations after its warm-up ended, and their steps."""
    evaluated = [event for event in read_events(events) if event["event"] == "evaluated"]
    learning = [event for event in evaluated if event["env_steps"] >= WARMUP_STEPS]
    times = [datetime.fromisoformat(event["time"]).timestamp() for event in learning]
    return times, [event["env_steps"] for event in learning]


def aggregate_speed(curves: Sequence[Curve]) -> float:
    """Return environment steps per second of all trials together, while all of them were learning.

    Raises:
        SystemExit: If there was no such time.
    """
    begin = max(times[0] for times, _ in curves)
    end = min(times[-1] for times, _ in curves)
    if end <= begin:
        raise SystemExit("The trials did not learn at the same time: give them more --steps.")
    steps = sum(np.diff(np.interp([begin, end], times, steps))[0] for times, steps in curves)
    return float(steps / (end - begin))


def measure(
    sweep: Mapping[str, Any], counts: Sequence[int], rounds: int, gpu: bool, num_env_runners: int = 0
) -> dict[int, list[float]]:
    """Return aggregate steps per second by number of trials, one value per round."""
    speeds: dict[int, list[float]] = {count: [] for count in counts}
    for k in range(rounds):
        for count in counts:
            with tempfile.TemporaryDirectory(prefix="grid_") as directory:
                speeds[count].append(
                    aggregate_speed(run(sweep, count, gpu, num_env_runners, Path(directory)))
                )
            print(f"round {k + 1} of {rounds}, {count} trials: {speeds[count][-1]:.0f} steps/s", flush=True)
    return speeds


def summarise(speeds: Mapping[int, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Return medians, and ratios to the smallest number of trials, ready for JSON."""
    fewest = min(speeds)
    return {
        str(count): {
            "steps_per_s": float(np.median(values)),
            "times_fewest": asdict(Ratio.of(values, speeds[fewest])),
            "efficiency": float(np.median(values) / np.median(speeds[fewest]) * fewest / count),
            "rounds": list(values),
        }
        for count, values in sorted(speeds.items())
    }


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the summary in Markdown."""
    fewest = next(iter(summary))
    lines = [
        f"| trials at a time | steps/s in all | x {fewest} trial | efficiency |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for count, row in summary.items():
        ratio = "1" if count == fewest else str(Ratio(**row["times_fewest"]))
        lines.append(f"| {count} | {row['steps_per_s']:.0f} | {ratio} | {row['efficiency']:.2f} |")
    return "\n".join(lines)


def powers_of_two(limit: int) -> list[int]:
    """Return 1, 2, 4, ... up to `limit`, and `limit` itself."""
    return sorted({*(2**k for k in range(limit.bit_length()) if 2**k <= limit), limit})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grid", description=__doc__.split("\n")[0])
    parser.add_argument("--task", default="hopper")
    parser.add_argument("--algorithm", default="sac-hpo")
    parser.add_argument("--trials", type=int, nargs="+", default=powers_of_two(os.cpu_count() or 1))
    parser.add_argument("--steps", type=int, default=3_000, help="environment steps of a trial")
    parser.add_argument(
        "--every", type=int, default=250, help="steps between the evaluations that it is timed by"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-env-runners", type=int, default=0, help="remote runners of every trial")
    parser.add_argument("--gpu", action="store_true", help="all trials of a sweep share one GPU")
    parser.add_argument(
        "--out", type=Path, help="JSON file (default results/grid.json, with --gpu grid_gpu.json)"
    )
    options = parser.parse_args(arguments)
    facts = machine.facts()
    sweep = sweep_file(options.task, options.algorithm, options.steps, options.every)
    summary = summarise(measure(sweep, options.trials, options.rounds, options.gpu, options.num_env_runners))
    print("\n" + table(summary))
    content = {
        "benchmark": "grid",
        "machine": facts,
        "sweep": sweep,
        "gpu": options.gpu,
        "num_env_runners": options.num_env_runners,
        "trials": summary,
    }
    machine.write_json(
        options.out or machine.RESULTS / ("grid_gpu.json" if options.gpu else "grid.json"), content
    )


if __name__ == "__main__":
    main()

"""Measure the speedup of remote runners and a remote learner over a run in one process.

`python -m benchmarks.train_speed --runners 1 2 4 8 16` runs this. All contestants train the same task, with one torch
thread per process, and take turns round by round. A turn begins with unmeasured steps, as many as sampling may lead
learning by, so that no contestant learns from steps sampled during the turns of others. The measured steps follow,
without evaluation or checkpoint. Steps per second are reported by wall-clock time, for which the machine should be
quiet and have a core per process, and by CPU time of the busiest process, which equals wall-clock time with such a
core.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.pairs import Ratio

YARDSTICK = "one process"
WARMUP_STEPS = 500
COUNTED = (
    "learner_waited_s",
    "runners_waited_s",
    "policy_lag_mean",
    "policy_lag_max",
    "wire_bytes_per_transition",
    "weights_bytes_per_transition",
)
"""Counters of the pipeline."""


def workers(counts: Sequence[int]) -> dict[str, dict[str, int]]:
    """Options of the contestants by name: all in one process, in turns, and overlapping."""
    found = {
        YARDSTICK: {"num_env_runners": 0, "num_learners": 0},
        "2 runners, in turns": {"num_env_runners": 2, "num_learners": 1, "max_lead_steps": 0},
    }
    for count in counts:
        name = f"{count} runner{'s' if count > 1 else ''}"
        found[name] = {"num_env_runners": count, "num_learners": 1}
    return found


def build(
    algorithm: str, task: str, rate: float, steps: int, workers: Mapping[str, int], gpus_per_learner: float
) -> Any:
    """Build the algorithm, run its warm-up, and use iterations of `steps` with nothing between them."""
    from rllib_hpo.rllib.algorithms import make_config
    from rllib_hpo.tasks import find_task

    found = find_task(task)
    config = make_config(algorithm).environment(found.env_id)
    config.training(**found.defaults.get(algorithm, {}))
    config.training(
        update_to_data=rate, warmup_steps=WARMUP_STEPS, steps_per_iteration=steps, checkpoint_every=10**9
    )
    config.evaluation(evaluation_every=10**9, evaluation_episodes=1).debugging(seed=0, log_level="ERROR")
    runners = {name: value for name, value in workers.items() if name != "num_learners"}
    config.learners(num_learners=workers["num_learners"], num_gpus_per_learner=gpus_per_learner)
    made = config.env_runners(**runners).build_algo()
    while made.env_steps < WARMUP_STEPS + steps:
        made.train()
    return made


def in_every_process(algorithm: Any, measure: Any) -> dict[str, list[Any]]:
    """Return the result of `measure()` in this process, every remote runner and every remote learner."""
    runners = algorithm.env_runner_group.foreach_env_runner(lambda runner: measure(), local_env_runner=False)
    found = {"driver": [measure()], "runner": list(runners), "learner": []}
    if algorithm.config.num_learners:
        results = algorithm.learner_group.foreach_learner(lambda learner, **_: measure())
        found["learner"] = [result.get() for result in results]
    return found


def cpu_seconds(algorithm: Any) -> np.ndarray:
    """Return the CPU seconds so far of every process of a run."""
    found = in_every_process(algorithm, time.process_time)
    return np.array([seconds for of in found.values() for seconds in of])


def own_memory_mb() -> float:
    """Return the memory (MB) of this process that it shares with no other."""
    with open("/proc/self/smaps_rollup") as file:
        fields = [line.split() for line in file]
    return sum(int(field[1]) for field in fields if field[0].startswith("Private_")) / 1e3


def row_bytes(task: str) -> int:
    """Return the bytes of one transition in the replay."""
    from gymnasium.spaces import flatdim

    from rllib_hpo.replay.layout import RowLayout
    from rllib_hpo.tasks import find_task, make_env

    env = make_env(find_task(task).env_id)
    layout = RowLayout(flatdim(env.observation_space), flatdim(env.action_space))
    env.close()
    return 4 * layout.width


def turn(algorithm: Any, steps: int) -> dict[str, float]:
    """Run one measured turn of a contestant."""
    lead = algorithm.config.get_max_lead_steps() if algorithm.config.num_learners else 0
    beginning = algorithm.env_steps + lead
    while algorithm.env_steps < beginning:
        algorithm.train()
    used, began = cpu_seconds(algorithm), time.perf_counter()
    result = algorithm.train()
    seconds = time.perf_counter() - began
    used = cpu_seconds(algorithm) - used
    pipeline = result.get("pipeline", {})
    return {
        "steps_per_s": steps / seconds,
        "steps_per_cpu_s": steps / float(used.max()),
        "wall_s": seconds,
        **{name: float(pipeline[name]) for name in COUNTED if name in pipeline},
    }


def measure(
    algorithm: str, task: str, rate: float, counts: Sequence[int], rounds: int, steps: int, gpu: bool
) -> dict[str, dict[str, Any]]:
    """Return turns and memory of every contestant, by name."""
    built, contestants = {}, workers(counts)
    for name, options in contestants.items():
        print(f"warming up {name} ...", flush=True)
        # They take turns, so they can share one GPU.
        built[name] = build(
            algorithm, task, rate, steps, options, round(1 / len(contestants), 2) if gpu else 0
        )
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in built}
    for k in range(rounds):
        for name, made in built.items():
            turns[name].append(turn(made, steps))
        print(f"round {k + 1} of {rounds}", flush=True)
    found = {}
    for name, made in built.items():
        memory = in_every_process(made, own_memory_mb)
        found[name] = {
            "num_runners": made.config.num_env_runners,
            "row_bytes": row_bytes(task),
            "memory_mb": {kind: float(np.median(of)) for kind, of in memory.items() if of},
            "turns": turns[name],
        }
        made.stop()
    return found


def summarise(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return medians, ratios to one process and efficiencies, ready for JSON."""

    def values(name: str, key: str) -> list[float]:
        return [turn[key] for turn in measured[name]["turns"]]

    summary = {}
    for name, each in measured.items():
        row: dict[str, Any] = {
            key: float(np.median(values(name, key)))
            for key in ("steps_per_s", "steps_per_cpu_s", *COUNTED)
            if key in each["turns"][0]
        }
        for key in ("steps_per_s", "steps_per_cpu_s"):
            if name != YARDSTICK:
                row[f"times_{key}"] = asdict(Ratio.of(values(name, key), values(YARDSTICK, key)))
            if "1 runner" in measured and each["num_runners"] > 0:
                row[f"efficiency_{key}"] = row[key] / np.median(values("1 runner", key)) / each["num_runners"]
        if "wire_bytes_per_transition" in row:
            row["wire_rows"] = row["wire_bytes_per_transition"] / each["row_bytes"]
        summary[name] = {**row, **each}
    return summary


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the summary in Markdown."""
    lines = [
        "| | steps/s | x one process | efficiency | by busiest CPU | x one process | efficiency | lag | wire | MB |",
        "| --- |" + " ---: |" * 9,
    ]
    for name, row in summary.items():
        cells = []
        for key in ("steps_per_s", "steps_per_cpu_s"):
            ratio, efficiency = row.get(f"times_{key}"), row.get(f"efficiency_{key}")
            cells += [
                f"{row[key]:.0f}",
                "1" if ratio is None else str(Ratio(**ratio)),
                "" if efficiency is None else f"{efficiency:.2f}",
            ]
        lag = f"{row['policy_lag_mean']:.0f}" if "policy_lag_mean" in row else ""
        wire = f"{row['wire_rows']:.2f}" if "wire_rows" in row else ""
        memory = ", ".join(f"{row['memory_mb'][kind]:.0f}" for kind in _KINDS if kind in row["memory_mb"])
        lines.append(f"| {' | '.join([name, *cells, lag, wire, memory])} |")
    return "\n".join(lines)


_KINDS = ("driver", "learner", "runner")


def run(
    algorithm: str,
    task: str,
    rates: Sequence[float],
    counts: Sequence[int],
    rounds: int,
    steps: int,
    gpu: bool = False,
) -> dict[str, dict[str, Any]]:
    """Measure at each number of updates per step, and print a table for each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    # Equal priority for all contestants; Ray would otherwise lower that of its own processes, below the local
    # learner's.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    from rllib_hpo.experiments.cluster.ray_session import quiet_ray

    quiet_ray()
    ray.init(
        num_cpus=sum(counts) + len(counts) + 8,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    found = {}
    try:
        for rate in rates:
            found[f"{rate:g}"] = summarise(measure(algorithm, task, rate, counts, rounds, steps, gpu))
            print(f"\n{rate:g} updates a step\n\n{table(found[f'{rate:g}'])}\n", flush=True)
    finally:
        ray.shutdown()
    return found

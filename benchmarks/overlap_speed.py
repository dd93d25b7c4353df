"""What two remote runners and a remote learner gain over a run in one process.

    python -m benchmarks.overlap_speed

All train the same task, with one torch thread a process, and take turns round by round; a
round is one iteration without evaluation or checkpoint. Reported are environment steps per second by the clock, for
which the machine should be quiet; per second of CPU of the busiest process, which is what the clock would show with
a free core for each; and what the pipeline counted: how long learner and runners had nothing to do.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.pairs import Ratio

WORKERS: dict[str, dict[str, int]] = {
    "one process": {"num_env_runners": 0, "num_learners": 0},
    "in turns": {"num_env_runners": 2, "num_learners": 1, "max_lead_steps": 0},
    "overlapping": {"num_env_runners": 2, "num_learners": 1},
}
WAITED = ("learner_waited_s", "runners_waited_s", "policy_lag_mean", "wire_bytes_per_transition")


def build(algorithm: str, task: str, rate: float, steps: int, workers: dict[str, int]) -> Any:
    """The algorithm after its warm-up, with iterations of `steps` and nothing between them."""
    from rllib_hpo.rllib.config import make_config
    from rllib_hpo.tasks import find_task

    found, warmup = find_task(task), 500
    config = make_config(algorithm).environment(found.env_id)
    config.training(**found.defaults.get(algorithm, {}))
    config.training(
        update_to_data=rate, warmup_steps=warmup, steps_per_iteration=steps, checkpoint_every=10**9
    )
    config.evaluation(evaluation_every=10**9, evaluation_episodes=1).debugging(seed=0, log_level="ERROR")
    runners = {name: value for name, value in workers.items() if name != "num_learners"}
    made = config.env_runners(**runners).learners(num_learners=workers["num_learners"]).build_algo()
    while made.env_steps < warmup + steps:
        made.train()
    return made


def cpu_seconds(algorithm: Any) -> np.ndarray:
    """CPU time so far of this process and of every remote runner and learner, one number each."""
    runners = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: time.process_time(), local_env_runner=False
    )
    remote = algorithm.config.num_learners > 0
    learners = algorithm.learner_group.foreach_learner(lambda learner, **_: time.process_time())
    return np.array([time.process_time(), *runners, *(result.get() for result in learners if remote)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overlap_speed", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--task", default="humanoid-pybullet")
    parser.add_argument("--algorithm", default="sac")
    parser.add_argument("--update-to-data", type=float, default=1.0, help="updates a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=500, help="environment steps of a round")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "overlap_speed.json")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("RAY_worker_niceness", "0")  # all contestants alike: the local one has none
    import ray

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    facts = machine.facts()
    built = {
        name: build(options.algorithm, options.task, options.update_to_data, options.steps, workers)
        for name, workers in WORKERS.items()
    }
    speeds: dict[str, list[float]] = {name: [] for name in built}
    by_cpu: dict[str, list[float]] = {name: [] for name in built}
    counted: dict[str, list[dict[str, float]]] = {name: [] for name in built}
    for _ in range(options.rounds):
        for name, algorithm in built.items():
            began, used = time.perf_counter(), cpu_seconds(algorithm)
            result = algorithm.train()
            speeds[name].append(options.steps / (time.perf_counter() - began))
            by_cpu[name].append(options.steps / float((cpu_seconds(algorithm) - used).max()))
            pipeline = result.get("pipeline", {})
            counted[name].append({key: float(pipeline[key]) for key in WAITED if key in pipeline})
    for kind, measured in (("by the clock", speeds), ("by the busiest process's CPU", by_cpu)):
        for name, values in measured.items():
            ratio = Ratio.of(values, measured["one process"])
            print(f"{name}: {np.median(values):.1f} steps/s {kind}, {ratio} x one process")
    content = {
        "benchmark": "overlap_speed",
        "machine": facts,
        "task": options.task,
        "update_to_data": options.update_to_data,
    }
    machine.write_json(
        options.out,
        {**content, "algorithm": options.algorithm, "speeds": speeds, "by_cpu": by_cpu, "pipeline": counted},
    )
    for algorithm in built.values():
        algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()

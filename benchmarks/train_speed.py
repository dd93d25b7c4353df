"""Measure environment steps per second of whole training loops, interleaved.

    python -m benchmarks.train_speed                     # about 5 minutes; needs a quiet machine
    python -m benchmarks.train_speed --quick --only sac --only hand-written
    python -m benchmarks.train_speed --runners 1 2 4 8 16    # remote runners: see benchmarks/runners.py

Each contestant has a process with one torch thread; all share one core. After a warm-up they take turns, A B C ...
A B C ..., one slice of a few seconds each, so that other load on the machine affects all alike. The results are medians
over the rounds, ratios of medians, and in brackets the 10th to 90th percentile of the per-round ratios. Ratios are of
CPU time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contestants import CONTESTANTS, ENV_ID, TITLES, Contestant
from benchmarks.pairs import Ratio

YARDSTICK, STOCK = "hand-written", "rllib-sac"
OTHERS = (YARDSTICK, STOCK, "rllib-sac-small", "sbx", "stable-baselines3", "stable-baselines3-td3")
PACKAGES = {
    "sbx": "sbx",
    "stable-baselines3": "stable_baselines3",
    "stable-baselines3-td3": "stable_baselines3",
}
"""What contestants import that this package does without, by contestant."""
"""Contestants to which all are compared."""
STARTUP_LIMIT_S, SLICE_LIMIT_S = 600.0, 600.0
CHILD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Plan:
    """Size of the measurement.

    Attributes:
        rounds: Number of slices of each contestant.
        steps: Environment steps per slice.
        slow_steps: Environment steps per slice of RLlib's SAC, which is about ten times slower than the others.
        warmup_steps: Random steps without updates; each contestant then learns for one unmeasured slice.
    """

    rounds: int = 9
    steps: int = 500
    slow_steps: int = 50
    warmup_steps: int = 1_000

    def steps_of(self, name: str) -> int:
        return self.slow_steps if name.startswith(STOCK) else self.steps


QUICK = Plan(rounds=2, steps=50, slow_steps=10, warmup_steps=300)


@dataclass(frozen=True)
class Slice:
    """Steps and updates of one contestant in its turn, and their time (s)."""

    env_steps: int
    updates: int
    cpu_s: float
    wall_s: float


# ---- in a contestant's process -------------------------------------------------------------------------


def serve(name: str, plan: Plan, core: int | None, log: str, pipe: Connection) -> None:
    """Make and warm up a contestant, then run a slice for every message until one is None."""
    redirect_output(log)
    try:
        contestant = prepare(name, plan, core)
        pipe.send("ready")
        while pipe.recv() is not None:
            pipe.send(run_slice(contestant, plan.steps_of(name)))
    except Exception:  # noqa: BLE001  whatever it is, the parent reports it
        pipe.send(traceback.format_exc())


def prepare(name: str, plan: Plan, core: int | None) -> Contestant:
    """Return a contestant after its warm-up, pinned to `core`."""
    import torch

    torch.set_num_threads(1)
    steps = plan.steps_of(name)
    contestant = CONTESTANTS[name](plan.warmup_steps, steps)
    if core is not None:
        os.sched_setaffinity(0, {core})  # pins only this thread: Ray's own processes stay on their cores
    warmup_slices = -(-plan.warmup_steps // steps)
    contestant.run(warmup_slices * steps)
    contestant.run(steps)
    return contestant


def run_slice(contestant: Contestant, steps: int) -> Slice:
    """Run one measured turn."""
    before = contestant.counts()
    cpu, wall = time.process_time(), time.perf_counter()
    contestant.run(steps)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    after = contestant.counts()
    return Slice(after.env_steps - before.env_steps, after.updates - before.updates, cpu, wall)


def redirect_output(log: str) -> None:
    """Redirect the output of this process and its libraries to a file."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


# ---- in the parent -------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(names: Sequence[str], plan: Plan) -> Iterator[dict[str, Connection]]:
    """Start the contestants' processes, yield them by name when ready, and end them with the block."""
    os.environ.update(CHILD_ENVIRONMENT)
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    with tempfile.TemporaryDirectory(prefix="train_speed_") as logs:
        try:
            for name in names:
                print(f"warming up {name} ...", flush=True)
                pipes[name], theirs = spawn.Pipe()
                arguments = (name, plan, core, f"{logs}/{name}.log", theirs)
                processes.append(spawn.Process(target=serve, args=arguments, daemon=True))
                processes[-1].start()
                theirs.close()
                receive(name, pipes[name], STARTUP_LIMIT_S, Path(logs, f"{name}.log"))
            yield pipes
        finally:
            for pipe in pipes.values():
                with contextlib.suppress(OSError):
                    pipe.send(None)
            for process in processes:
                process.join(timeout=20)
                process.kill()


def receive(name: str, pipe: Connection, limit_s: float, log: Path | None = None) -> Any:
    """Return the next message of a contestant.

    Raises:
        SystemExit: If it failed, died or sent nothing for `limit_s` seconds.
    """
    try:
        message = pipe.recv() if pipe.poll(limit_s) else f"no answer within {limit_s:.0f} s"
    except EOFError:
        message = "its process died"
    if isinstance(message, str) and message != "ready":
        printed = log.read_text()[-2_000:] if log is not None and log.exists() else ""
        raise SystemExit(f"{name}: {message}\n{printed}")
    return message


def measure(names: Sequence[str], plan: Plan) -> dict[str, list[Slice]]:
    """Return slices of each contestant, taken in turn."""
    slices: dict[str, list[Slice]] = {name: [] for name in names}
    with started(names, plan) as pipes:
        for k in range(plan.rounds):
            for name, pipe in pipes.items():
                pipe.send("run")
                slices[name].append(receive(name, pipe, SLICE_LIMIT_S))
            print(f"round {k + 1} of {plan.rounds}", flush=True)
    check_work(slices)
    return slices


def check_work(slices: dict[str, list[Slice]]) -> None:
    """Reject a comparison in which a contestant did not make one update per environment step."""
    for name, taken in slices.items():
        for one in taken:
            if not one.env_steps == one.updates > 0:
                raise SystemExit(f"{name} did {one.updates} updates in {one.env_steps} environment steps")


def speeds(slices: Sequence[Slice], clock: str) -> list[float]:
    """Return environment steps per second of each slice, by its "cpu" or "wall" time."""
    return [one.env_steps / getattr(one, f"{clock}_s") for one in slices]


def summarise(slices: dict[str, list[Slice]]) -> dict[str, dict[str, Any]]:
    """Return medians and ratios by contestant, ready for JSON."""
    summary: dict[str, dict[str, Any]] = {}
    for name, taken in slices.items():
        summary[name] = {f"steps_per_{clock}_s": median(speeds(taken, clock)) for clock in ("cpu", "wall")}
        for other in OTHERS:
            if other in slices and other != name:
                for clock in ("cpu", "wall"):
                    ratio = Ratio.of(speeds(taken, clock), speeds(slices[other], clock))
                    summary[name].setdefault(f"times_{other}", {})[clock] = asdict(ratio)
        summary[name]["slices"] = [asdict(one) for one in taken]
    return summary


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the middle two."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def table(summary: dict[str, dict[str, Any]]) -> str:
    """Format the summary in Markdown, fastest first."""
    lines = [
        "| training loop | steps/s | steps/s of CPU | x hand-written loop | x RLlib's own SAC |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in sorted(summary, key=lambda name: -summary[name]["steps_per_cpu_s"]):
        row = summary[name]
        ratios = [ratio_cell(row, name, other) for other in (YARDSTICK, STOCK)]
        wall, cpu = f"{row['steps_per_wall_s']:.1f}", f"{row['steps_per_cpu_s']:.1f}"
        lines.append("| " + " | ".join([TITLES[name], wall, cpu, *ratios]) + " |")
    return "\n".join(lines)


def ratio_cell(row: dict[str, Any], name: str, other: str) -> str:
    if name == other:
        return "1"
    ratio = row.get(f"times_{other}")
    return str(Ratio(**ratio["cpu"])) if ratio else ""


def targets(summary: dict[str, dict[str, Any]]) -> list[str]:
    """Format one line per promised speed, where both sides were measured."""
    promises = [
        ("sac", YARDSTICK, 0.95),
        ("sac", STOCK, 8.0),
        (YARDSTICK, "stable-baselines3", 1.0),
        ("td3", "stable-baselines3-td3", 1.0),
        ("sac-compiled", "sbx", 1.0),
        ("sac", "sbx", 0.85),
    ]
    lines = []
    for name, other, least in promises:
        ratio = summary.get(name, {}).get(f"times_{other}")
        if ratio:
            verdict = "reached" if ratio["cpu"]["value"] >= least else "MISSED"
            lines.append(f"{name} / {other}: {Ratio(**ratio['cpu'])}, target >= {least:g}: {verdict}")
    return lines


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_speed", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="two short rounds: does it work at all?")
    parser.add_argument(
        "--only", action="append", choices=list(CONTESTANTS), help="may be given several times"
    )
    parser.add_argument(
        "--runners", type=int, nargs="+", metavar="N", help="compare so many remote runners with one process"
    )
    parser.add_argument("--task", default="humanoid-pybullet", help="with --runners")
    parser.add_argument("--algorithm", default="sac", help="with --runners")
    parser.add_argument("--gpu", action="store_true", help="with --runners: learners on a GPU")
    parser.add_argument(
        "--update-to-data", type=float, nargs="+", default=[1.0, 0.05], help="with --runners: updates a step"
    )
    parser.add_argument("--rounds", type=int, help=f"rounds (default {Plan.rounds})")
    parser.add_argument("--steps", type=int, help=f"environment steps of a slice (default {Plan.steps})")
    parser.add_argument(
        "--out", type=Path, help="JSON file (default results/train_speed.json; none if --quick)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write the JSON."""
    options = parse(arguments)
    if options.runners:
        compare_runners(options)
        return
    names = [name for name in CONTESTANTS if not options.only or name in options.only]
    if missing := [name for name in names if not is_there(name)]:
        raise SystemExit(
            f"{', '.join(missing)}: not installed: pip install 'rllib-hpo[bench]', or choose with --only"
        )
    plan = plan_of(options)
    facts = machine.facts()
    summary = summarise(measure(names, plan))
    print("\n" + table(summary) + "\n")
    print("\n".join(targets(summary)))
    out = options.out or (None if options.quick else machine.RESULTS / "train_speed.json")
    if out is not None:
        content = {"benchmark": "train_speed", "env_id": ENV_ID, "plan": asdict(plan), "machine": facts}
        machine.write_json(out, content | {"contestants": summary})


def is_there(name: str) -> bool:
    """Return whether what a contestant imports is installed."""
    return name not in PACKAGES or importlib.util.find_spec(PACKAGES[name]) is not None


def compare_runners(options: argparse.Namespace) -> None:
    """Compare remote runners with one process; see `benchmarks.runners`."""
    from benchmarks import runners

    facts, plan = machine.facts(), plan_of(options)
    what = (options.algorithm, options.task, options.update_to_data, options.runners)
    content = {
        "benchmark": "train_speed --runners",
        "machine": facts,
        "algorithm": options.algorithm,
        "task": options.task,
        "steps": plan.steps,
        "gpu": options.gpu,
        "updates_per_step": runners.run(*what, rounds=plan.rounds, steps=plan.steps, gpu=options.gpu),
    }
    out = options.out or machine.RESULTS / f"train_speed_runners_{options.algorithm}.json"
    machine.write_json(out, content)


def plan_of(options: argparse.Namespace) -> Plan:
    base = asdict(QUICK if options.quick else Plan())
    if options.rounds:
        base["rounds"] = options.rounds
    if options.steps:
        base |= {"steps": options.steps, "slow_steps": max(1, options.steps // 10)}
    return Plan(**base)


if __name__ == "__main__":
    main()

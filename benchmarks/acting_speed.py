"""Measure the cost of acting for one observation, and compare it with that of another checkout.

    python -m benchmarks.acting_speed
    python -m benchmarks.acting_speed --against ../before    # a checkout of another version

It measures what a runner with one environment does between two steps: `Actor.act` with exploration noise, from a NumPy
row to a NumPy action; and an evaluation's noise-free action. Networks have random weights, on which the cost does not
depend. Each checkout has a process with one torch thread, and they take turns. The results are medians over the rounds
of CPU time, and the 10th to 90th percentile of the per-round ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.pairs import Ratio

OBS, DIM = 11, 3
"""Hopper's sizes."""
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "sac": ("sac", {}),
    "sac-nf": ("sac-nf", {}),
    "sac-hpo, K = 3": ("sac-hpo", {"leapfrog_steps": 3}),
}
WAYS = ("explores", "evaluates")
AT_MOST = {("sac", "explores"): 0.6, ("sac-hpo, K = 3", "explores"): 0.6}
"""Targets: largest ratio to version 0.1.0."""

SERVER = """
import json, sys, time
import numpy as np, torch
from rllib_hpo.algorithms.registry import find_settings, make_method
from rllib_hpo.streams import TorchStreams

torch.set_num_threads(1)
policies, obs_dim, action_dim = json.loads(sys.argv[1])
rows = np.random.default_rng(0).normal(size=(64, 1, obs_dim)).astype(np.float32)
calls = {}
for name, (algorithm, changes) in policies.items():
    actor = make_method(find_settings(algorithm)(**changes)).make_actor(obs_dim, action_dim, seed=0)
    for way, streams in (("explores", TorchStreams(0, "runner")), ("evaluates", None)):
        calls[name, way] = lambda row, actor=actor, streams=streams: actor.act(
            torch.from_numpy(row).to(actor.device), streams, {}
        ).cpu().numpy()
print("ready", flush=True)
for line in sys.stdin:
    name, way, number = json.loads(line)
    act, made = calls[name, way], []
    began = time.process_time()
    for k in range(number):
        made.append(act(rows[k % 64]))
    seconds = time.process_time() - began
    print(json.dumps([seconds / number * 1e6, float(np.sum(made, dtype=np.float64))]), flush=True)
"""
"""The program of each checkout's process: it uses what all versions have."""


class Checkout:
    """A process that acts with the package of one checkout."""

    def __init__(self, root: Path) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, json.dumps([POLICIES, OBS, DIM])],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise SystemExit(f"{root} has no package that acts.")

    def __enter__(self) -> Checkout:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def act(self, policy: str, way: str, number: int) -> tuple[float, float]:
        """Return microseconds of CPU time per action, and the sum of all actions, which versions can compare."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([policy, way, number]) + "\n")
        self._process.stdin.flush()
        microseconds, total = json.loads(self._process.stdout.readline())
        return microseconds, total


def measure(roots: Mapping[str, Path], rounds: int, number: int) -> dict[str, dict[str, Any]]:
    """Return microseconds of every round by checkout, for every policy and way to act."""
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        checkouts = {name: stack.enter_context(Checkout(root)) for name, root in roots.items()}
        for policy in POLICIES:
            for way in WAYS:
                rows: dict[str, list[float]] = {name: [] for name in checkouts}
                sums = {name: checkout.act(policy, way, number)[1] for name, checkout in checkouts.items()}
                for _ in range(rounds):
                    for name, checkout in checkouts.items():
                        rows[name].append(checkout.act(policy, way, number)[0])
                found[f"{policy}, {way}"] = {"rounds_us": rows, "sums": sums}
    return found


def summarise(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return medians, the ratio to the other checkout, and whether both act the same."""
    summary = {}
    for what, measured in found.items():
        here, *others = measured["rounds_us"].values()
        row: dict[str, Any] = {"us": sorted(here)[len(here) // 2], "rounds_us": here}
        if others:
            row |= {"times_other": asdict(Ratio.of(here, others[0])), "other_rounds_us": others[0]}
            row["same_actions"] = len(set(measured["sums"].values())) == 1
        summary[what] = row
    return summary


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the summary in Markdown."""
    lines = ["| acting | us | x other checkout | same actions |", "| --- | ---: | ---: | --- |"]
    for what, row in summary.items():
        ratio = str(Ratio(**row["times_other"])) if "times_other" in row else ""
        same = {None: "", True: "yes", False: "NO"}[row.get("same_actions")]
        lines.append(f"| {what} | {row['us']:.0f} | {ratio} | {same} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.acting_speed", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="root of another version's checkout")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--number", type=int, default=200, help="actions of a round")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "acting_speed.json")
    options = parser.parse_args(arguments)
    roots = {"here": machine.ROOT} | ({"other": options.against.resolve()} if options.against else {})
    facts = machine.facts()
    summary = summarise(measure(roots, options.rounds, options.number))
    print(table(summary))
    machine.write_json(options.out, {"benchmark": "acting_speed", "machine": facts, "acting": summary})


if __name__ == "__main__":
    main()

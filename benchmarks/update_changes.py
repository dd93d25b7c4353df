"""Measure the speedup of each change in `PROFILE.md`: updates with one undone, against updates with all.

    python -m benchmarks.update_changes

It runs on one CPU thread, and measures the process's CPU time. All variants take turns in one process, one chunk each
per round. The results are medians, and the 10th to 90th percentile of the per-round ratios. Above 1 the change makes
updates faster.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks import machine, update_speed
from benchmarks.pairs import Ratio

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

UPDATES = (
    ("sac", "Hopper"),
    ("sac", "Humanoid"),
    ("sac-hpo, K = 3", "Hopper"),
    ("sac-hpo, K = 3", "Humanoid"),
)


def _without_onednn() -> AbstractContextManager[Any]:
    from rllib_hpo.kernels import products

    return mock.patch.object(products, "HAS_ONEDNN", new=False)


def _critics_together() -> AbstractContextManager[Any]:
    from rllib_hpo.kernels import q_networks

    def together(w: Any, b: Any) -> Any:
        return [q_networks.Layers(list(w), list(b))]

    return mock.patch.object(q_networks, "separate", together)


def _both_critics_gradients() -> AbstractContextManager[Any]:
    from rllib_hpo.kernels import q_networks

    return mock.patch.object(q_networks, "ROWS_WORTH_SPLITTING", 10**9)


def _matrices_of_one_column() -> AbstractContextManager[Any]:
    import torch

    def addmv(bias: Any, matrix: Any, vector: Any) -> Any:
        return torch.addmm(bias, matrix, vector.unsqueeze(-1)).squeeze(-1)

    return mock.patch("rllib_hpo.kernels.products.torch.addmv", addmv)


@contextmanager
def _policy_by_autograd() -> Iterator[None]:
    from torch import nn

    from rllib_hpo.networks.mlp import ReluMLP
    from rllib_hpo.samplers import gaussian

    def forward(self: Any, inputs: Any, detached_rows: int = 0) -> Any:
        return nn.Sequential.forward(self, inputs)  # type: ignore[no-untyped-call]

    with (
        mock.patch.object(ReluMLP, "forward", forward),
        mock.patch.object(gaussian, "wants_gradients", return_value=False),
    ):
        yield


def _chain_by_autograd() -> AbstractContextManager[Any]:
    from rllib_hpo.samplers.hamiltonian import HamiltonianSampler

    return mock.patch.object(HamiltonianSampler, "_learns_from_the_chain", return_value=False)


def _adam_as_torch_has_it() -> AbstractContextManager[Any]:
    from rllib_hpo.optim import steps

    return mock.patch.object(steps, "adam_step", lambda optimizer, skip=None: optimizer.step())


CHANGES: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "large products go to oneDNN": _without_onednn,
    "critics take turns": _critics_together,
    "back through the smaller critic alone": _both_critics_gradients,
    "a single output is a matrix-vector product": _matrices_of_one_column,
    "the policy's backward pass written out": _policy_by_autograd,
    "the chain's backward pass written out": _chain_by_autograd,
    "Adam's kernel called directly": _adam_as_torch_has_it,
}
"""Functions that undo each change."""


def measure(algorithm: str, size: str, rounds: int, chunk: int, warm_up: int) -> dict[str, list[float]]:
    """Return milliseconds per update, one value per round, with nothing undone ("") and with each change undone."""
    contexts = {"": nullcontext, **CHANGES}
    if not algorithm.startswith("sac-hpo"):
        del contexts["the chain's backward pass written out"]
    runs = {}
    for name, undone in contexts.items():
        runs[name] = update_speed.make_updates(update_speed.Contestant(algorithm, size, "cpu", "eager"))
        with undone():
            runs[name](warm_up)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            with contexts[name]():
                began = time.process_time()
                run(chunk)
                times[name].append((time.process_time() - began) / chunk * 1e3)
    return times


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.update_changes", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--chunk", type=int, default=20, help="updates of one contestant in a round")
    parser.add_argument("--warm-up", type=int, default=update_speed.WARM_UP)
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "update_changes.json")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    facts = machine.facts()
    found: dict[str, dict[str, Any]] = {}
    for algorithm, size in UPDATES:
        times = measure(algorithm, size, options.rounds, options.chunk, options.warm_up)
        found[f"{algorithm}, {size}"] = {
            "ms_per_update": sorted(times[""])[len(times[""]) // 2],
            "undone": {name: asdict(Ratio.of(each, times[""])) for name, each in times.items() if name},
            "rounds_ms": times,
        }
    print(table(found))
    machine.write_json(options.out, {"benchmark": "update_changes", "machine": facts, "updates": found})


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Format times of an update without each change, relative to those with all, in Markdown."""
    lines = [f"| without | {' | '.join(found)} |", f"| --- |{' ---: |' * len(found)}"]
    for name in CHANGES:
        cells = [str(Ratio(**row["undone"][name])) if name in row["undone"] else "" for row in found.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

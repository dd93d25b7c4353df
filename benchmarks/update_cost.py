"""What an update of SAC-HPO costs, relative to one of SAC, eagerly and on one CPU thread.

    python -m benchmarks.update_cost

Sizes are Hopper's, the batch 256, everything else the settings' defaults: the same critics, and a base policy
of one hidden layer where SAC has two. The algorithms take turns in one process, a chunk of updates each per
round; reported are medians, ratios of medians, and the 10th to 90th percentile of the ratios by round.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import machine
from benchmarks.pairs import Ratio

if TYPE_CHECKING:
    from rllib_hpo.settings import ActorCriticSettings

OBS_DIM, ACTION_DIM, BATCH_SIZE, NUM_BATCHES = 11, 3, 256, 16
TARGETS = {"sac-hpo, K = 2": 2.6, "sac-hpo, K = 3": 3.2}
"""Most that an update may cost, in updates of SAC."""


def algorithms() -> dict[str, ActorCriticSettings]:
    """The settings that are compared, the yardstick first."""
    from rllib_hpo.settings import SACHPOSettings, SACSettings

    hpo = {name: SACHPOSettings(leapfrog_steps=int(name[-1])) for name in TARGETS}
    return {"sac": SACSettings(), **hpo}


def make_update(settings: ActorCriticSettings) -> Callable[[], None]:
    """A function that makes one update of a fresh model, on one of 16 fixed batches in turn."""
    import torch

    from rllib_hpo.learning.actor_critic import ActorCritic
    from rllib_hpo.learning.replay import RowLayout
    from rllib_hpo.learning.update import make_optimizers, update
    from rllib_hpo.samplers.base import draw_noise
    from rllib_hpo.streams import TorchStreams

    model = ActorCritic(OBS_DIM, ACTION_DIM, settings, seed=0)
    optimizers = make_optimizers(model, settings)
    layout, streams = RowLayout(OBS_DIM, ACTION_DIM), TorchStreams(0, "benchmark")
    rows = torch.randn(NUM_BATCHES, BATCH_SIZE, layout.width, generator=streams["rows"])
    batches = [layout.unpack(block) for block in rows]
    for batch in batches:
        batch.action.tanh_()
        batch.terminated.zero_()
    noise = [draw_noise(model.sampler, 2 * BATCH_SIZE, streams) for _ in batches]
    made = 0

    def one() -> None:
        nonlocal made
        update(model, optimizers, batches[made % NUM_BATCHES], noise[made % NUM_BATCHES], settings)
        made += 1

    return one


def measure(
    updates: dict[str, Callable[[], None]], rounds: int, chunk: int
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds per update, by algorithm and clock ("cpu", "wall"), one number a round."""
    times: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in updates}
    for one in updates.values():
        for _ in range(chunk):
            one()
    for _ in range(rounds):
        for name, one in updates.items():
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(chunk):
                one()
            times[name]["cpu"].append((time.process_time() - cpu) / chunk * 1e3)
            times[name]["wall"].append((time.perf_counter() - wall) / chunk * 1e3)
    return times


def summarise(times: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """Medians (ms) and ratios to the first algorithm, ready for JSON."""
    yardstick = next(iter(times.values()))
    return {
        name: {
            "ms_per_update": {clock: sorted(values)[len(values) // 2] for clock, values in clocks.items()},
            "times_sac": {
                clock: asdict(Ratio.of(values, yardstick[clock])) for clock, values in clocks.items()
            },
            "rounds": clocks,
        }
        for name, clocks in times.items()
    }


def table(summary: dict[str, dict[str, Any]]) -> str:
    """The summary in Markdown; CPU time."""
    lines = ["| update | ms | x SAC | at most |", "| --- | ---: | ---: | ---: |"]
    for name, row in summary.items():
        ratio = Ratio(**row["times_sac"]["cpu"])
        limit = TARGETS.get(name)
        ours, limit_cell = (str(ratio), f"{limit:g}") if limit else ("1", "")
        lines.append(f"| {name} | {row['ms_per_update']['cpu']:.2f} | {ours} | {limit_cell} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.update_cost", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--chunk", type=int, default=40, help="updates of one algorithm in a round")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "update_cost.json")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    facts = machine.facts()
    summary = summarise(
        measure({n: make_update(s) for n, s in algorithms().items()}, options.rounds, options.chunk)
    )
    print(table(summary))
    content = {"benchmark": "update_cost", "machine": facts, "batch_size": BATCH_SIZE}
    machine.write_json(options.out, content | {"updates": summary})


if __name__ == "__main__":
    main()

"""What the paper's grid costs and how long it takes, from what the other benchmarks measured.

    python -m benchmarks.grid_cost

Of every trial of tune_configs/eight-tasks.yaml it counts the updates, the steps of its runners and those of its
evaluations (full-length episodes). update_speed.json says how many updates a second a core makes, and
update_speed_gpu.json a GPU; grid_gpu.json what several trials on one GPU make of that; sampling_speed.json how many
steps a second a core takes.
Learning, sampling and evaluating overlap, so the grid takes as long as the part with the most work for its machines, or
its longest trial: that part saturates first. Starts, checkpoints and machines that are idle towards the end are not
counted. Prices and their date are in prices.json. What has not been measured is said, and not guessed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine

SWEEP = machine.ROOT / "tune_configs" / "eight-tasks.yaml"
CORES_PER_GPU = 16
EPISODE_LENGTH = 1_000
"""Steps of a full-length episode of every one of the eight tasks."""


class Trial(NamedTuple):
    """What one trial has to do."""

    algorithm: str
    """As update_speed.json calls it, K included."""
    size: str
    """Of the two sizes that updates were measured with, the nearer one."""
    task: str
    sampler: str
    """As sampling_speed.json calls the algorithm."""
    updates: int
    steps: int
    """Environment steps of training and of evaluations."""
    evaluation_steps: int


class Rates(NamedTuple):
    """What was measured."""

    updates_per_s: Mapping[tuple[str, str], float]
    """By algorithm and size, of a trial that has the device for itself."""
    sharing: float
    """Updates a second of several trials on one device, over those of one."""
    steps_per_s: Mapping[tuple[str, str], float]
    """By task and algorithm, of one core."""


@dataclass(frozen=True)
class Machines:
    """What the grid runs on; `gpus` is 0 where learners, too, have a core each."""

    gpus: int
    cores: int

    def __str__(self) -> str:
        return (
            f"{self.gpus} GPU{'s' if self.gpus > 1 else ''}, {self.cores} cores"
            if self.gpus
            else f"{self.cores} cores"
        )


@dataclass(frozen=True)
class Estimate:
    """Hours by part; the largest is the grid's."""

    learning: float
    sampling: float
    longest_trial: float

    @property
    def hours(self) -> float:
        """From the first step to the last."""
        return max(self.learning, self.sampling, self.longest_trial)

    def bottleneck(self, gpus: int) -> str:
        """What saturates first."""
        if self.hours == self.longest_trial:
            return "the longest trial"
        return "GPUs" if gpus and self.hours == self.learning else "cores"


def trials(sweep: Path) -> list[Trial]:
    """All trials of a sweep file."""
    from rllib_hpo.experiments.config.sweep_config import read_sweep

    return [trial_of(each.config) for each in read_sweep(sweep).trials]


def trial_of(config: Any) -> Trial:
    """The work of one trial."""
    settings, steps = config.settings, config.run.steps
    algorithm = config.run.algorithm
    evaluations = steps // settings.evaluation_every + 1
    evaluated = evaluations * settings.evaluation_episodes * EPISODE_LENGTH
    chain = f", K = {settings.leapfrog_steps}" if algorithm == "sac-hpo" else ""
    return Trial(
        algorithm=algorithm + chain,
        size="Humanoid" if config.task.name == "humanoid" else "Hopper",
        task=config.task.name,
        sampler=algorithm,
        updates=max(0, steps - settings.warmup_steps) * settings.update_to_data,
        steps=steps + evaluated,
        evaluation_steps=evaluated,
    )


def estimate(work: Sequence[Trial], rates: Rates, machines: Machines) -> Estimate:
    """How long the parts of a grid take."""
    learning = [trial.updates / rates.updates_per_s[trial.algorithm, trial.size] for trial in work]
    sampling = [trial.steps / rates.steps_per_s[trial.task, trial.sampler] for trial in work]
    evaluating = [trial.evaluation_steps / rates.steps_per_s[trial.task, trial.sampler] for trial in work]
    on_gpus = sum(learning) / rates.sharing / machines.gpus if machines.gpus else 0.0
    on_cores = (sum(sampling) + (0.0 if machines.gpus else sum(learning))) / machines.cores
    longest = max(map(max, zip(learning, evaluating, strict=True)))
    return Estimate(on_gpus / 3600, on_cores / 3600, longest / 3600)


def read_rates(results: Path, device: str) -> Rates | None:
    """What was measured on a device, "cuda" or "cpu"; None where updates were not."""
    mode, file = ("graph", "update_speed_gpu.json") if device == "cuda" else ("eager", "update_speed.json")
    if not (results / file).exists():
        return None
    rows = [row for row in _read(results / file)["updates"] if (row["device"], row["mode"]) == (device, mode)]
    updates = {(row["algorithm"], row["size"]): row["updates_per_second"] for row in rows}
    shared = results / "grid_gpu.json"
    sharing = 1.0
    if device == "cuda" and shared.exists():
        sharing = max(row["times_fewest"]["value"] for row in _read(shared)["trials"].values())
    speeds = _read(results / "sampling_speed.json")["tasks"]
    steps = {(task, name): row["steps_per_cpu_s"] for task, of in speeds.items() for name, row in of.items()}
    return Rates(updates, sharing, steps)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def price_per_hour(machines: Machines, prices: Mapping[str, Any]) -> float:
    """US dollars."""
    if machines.gpus:
        return float(machines.gpus * prices["gpu_with_16_cores_per_hour"])
    return float(machines.cores * prices["core_per_hour"])


def table(work: Sequence[Trial], results: Path) -> str:
    """The grid on 1, 8 and 64 GPUs, and on as many cores without any, in Markdown."""
    prices = _read(results / "prices.json")
    lines = ["| machines | days | US dollars | saturates first |", "| --- | ---: | ---: | --- |"]
    for device in ("cuda", "cpu"):
        rates = read_rates(results, device)
        for count in (1, 8, 64):
            machines = Machines(count if device == "cuda" else 0, count * CORES_PER_GPU)
            if rates is None:
                lines.append(f"| {machines} | not measured | | |")
                continue
            found = estimate(work, rates, machines)
            dollars = found.hours * price_per_hour(machines, prices)
            lines.append(
                f"| {machines} | {found.hours / 24:.1f} | {dollars:,.0f} | {found.bottleneck(machines.gpus)} |"
            )
    return "\n".join([*lines, "", f"Prices of {prices['date']}. {prices['source']}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grid_cost", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--sweep", type=Path, default=SWEEP)
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="where the JSON files are")
    options = parser.parse_args(arguments)
    print(table(trials(options.sweep), options.results))


if __name__ == "__main__":
    main()

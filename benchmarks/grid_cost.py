"""Estimate the cost and duration of the paper's grid from the other benchmarks' results.

    python -m benchmarks.grid_cost

It counts the updates, runner steps and evaluation steps (full-length episodes) of every trial in
tune_configs/eight-tasks.yaml. The speeds come from update_speed.json (updates per second of a core),
update_speed_gpu.json (of a GPU: `update_speed --devices cuda --out ...`), grid_gpu.json (of several trials on one GPU:
`gpu_check --ray`) and sampling_speed.json (steps per second of a core). Learning, sampling and evaluating overlap, so
the slowest part, or the longest trial, determines the duration. The estimate ignores starts, checkpoints and machines
that idle towards the end. Prices and their date are in prices.json. Missing measurements are reported, not guessed.
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
"""Steps of a full-length episode, equal in all eight tasks."""


class Trial(NamedTuple):
    """The work of one trial."""

    algorithm: str
    """Name in update_speed.json, K included."""
    size: str
    """The nearer of the two input sizes at which updates were measured."""
    task: str
    sampler: str
    """Name in sampling_speed.json."""
    updates: int
    steps: int
    """Environment steps of training and of evaluations."""
    evaluation_steps: int


class Rates(NamedTuple):
    """Measured speeds."""

    updates_per_s: Mapping[tuple[str, str], float]
    """By algorithm and size, for a trial with the device to itself."""
    sharing: float
    """Updates per second of several trials on one device, relative to one trial."""
    steps_per_s: Mapping[tuple[str, str], float]
    """By task and algorithm, for one core."""


@dataclass(frozen=True)
class Machines:
    """Machines of the grid; with `gpus` 0 each learner has one core."""

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
    """Hours of each part; the largest determines the grid's."""

    learning: float
    sampling: float
    longest_trial: float

    @property
    def hours(self) -> float:
        """Hours from the first step to the last."""
        return max(self.learning, self.sampling, self.longest_trial)

    def bottleneck(self, gpus: int) -> str:
        """The part that saturates first."""
        if self.hours == self.longest_trial:
            return "the longest trial"
        return "GPUs" if gpus and self.hours == self.learning else "cores"


def trials(sweep: Path) -> list[Trial]:
    """Return all trials of a sweep file."""
    from rllib_hpo.experiments.config.sweep_config import read_sweep

    return [trial_of(each.config) for each in read_sweep(sweep).trials]


def trial_of(config: Any) -> Trial:
    """Return the work of one trial."""
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
    """Estimate the duration of each part of a grid."""
    learning = [trial.updates / rates.updates_per_s[trial.algorithm, trial.size] for trial in work]
    sampling = [trial.steps / rates.steps_per_s[trial.task, trial.sampler] for trial in work]
    evaluating = [trial.evaluation_steps / rates.steps_per_s[trial.task, trial.sampler] for trial in work]
    on_gpus = sum(learning) / rates.sharing / machines.gpus if machines.gpus else 0.0
    on_cores = (sum(sampling) + (0.0 if machines.gpus else sum(learning))) / machines.cores
    longest = max(map(max, zip(learning, evaluating, strict=True)))
    return Estimate(on_gpus / 3600, on_cores / 3600, longest / 3600)


def read_rates(results: Path, device: str) -> Rates | None:
    """Read the speeds measured on a device, "cuda" or "cpu"; None if its updates were not measured."""
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
    """Return the price per hour in US dollars."""
    if machines.gpus:
        return float(machines.gpus * prices["gpu_with_16_cores_per_hour"])
    return float(machines.cores * prices["core_per_hour"])


def table(work: Sequence[Trial], results: Path) -> str:
    """Format the grid's estimate for 1, 8 and 64 GPUs, and for as many cores without GPUs, in Markdown."""
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
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grid_cost", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--sweep", type=Path, default=SWEEP)
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="where the JSON files are")
    options = parser.parse_args(arguments)
    print(table(trials(options.sweep), options.results))


if __name__ == "__main__":
    main()

"""Measure what the sweep files that come with the package cost, in hours of one core.

    python -m benchmarks.sweep_costs            # those that are new or have changed
    python -m benchmarks.sweep_costs smoke      # these

It times environment steps, actions and updates of each kind of trial, as `rllib-hpo sweep NAME --dry-run` does, but in
seconds of CPU, and writes tune_configs/costs.json, which `rllib-hpo sweeps` shows.
"""

from __future__ import annotations

import argparse
import json
import time

from benchmarks import machine
from rllib_hpo.experiments.config.shipped import COSTS_FILE, SweepCost, sweep_costs, sweep_files
from rllib_hpo.experiments.config.sweep_config import Sweep, read_sweep
from rllib_hpo.experiments.sweeps.estimate import time_trials

COSTS = machine.ROOT / "tune_configs" / COSTS_FILE


def measure(sweep: Sweep) -> SweepCost:
    """Return what a sweep costs on this machine."""
    seconds = time_trials(sweep, time.process_time)
    steps = sum(trial.config.run.steps for trial in sweep.trials)
    return SweepCost(len(sweep.trials), steps, round(sum(seconds.values()) / 3600, 2))


def has_changed(sweep: Sweep, cost: SweepCost | None) -> bool:
    """Return whether a sweep's trials or steps are not those that were measured."""
    steps = sum(trial.config.run.steps for trial in sweep.trials)
    return cost is None or (cost.trials, cost.env_steps) != (len(sweep.trials), steps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*sweep_files(), []], help="sweeps to measure")
    names = parser.parse_args().names
    sweeps = {name: read_sweep(path) for name, path in sweep_files().items()}
    costs = {name: cost for name, cost in sweep_costs().items() if name in sweeps}
    for name in names or [name for name in sweeps if has_changed(sweeps[name], costs.get(name))]:
        costs[name] = measure(sweeps[name])
        print(f"{name}: {costs[name].core_hours:,.2f} core-hours")
        listed = {name: costs[name]._asdict() for name in sorted(costs)}
        COSTS.write_text(json.dumps({"machine": machine.facts(), "sweeps": listed}, indent=1) + "\n")


if __name__ == "__main__":
    main()

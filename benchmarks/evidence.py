"""Train what a study still lacks, on all cores, and keep the rows of its finished trials in benchmarks/results.

    python -m benchmarks.evidence                                     # tune_configs/evidence.yaml, then its ablation
    python -m benchmarks.evidence benchmarks/studies/safe.yaml        # another study, or several in turn
    python -m benchmarks.evidence --missing                           # say what is missing, and stop

A study is a sweep file. It is trained in runs/evidence/STUDY as `rllib-hpo sweep` would, with seeds outermost, so that
the algorithms have the same seeds whenever it is stopped. While it runs, the rows of every trial that has finished are
added to benchmarks/results/STUDY, and for seed 0 its policy (safetensors). What is there is not trained again, on any
machine. Trials that were stopped (Ctrl-C, SIGTERM, a crash) resume from their last checkpoints if the directory still
exists.
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.cluster.ray_session import quiet_ray
from rllib_hpo.experiments.config.run_config import resolve
from rllib_hpo.experiments.config.sweep_config import Sweep, Trial, read_sweep
from rllib_hpo.experiments.storage.export import export_policy
from rllib_hpo.experiments.sweeps.plan import SweepFiles, steps_done
from rllib_hpo.experiments.sweeps.progress import SweepProgress
from rllib_hpo.experiments.sweeps.sweep import Outcome, plan_trials, run_sweep, start_sweep
from rllib_hpo.experiments.sweeps.trial import TrialOptions
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from rllib_hpo.results import compact, read_rows, row_config, rows_from_arrow, write_row

STUDIES = [
    machine.ROOT / "tune_configs" / "evidence.yaml",
    machine.ROOT / "benchmarks" / "studies" / "evidence-ablation.yaml",
]
RUNS = Path("runs") / "evidence"
DERIVED = ("env", "initialize_digest")
"""Keys of a stored configuration that follow from others."""
KEEP_INTERVAL_S = 20.0
"""Seconds between two looks for trials that have finished."""


def missing(sweep: Sweep, results: Path) -> list[Trial]:
    """Return the trials whose last row is not in `results`, in the order of the sweep: seeds outermost.

    Raises:
        UserError: If rows that are there come from other settings than the sweep's.
    """
    rows = read_rows(results).to_pylist() if results.exists() else []
    found = {(*_run_of(row), row["env_steps"]): row for row in rows}
    lacking = []
    for trial in sweep.trials:
        row = found.get((*_run_of(trial), trial.config.run.steps))
        if row is None:
            lacking.append(trial)
        else:
            _check_same(trial, row, results)
    return lacking


def _run_of(what: Trial | Mapping[str, Any]) -> tuple[str, str, str, int]:
    """Return variant, algorithm, task and seed of a trial or a row."""
    if isinstance(what, Trial):
        run = what.config.run
        return what.variant, run.algorithm, run.task, run.seed
    return what["variant"], what["algorithm"], what["task"], what["seed"]


def _check_same(trial: Trial, row: Mapping[str, Any], results: Path) -> None:
    """Check that a row was measured with a trial's settings; settings that came later had their defaults then."""
    stored = {name: value for name, value in row_config(row).items() if name not in DERIVED}
    before = resolve({"compile_update": False, **stored, "steps": row["env_steps"]}).values()
    for name, value in trial.config.values().items():
        if before[name] != value:
            raise UserError(
                f"{results} has {trial.name} with {name}={before[name]!r}, and the study says {value!r}; "
                "give the study another name, or remove those rows."
            )


class Study:
    """The trials of one sweep file, where they are trained, and where their rows are kept."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.sweep = read_sweep(file)
        self.files = SweepFiles(RUNS / self.sweep.name)
        self.results = machine.RESULTS / self.sweep.name
        self.missing = missing(self.sweep, self.results)

    def train(self, num_trials: int) -> Outcome:
        """Train the missing trials, `num_trials` at a time, and keep those that finish."""
        if self.files.plan.exists():
            plan_trials(self.sweep, self.files)
        else:
            start_sweep(self.sweep, self.file, self.files)
        with self._keeping():
            return run_sweep(
                self.files,
                SweepProgress(Console()),
                only=[trial.name for trial in self.missing],
                options=TrialOptions(num_trials, WandbOptions("disabled")),
            )

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Keep finished trials every few seconds, and once more at the end."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(KEEP_INTERVAL_S):
                self.keep_finished()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            self.keep_finished()

    def keep_finished(self) -> None:
        """Add the rows of trials that have finished to those of the study, and policies of seed 0."""
        finished = [trial for trial in self.missing if self._is_finished(trial)]
        if finished:
            self._keep(finished)
            self.missing = [trial for trial in self.missing if trial not in finished]

    def _is_finished(self, trial: Trial) -> bool:
        """Return whether the last checkpoint of a trial is there, which is written after its last row."""
        return steps_done(self.files.trial(trial.name)) >= trial.config.run.steps

    def _keep(self, trials: Iterable[Trial]) -> None:
        wanted = {_run_of(trial): trial for trial in trials}
        for row in rows_from_arrow(read_rows(self.files.results)):
            if _run_of(vars(row)) in wanted:
                write_row(self.results, row)
        compact(self.results)
        for trial in wanted.values():
            if trial.config.run.seed == 0:
                policies = self.results / "policies"
                policies.mkdir(exist_ok=True)
                run = self.files.trial(trial.name).directory
                export_policy(run, "safetensors", policies / f"{trial.name}.safetensors")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("files", nargs="*", type=Path, default=STUDIES, metavar="FILE")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="trials at a time")
    parser.add_argument("--missing", action="store_true", help="say what is missing, and stop")
    options = parser.parse_args()
    quiet_ray()
    try:
        for study in [Study(file) for file in options.files]:
            print(f"{study.sweep.name}: {len(study.missing)} of {len(study.sweep.trials)} trials are missing")
            if options.missing:
                print("".join(f"  {trial.name}\n" for trial in study.missing), end="")
            elif study.missing:
                outcome = study.train(options.cores)
                if outcome.failed or outcome.stopped_by is not None:
                    raise SystemExit(f"error: failed: {list(outcome.failed)}; missing: {len(study.missing)}")
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()

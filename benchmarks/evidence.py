"""Train what a study still lacks, on all cores, and keep the rows of its finished trials in benchmarks/results.

    python -m benchmarks.evidence                                     # tune_configs/evidence.yaml
    python -m benchmarks.evidence benchmarks/studies/safe.yaml        # another study, or several in turn
    python -m benchmarks.evidence --missing                           # say what is missing, and stop

A study is a sweep file. Each trial is a `rllib-hpo sweep` of its own in runs/evidence/STUDY/TRIAL, with seeds
outermost, so that the algorithms have the same seeds whenever it is stopped. The rows of a finished trial are added to
benchmarks/results/STUDY, and for seed 0 its policy (safetensors). What is there is not trained again, on any machine.
A trial that was stopped (Ctrl-C, SIGTERM, a crash) resumes from its last checkpoint if its directory still exists.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.config.run_config import resolve
from rllib_hpo.experiments.config.sweep_config import Sweep, Trial, read_sweep
from rllib_hpo.results import add, compact, read_rows, row_config

STUDY = machine.ROOT / "tune_configs" / "evidence.yaml"
RUNS = Path("runs") / "evidence"
DERIVED = ("env", "initialize_digest")
"""Keys of a stored configuration that follow from others."""


def missing(sweep: Sweep, results: Path) -> list[Trial]:
    """Return the trials whose last row is not in `results`, in the order of the sweep: seeds outermost.

    Raises:
        UserError: If rows that are there come from other settings than the sweep's.
    """
    found = {(row["variant"], *_axes(row), row["env_steps"]): row for row in _rows(results)}
    lacking = []
    for trial in sweep.trials:
        run = trial.config.run
        row = found.get((trial.variant, run.algorithm, run.task, run.seed, run.steps))
        if row is None:
            lacking.append(trial)
        else:
            _check_same(trial, row, results)
    return lacking


def _rows(results: Path) -> Iterable[Mapping[str, Any]]:
    return read_rows(results).to_pylist() if results.exists() else ()


def _axes(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["algorithm"], row["task"], row["seed"]


def _check_same(trial: Trial, row: Mapping[str, Any], results: Path) -> None:
    """Check that a row was measured with a trial's settings; settings that came later had their defaults then."""
    stored = {name: value for name, value in row_config(row).items() if name not in DERIVED}
    before = resolve({**stored, "steps": row["env_steps"]}).values()
    for name, value in trial.config.values().items():
        if before[name] != value:
            raise UserError(
                f"{results} has {trial.name} with {name}={before[name]!r}, and the study says {value!r}; "
                "give the study another name, or remove those rows."
            )


class Study:
    """The missing trials of one sweep file, and where they and their rows go."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.sweep = read_sweep(file)
        self.results = machine.RESULTS / self.sweep.name
        self.missing = missing(self.sweep, self.results)

    def command(self, trial: Trial) -> list[str]:
        """Return the command that begins a trial, or goes on with it."""
        directory = RUNS / self.sweep.name / trial.name
        if (directory / "plan.json").exists():
            which = ["--resume", str(directory)]
        else:
            run = trial.config.run
            only = f"algorithm={run.algorithm},task={run.task},variant={trial.variant}"
            which = [str(self.file), "--only", only, "--seeds", str(run.seed), "--out", str(directory)]
        return [*_CLI, "sweep", *which, "--wandb", "disabled", "--max-concurrent", "1"]

    def keep(self, trial: Trial) -> None:
        """Add a finished trial's rows to those of the study, and its policy if its seed is 0."""
        directory = RUNS / self.sweep.name / trial.name
        add(self.results, directory / "results")
        compact(self.results)
        if trial.config.run.seed == 0:
            out = self.results / "policies" / f"{trial.name}.safetensors"
            out.parent.mkdir(exist_ok=True)
            run = directory / "trials" / trial.name
            command = [*_CLI, "export", str(run), "--format", "safetensors", "--out", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


_CLI = (sys.executable, "-m", "rllib_hpo.cli")


class Workers:
    """Threads that run trials, one subprocess each, until none is left or a signal stops them."""

    def __init__(self, work: Sequence[tuple[Study, Trial]]) -> None:
        self._work: queue.SimpleQueue[tuple[Study, Trial]] = queue.SimpleQueue()
        for item in work:
            self._work.put(item)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self.failed: list[str] = []

    def run(self, cores: int) -> None:
        """Run everything on `cores` threads."""
        threads = [threading.Thread(target=self._work_on) for _ in range(cores)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self, *_: object) -> None:
        """Let the running trials write their checkpoints and end; begin no other. For use as a signal's handler."""
        self._stopped = True
        for process in list(self._running):
            process.send_signal(signal.SIGTERM)

    def _work_on(self) -> None:
        while not self._stopped:
            try:
                study, trial = self._work.get_nowait()
            except queue.Empty:
                return
            process = subprocess.Popen(
                study.command(trial),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._running.add(process)
            _, errors = process.communicate()
            self._running.discard(process)
            with self._lock:  # rows of one study are compacted by one thread at a time
                self._finish(study, trial, process.returncode, errors)

    def _finish(self, study: Study, trial: Trial, code: int, errors: bytes) -> None:
        name = f"{study.sweep.name}/{trial.name}"
        if code == 0:
            study.keep(trial)
            print(f"{name}: done", flush=True)
        elif not self._stopped:
            self.failed.append(name)
            print(f"{name}: ended with {code}\n{errors.decode(errors='replace')[-2000:]}", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("files", nargs="*", type=Path, default=[STUDY], metavar="FILE")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--missing", action="store_true", help="say what is missing, and stop")
    options = parser.parse_args()
    try:
        studies = [Study(file) for file in options.files]
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    for study in studies:
        print(f"{study.sweep.name}: {len(study.missing)} of {len(study.sweep.trials)} trials are missing")
    work = [(study, trial) for study in studies for trial in study.missing]
    if options.missing:
        print("\n".join(f"  {study.sweep.name}/{trial.name}" for study, trial in work))
        return
    workers = Workers(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, workers.stop)
    workers.run(options.cores)
    if workers.failed:
        raise SystemExit(f"error: {len(workers.failed)} trials failed: {', '.join(workers.failed)}")


if __name__ == "__main__":
    main()

"""Run a search: its trials on Ray Tune, its decisions in files that survive a kill at any instant.

A trial is a run directory like a sweep's. What has been tried, and how well it did, stands in the study (`study.db`) or
in the generations of a population (`population.json`), written before it takes effect; what has been trained stands in
the run directories. A search killed at any moment goes on from both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ray.tune import PlacementGroupFactory
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from rllib_hpo.errors import SettingsError, StorageError
from rllib_hpo.experiments.cluster.nodes import check_shared
from rllib_hpo.experiments.config.search_config import Asha
from rllib_hpo.experiments.process.lock import locked
from rllib_hpo.experiments.process.signals import StopRequest
from rllib_hpo.experiments.sweeps.plan import steps_done
from rllib_hpo.experiments.sweeps.progress import SweepProgress
from rllib_hpo.experiments.sweeps.resources import check_placeable, resources
from rllib_hpo.experiments.sweeps.sweep import Outcome, forget_errors
from rllib_hpo.experiments.sweeps.trial import Batch, TrialOptions, in_session, run_batch
from rllib_hpo.experiments.tuning import halving
from rllib_hpo.experiments.tuning.directory import SearchDirectory, example
from rllib_hpo.experiments.tuning.generations import Generations, run_population
from rllib_hpo.experiments.tuning.scores import Score, comparable, score_of
from rllib_hpo.experiments.tuning.study import STUDY_FILE, Record, Study
from rllib_hpo.results.configurations import SEARCH_VARIANT
from rllib_hpo.rllib.machines import Machines

LOCK_TIMEOUT_S = 5.0
"""Seconds to wait for another driver of the same search; the system takes the lock from a killed one at once."""


class Tried(NamedTuple):
    """A configuration that a search has tried."""

    number: int
    values: Mapping[str, Any]
    steps: int
    """Environment steps of its latest evaluation."""
    score: Score
    """The search's metric there, and by how much the cost exceeds its limit."""
    is_complete: bool
    """Whether it has made all steps of a trial."""


def run_search(directory: SearchDirectory, progress: SweepProgress, options: TrialOptions) -> Outcome:
    """Go on with a search until its trials have ended or a signal stops it.

    Raises:
        UserError: If a trial can never be placed, Optuna is missing, another process runs this search, or a node of
            the cluster does not see the directory and there is no storage.
        StorageError: If the storage cannot be reached.
    """
    with locked(directory.files.directory, timeout_s=LOCK_TIMEOUT_S):
        return _run_locked(directory, progress, options)


def _run_locked(directory: SearchDirectory, progress: SweepProgress, options: TrialOptions) -> Outcome:
    is_population = directory.search.file.scheduler == "pbt"
    ledger = None if is_population else Ledger(directory)
    if ledger is not None and not ledger.waiting:
        return ledger.outcome()

    def run(stop: StopRequest, machines: Machines) -> None:
        (trial,) = example(directory.search).trials
        request = resources(trial.config, machines.keep_rollouts_apart)
        check_placeable({trial.name: request}, machines)
        if directory.storage is None:
            check_shared(directory.files.directory)
        if ledger is None:
            run_population(directory, progress, options, request, stop)
        else:
            _run_adaptive(ledger, progress, options, request, stop)

    stopped_by = in_session(progress.console, run)
    outcome = Generations(directory).outcome() if ledger is None else ledger.outcome()
    return replace(outcome, stopped_by=stopped_by)


def tried(directory: SearchDirectory) -> list[Tried]:
    """What a search has tried so far, best first; those with all steps before the others.

    With a limit on costs, trials of equal length that exceed it come after those that do not.
    """
    if directory.search.file.scheduler == "pbt":
        generations = Generations(directory)
        found = [
            Tried(number, member.values, steps, score, steps == directory.search.steps)
            for number, (member, steps, score) in enumerate(generations.standing())
            if score is not None
        ]
    else:
        found = [
            Tried(r.number, r.values, step := max(r.reports), r.reports[step], step >= directory.search.steps)
            for r in Study(directory.files.directory / STUDY_FILE, directory.search).records()
            if r.reports and r.state != "FAIL"
        ]
    number = comparable(directory.search, (one.score for one in found))
    return sorted(found, key=lambda one: (one.is_complete, one.steps, number(one.score)), reverse=True)


class Ledger:
    """The trials of a search with Optuna: which is next, what each has reached, and how it ended.

    Args:
        directory: The search; trials that ended while nobody could write it down are written down now.
    """

    def __init__(self, directory: SearchDirectory) -> None:
        self.directory, self.search, self._files = directory, directory.search, directory.files
        self._study = Study(self._files.directory / STUDY_FILE, directory.search)
        self._asha = self.search.file.asha or Asha()
        self._names: dict[str, int] = {}
        self.settle()
        self._begun = [r.number for r in self._study.records() if r.state == "RUNNING"]
        forget_errors(self._files, [self.name(number) for number in self._begun], directory.storage)

    @staticmethod
    def name(number: int) -> str:
        """Name of a trial's directory."""
        return f"trial-{number:04d}"

    @property
    def names(self) -> list[str]:
        """Names of all trials of the search, also of those that have not begun."""
        return [self.name(number) for number in range(self.search.file.trials)]

    @property
    def waiting(self) -> bool:
        """Whether there is a trial to begin or to go on with."""
        return bool(self._begun) or len(self._study.records()) < self.search.file.trials

    def settle(self) -> None:
        """End the trials that have made all steps, or whose last report stops them, and which nobody has ended."""
        for record in self._study.records():
            if record.state != "RUNNING":
                continue
            score = self.directory.last_score(self.name(record.number), self.search.steps)
            if score is not None:
                self._study.report(record.number, self.search.steps, score)
                self._study.end(record.number, "COMPLETE")
            elif self._is_stopped(record.number):
                self._study.end(record.number, "PRUNED")
        self._upload()

    def next(self) -> str | None:
        """The next trial to run, with its configuration written; None if there is none.

        Raises:
            StorageError: If the disk or the storage cannot be written; a later call returns the same trial.
        """
        while self._begun or len(self._study.records()) < self.search.file.trials:
            if not self._begun:
                self._begun.append(self._study.ask().number)
            number = self._begun[0]
            record = self._study.records()[number]
            try:
                config = self.search.config(number, record.values)
            except SettingsError:  # each value is valid, but not these together
                self._study.end(number, "FAIL")
                self._begun.pop(0)
                continue
            self._upload()
            self.directory.add_trial(self.name(number), config)
            return self.name(self._begun.pop(0))
        return None

    def heard(self, name: str, evaluations: Sequence[tuple[int, Mapping[str, float]]]) -> bool:
        """Store evaluations of a trial; returns whether it stops early, which is then stored too."""
        number = int(name.rpartition("-")[2])
        for step, metrics in evaluations:
            self._study.report(number, step, score_of(self.search, metrics))
        if not evaluations or not self._is_stopped(number):
            return False
        self._study.end(number, "PRUNED")
        return True

    def ended(self, name: str, diverged: bool) -> None:
        """Store that a trial has ended, if it has made all its steps or diverged."""
        record = self._study.records()[int(name.rpartition("-")[2])]
        if diverged:
            self._study.end(record.number, "FAIL")
        elif self.search.steps in record.reports:
            self._study.end(record.number, "COMPLETE")

    def done_before(self) -> dict[str, int]:
        """Environment steps of each trial so far, and all of them for those that have ended early."""
        records = {self.name(record.number): record for record in self._study.records()}
        return {name: self._steps(name, records.get(name)) for name in self.names}

    def _steps(self, name: str, record: Record | None) -> int:
        if record is None:
            return 0
        if record.state != "RUNNING":
            return self.search.steps
        return steps_done(self._files.trial(name), self.directory.storage)

    def outcome(self) -> Outcome:
        """How the trials stand."""
        self.settle()
        records = {self.name(record.number): record for record in self._study.records()}
        done = tuple(name for name, record in records.items() if record.state != "RUNNING")
        left = [name for name in self.names if name not in done]
        failed = {name: self._files.error(name) for name in left if self._files.error(name).exists()}
        return Outcome(done, tuple(name for name in left if name not in failed), failed)

    def _is_stopped(self, number: int) -> bool:
        """Whether ASHA stops a running trial at its last report."""
        if self.search.file.scheduler != "asha":
            return False
        records = self._study.records()
        score = comparable(self.search, (one for record in records for one in record.reports.values()))
        scores = {
            record.number: {step: score(one) for step, one in record.reports.items()} for record in records
        }
        own = scores.pop(number)
        return halving.stops(own, scores.values(), self.search.rungs, self._asha.reduction_factor)

    def _upload(self) -> None:
        self.directory.publish(STUDY_FILE)


def _run_adaptive(
    ledger: Ledger,
    progress: SweepProgress,
    options: TrialOptions,
    request: PlacementGroupFactory,
    stop: StopRequest,
) -> None:
    directory, names = ledger.directory, ledger.names
    batch = Batch(
        sweep=directory.search.file.search,
        variants=dict.fromkeys(names, SEARCH_VARIANT),
        requests=dict.fromkeys(names, request),
        imports=directory.imports,
        identities={name: directory.identity(number) for number, name in enumerate(names)},
        search_alg=_NextTrial(ledger, stop),
        scheduler=_EarlyStop(ledger),
    )
    with progress.running(dict.fromkeys(names, directory.search.steps), ledger.done_before()):
        run_batch(directory.files, batch, progress, options, stop)


class _NextTrial(Searcher):
    """Name the trial that Tune runs next; Tune's own state is not needed to go on."""

    def __init__(self, ledger: Ledger, stop: StopRequest) -> None:
        super().__init__()
        self._ledger, self._stop = ledger, stop

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._stop.signal is not None:
            return None
        try:
            name = self._ledger.next()
        except StorageError:  # it is away; Tune asks again
            return None
        return Searcher.FINISHED if name is None else {"trial": name}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the scheduler hears of it first."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the study is on disk."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _EarlyStop(FIFOScheduler):
    """Store what trials report, and stop those that ASHA stops."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stops = self._ledger.heard(trial.config["trial"], result["evaluations"])
        return TrialScheduler.STOP if stops else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._ledger.heard(trial.config["trial"], result["evaluations"])
        self._ledger.ended(trial.config["trial"], result["diverged"])

    def __getstate__(self) -> dict[str, Any]:
        return {}

"""Run trials on Ray Tune: each in a process of its own, resumed from its run directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from rich.console import Console

from rllib_hpo.experiments.cluster.ray_session import ray_session
from rllib_hpo.experiments.process.signals import StopRequest, stop_request
from rllib_hpo.experiments.storage.folder import Storage
from rllib_hpo.experiments.sweeps.plan import SweepFiles
from rllib_hpo.experiments.sweeps.progress import SweepProgress
from rllib_hpo.experiments.sweeps.seeds import SeedsTrial
from rllib_hpo.experiments.sweeps.stop import SignalReclaimer, SweepStop, when_stopped
from rllib_hpo.experiments.sweeps.trial_run import RunsTrainable, TrialRun
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from rllib_hpo.results import write_atomically
from rllib_hpo.rllib.machines import Machines, cluster_machines

MAX_FAILURES = 3
"""How often a trial is restarted from its last checkpoint after its process or machine died."""


@dataclass(frozen=True)
class TrialOptions:
    """How the trials of a sweep or search are run."""

    max_concurrent: int | None = None
    """Trials at a time, at most; None for as many as there is room for."""
    wandb: WandbOptions = field(default_factory=WandbOptions)
    keep_checkpoints: int = 2
    """Number of newest checkpoints of each trial to keep, besides the best."""
    storage: Storage | None = None
    """Where rows and checkpoints are mirrored, if anywhere."""


@dataclass(frozen=True)
class Batch:
    """Trials by name; each has its configuration in the run directory of that name when it starts."""

    sweep: str
    variants: Mapping[str, str]
    """Column `variant` of the rows, by trial."""
    requests: Mapping[str, PlacementGroupFactory]
    """Resources by trial, or by group of seeds."""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Trials by the name of the group of seeds that one trial of Tune trains; empty if each is one of its own."""
    imports: Sequence[str] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    """Trials from whose last checkpoint others begin, by the name of those."""
    identities: Mapping[str, str] = field(default_factory=dict)
    """Ids in the rows of trials that continue the line of an earlier one."""
    search_alg: Searcher | None = None
    """What names the next trial; None runs all of them in order."""
    scheduler: TrialScheduler | None = None
    """What may stop a trial before its last step; each result then has all evaluations due by its step."""


def in_session(console: Console, body: Callable[[StopRequest, Machines], None]) -> int | None:
    """Call `body` with Ray running, while the first signal lets every running trial save.

    Returns:
        The number of the signal that asked to stop, or None.
    """
    # Tune's newer output engine prints a banner whatever its verbosity.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    with stop_request(console) as stop:
        try:
            with ray_session():
                body(stop, cluster_machines())
        except SystemExit:
            if stop.can_save:  # a second signal; else no trial has started, and nothing is lost
                raise
        return stop.signal


def run_batch(
    files: SweepFiles, batch: Batch, progress: SweepProgress, options: TrialOptions, stop: StopRequest
) -> None:
    """Run trials on Tune until all have ended or `stop` is set; errors of trials stand in their directories."""
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # ours saves every trial, whichever the signal
    stopper = SweepStop(stop, progress.running_trials)
    named = {} if batch.search_alg else {"trial": tune.grid_search(list(batch.requests))}
    tuner = tune.Tuner(
        tune.with_resources(
            SeedsTrial if batch.groups else SweepTrial, lambda config: batch.requests[config["trial"]]
        ),
        param_space={
            **named,
            "directory": str(files.directory.absolute()),
            "sweep": batch.sweep,
            "imports": list(batch.imports),
            "variants": dict(batch.variants),
            "groups": {name: list(group) for name, group in batch.groups.items()},
            "origins": dict(batch.origins),
            "identities": dict(batch.identities),
            "waits_for_evaluations": batch.scheduler is not None,
            "wandb": options.wandb,
            "keep_checkpoints": options.keep_checkpoints,
            "storage": None if options.storage is None else options.storage.uri,
            "stop_key": stopper.key,
        },
        tune_config=tune.TuneConfig(
            max_concurrent_trials=options.max_concurrent,
            trial_dirname_creator=lambda trial: str(trial.config["trial"]),
            reuse_actors=False,
            search_alg=batch.search_alg,
            scheduler=batch.scheduler,
            num_samples=len(batch.requests) if batch.search_alg else 1,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(files.directory.absolute()),
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            # Else Tune makes one when a trial ends, below a directory that other nodes may not see.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            stop=stopper,
            callbacks=[progress, SignalReclaimer()],
            verbose=0,
        ),
    )
    stop.can_save = True
    for result in tuner.fit():
        for name, error in (result.metrics or {}).get("errors", {}).items():
            if error and not files.error(name).exists():  # on another node's disk
                write_atomically(files.error(name), error.encode())


class SweepTrial(RunsTrainable):
    """One run."""

    def setup(self, config: dict[str, Any]) -> None:
        """Build the run, and resume it from its newest checkpoint."""
        super().setup(config)
        self._run = TrialRun(config["trial"], config)
        when_stopped(config["stop_key"], self._run.stop)
        self._run.begin()

    def step(self) -> dict[str, Any]:
        """Train for one iteration, and save if the sweep is stopped."""
        return {**self._run.step(), "errors": {self._run.name: self._run.failure}}

    def cleanup(self) -> None:
        """Save the run if the sweep is stopped in the middle."""
        self._run.close()

"""Run trials on Ray Tune: each in a process of its own, resumed from its run directory."""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from rich.console import Console

from rllib_hpo.errors import (
    NonFiniteError,
    StorageError,
    UserCodeError,
    UserError,
    WorkerDiedError,
    with_traceback,
)
from rllib_hpo.experiments.cluster.ray_session import quiet_ray, ray_session
from rllib_hpo.experiments.config.run_config import resolve_saved
from rllib_hpo.experiments.process.signals import StopRequest, stop_request
from rllib_hpo.experiments.process.standard_streams import make_streams_safe
from rllib_hpo.experiments.runs.train import TrainingRun
from rllib_hpo.experiments.storage.folder import Storage
from rllib_hpo.experiments.storage.mirror import Mirror
from rllib_hpo.experiments.sweeps.plan import ERROR_FILE, SweepFiles
from rllib_hpo.experiments.sweeps.progress import SweepProgress
from rllib_hpo.experiments.sweeps.stop import SignalReclaimer, SweepStop, when_stopped
from rllib_hpo.experiments.tracking.training_metrics import evaluation_metrics, flat_metrics
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from rllib_hpo.results import write_atomically
from rllib_hpo.rllib.machines import Machines, cluster_machines
from rllib_hpo.tasks import import_modules

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
    """Trials for Tune, by name; each has its configuration in the run directory of that name when it starts."""

    sweep: str
    variants: Mapping[str, str]
    """Column `variant` of the rows, by trial."""
    requests: Mapping[str, PlacementGroupFactory]
    """Resources by trial."""
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
        tune.with_resources(SweepTrial, lambda config: batch.requests[config["trial"]]),
        param_space={
            **named,
            "directory": str(files.directory.absolute()),
            "sweep": batch.sweep,
            "imports": list(batch.imports),
            "variants": dict(batch.variants),
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
        error, name = (result.metrics or {}).get("error"), (result.config or {}).get("trial")
        if error and name and not files.error(name).exists():  # on another node's disk
            write_atomically(files.error(name), error.encode())


class SweepTrial(tune.Trainable):
    """One trial in an actor of its own; its state is the run directory, not Tune's checkpoints."""

    def setup(self, config: dict[str, Any]) -> None:
        """Build the run, and resume it from its newest checkpoint."""
        make_streams_safe()
        quiet_ray()
        self._is_stopped = False
        when_stopped(config.get("stop_key", ""), self._stop)
        files = SweepFiles(Path(config["directory"]))
        name = config["trial"]
        self._error, self._run, self._mirror, self._failure = files.error(name), None, None, ""
        self._evaluations: list[tuple[int, dict[str, float]]] = []
        self._has_diverged = False
        self._error.unlink(missing_ok=True)  # from an earlier session on this node
        with self._reported():
            import_modules(config["imports"], f"The sweep {files.directory}")
            if (identity := config["identities"].get(name)) is not None:
                write_atomically(files.trial(name).directory / "trial_id", f"{identity}\n".encode())
            origin = self._find_origin(config, files)
            if config["storage"] is not None:
                run_dir = files.trial(name).directory
                self._mirror = Mirror(Storage.open(config["storage"]), run_dir, files.results)
                self._mirror.identify()
            elif not files.plan.exists():  # on a node that joined after the sweep had begun
                raise UserError(
                    f"The node {platform.node()} cannot access {files.directory}: give an --out that all nodes share, "
                    "or --storage."
                )
            self._run = TrainingRun(
                resolve_saved(files.trial(name).config, {}).importing(config["imports"]),
                files.trial(name),
                sweep=config["sweep"],
                variant=config["variants"][name],
                keep_checkpoints=config["keep_checkpoints"],
                wandb=config["wandb"],
                mirror=self._mirror,
                origin=origin,
            )
            if (latest := self._run.algorithm.latest_evaluation) is not None:
                self._note(latest)  # a driver that was killed may not have heard of it
            self._run.on_evaluation = self._note
            self._run.algorithm.waits_for_evaluations = config["waits_for_evaluations"]

    @staticmethod
    def _find_origin(config: Mapping[str, Any], files: SweepFiles) -> Path | None:
        """The directory of the trial that this one begins from, brought here from storage; None for most trials."""
        if (origin := config["origins"].get(config["trial"])) is None:
            return None
        directory = files.trial(origin).directory
        if config["storage"] is not None:
            Mirror(Storage.open(config["storage"]), directory, files.results).restore()
        return directory

    def _note(self, evaluation: Mapping[str, Any]) -> None:
        self._evaluations.append((int(evaluation["env_steps"]), evaluation_metrics(evaluation)))

    def _stop(self) -> None:
        """End the iteration and the trial, since the driver was asked to stop; runs in another thread."""
        self._is_stopped = True
        if self._run is not None:
            self._run.request_stop()

    def step(self) -> dict[str, Any]:
        """Train for one iteration, and save if the sweep is stopped."""
        metrics: dict[str, float] = {}
        run = self._run
        with self._reported():
            if run is not None and not (run.is_complete or self._is_stopped):
                metrics = flat_metrics(run.iterate())
            if run is not None and self._is_stopped:
                run.save()
            if run is not None and run.is_complete and self._mirror is not None:
                self._mirror.finish()
        env_steps = 0 if run is None else run.algorithm.env_steps
        is_complete = run is not None and run.is_complete
        evaluations, self._evaluations = self._evaluations, []
        return {
            **metrics,
            "env_steps": env_steps,
            "evaluations": evaluations,
            "failed": bool(self._failure),
            "diverged": self._has_diverged,
            "stopped": self._is_stopped and not is_complete,
            "error": self._failure,
            "done": bool(self._failure or self._is_stopped or is_complete),
        }

    def cleanup(self) -> None:
        """Save the trial if the sweep is stopped in the middle."""
        if self._run is not None:
            with self._reported(), self._run:
                if self._run.is_complete:
                    self._run.merge_rows()
                elif not self._failure:
                    self._run.save()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: the run directory has the checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: `setup` has restored the newest checkpoint."""

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Write an error to a file. One that a retry cannot fix ends the trial; Tune retries after the others."""
        try:
            yield
        except UserError as error:
            self._write_error(f"{with_traceback(error)}\n", error)
            # A simulator may raise what it will not raise again.
            if isinstance(error, WorkerDiedError) or (isinstance(error, UserCodeError) and error.traceback):
                raise
        except Exception as error:
            self._write_error(traceback.format_exc(), error)
            raise

    def _write_error(self, text: str, error: Exception) -> None:
        if self._run is not None:
            self._run.ended(error)
        self._failure, self._has_diverged = text, isinstance(error, NonFiniteError)
        with suppress(StorageError):  # a full disk, which the driver, who has the text too, will tell of
            write_atomically(self._error, text.encode())
        if self._mirror is not None:
            self._mirror.failed(ERROR_FILE, text.encode())

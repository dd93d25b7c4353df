"""A run as part of a trial: built and resumed from its directory, trained by iterations, its errors reported."""

from __future__ import annotations

import platform
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray import tune

from rllib_hpo.errors import (
    NonFiniteError,
    StorageError,
    UserCodeError,
    UserError,
    WorkerDiedError,
    with_traceback,
)
from rllib_hpo.experiments.cluster.ray_session import quiet_ray
from rllib_hpo.experiments.config.run_config import resolve_saved
from rllib_hpo.experiments.process.standard_streams import make_streams_safe
from rllib_hpo.experiments.runs.train import TrainingRun
from rllib_hpo.experiments.storage.folder import Storage
from rllib_hpo.experiments.storage.mirror import Mirror
from rllib_hpo.experiments.sweeps.plan import ERROR_FILE, SweepFiles
from rllib_hpo.experiments.tracking.training_metrics import evaluation_metrics, flat_metrics
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.results import write_atomically
from rllib_hpo.tasks import import_modules


class TrialRun:
    """A run of a sweep or search in a trial's process; its state is the run directory.

    An error is written to the run's file. One that a retry may fix is raised, too; any other ends the run.

    Args:
        name: Name of the run.
        config: What `run_batch` gives to all trials.
    """

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name, self._config = name, config
        self._files = SweepFiles(Path(config["directory"]))
        self._error = self._files.error(name)
        self._run: TrainingRun | None = None
        self._mirror: Mirror | None = None
        self.failure = ""
        """Text of the error that ended the run; empty without one."""
        self._evaluations: list[tuple[int, dict[str, float]]] = []
        self._has_diverged = self._is_stopped = False

    @property
    def env_steps(self) -> int:
        """Environment steps made, 0 before `begin`."""
        return 0 if self._run is None else self._run.algorithm.env_steps

    @property
    def learner(self) -> ReplayLearner | None:
        """The learner, which is in this process; None while the run is not built."""
        return None if self._run is None else self._run.algorithm.local_learner

    def begin(self) -> None:
        """Build the run, and resume it from its newest checkpoint."""
        config, files, name = self._config, self._files, self.name
        self._error.unlink(missing_ok=True)  # from an earlier session on this node
        with self._reported():
            import_modules(config["imports"], f"The sweep {files.directory}")
            if (identity := config["identities"].get(name)) is not None:
                write_atomically(files.trial(name).directory / "trial_id", f"{identity}\n".encode())
            origin = self._find_origin()
            self._open_mirror()
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

    def _open_mirror(self) -> None:
        """Connect to the sweep's storage.

        Raises:
            UserError: If there is none and this node does not see the sweep's directory.
        """
        config, files = self._config, self._files
        if config["storage"] is not None:
            run_dir = files.trial(self.name).directory
            self._mirror = Mirror(Storage.open(config["storage"]), run_dir, files.results)
            self._mirror.identify()
        elif not files.plan.exists():  # on a node that joined after the sweep had begun
            raise UserError(
                f"The node {platform.node()} cannot access {files.directory}: give an --out that all nodes share, "
                "or --storage."
            )

    def _find_origin(self) -> Path | None:
        """The directory of the run that this one begins from, brought here from storage; None for most."""
        config, files = self._config, self._files
        if (origin := config["origins"].get(self.name)) is None:
            return None
        directory = files.trial(origin).directory
        if config["storage"] is not None:
            Mirror(Storage.open(config["storage"]), directory, files.results).restore()
        return directory

    def _note(self, evaluation: Mapping[str, Any]) -> None:
        self._evaluations.append((int(evaluation["env_steps"]), evaluation_metrics(evaluation)))

    def stop(self) -> None:
        """End the iteration and the run, since the driver was asked to stop; runs in another thread."""
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
        is_complete = run is not None and run.is_complete
        evaluations, self._evaluations = self._evaluations, []
        return {
            **metrics,
            "env_steps": self.env_steps,
            "evaluations": evaluations,
            "failed": bool(self.failure),
            "diverged": self._has_diverged,
            "stopped": self._is_stopped and not is_complete,
            "done": bool(self.failure or self._is_stopped or is_complete),
        }

    def close(self) -> None:
        """End the session of the run; save it first if it is in the middle."""
        if (run := self._run) is None:
            return
        try:
            with self._reported(), run:
                if run.is_complete:
                    run.merge_rows()
                elif not self.failure:
                    run.save()
        finally:
            self._run = None

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Write an error to a file. One that a retry cannot fix ends the run; Tune retries after the others."""
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
        self.failure, self._has_diverged = text, isinstance(error, NonFiniteError)
        with suppress(StorageError):  # a full disk, which the driver, who has the text too, will tell of
            write_atomically(self._error, text.encode())
        if self._mirror is not None:
            self._mirror.failed(ERROR_FILE, text.encode())


class RunsTrainable(tune.Trainable):
    """What Tune runs in an actor of its own; the state is in run directories, not in Tune's checkpoints."""

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare the process."""
        make_streams_safe()
        quiet_ray()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: run directories have the checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: `setup` has restored the newest checkpoint."""

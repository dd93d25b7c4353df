"""Train one run in one directory: build, train, evaluate, log, checkpoint, stop, resume."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rllib_hpo.algorithms.footprint import refuse_replay
from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.errors import CheckpointError
from rllib_hpo.experiments.cluster.nodes import check_learner_sees_storage
from rllib_hpo.experiments.cluster.ray_session import ray_session
from rllib_hpo.experiments.config.run_config import RunConfig
from rllib_hpo.experiments.process.lock import locked
from rllib_hpo.experiments.process.signals import stop_request
from rllib_hpo.experiments.runs.files import SINGLE_RUNS, RunFiles, remove_new_run, to_rllib
from rllib_hpo.experiments.storage.checkpoints import CheckpointStore
from rllib_hpo.experiments.storage.mirror import Mirror
from rllib_hpo.experiments.storage.policies import KeptPolicies
from rllib_hpo.experiments.tracking.events import EventLog
from rllib_hpo.experiments.tracking.operator_metrics import OperatorMetrics
from rllib_hpo.experiments.tracking.progress import Progress
from rllib_hpo.experiments.tracking.tensorboard import TensorBoard
from rllib_hpo.experiments.tracking.training_metrics import evaluation_metrics, flat_metrics
from rllib_hpo.experiments.tracking.wandb_logger import (
    WandbOptions,
    WandbRun,
    describe_run,
    group_of,
    task_metric,
)
from rllib_hpo.results import COST_COLUMNS, SUCCESS_RATE, merge_trial, trial_id
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.checkpointing import MANIFEST, read_manifest
from rllib_hpo.rllib.config import ActorCriticConfig


class TrainingRun:
    """Train a run by iterations: log, checkpoint and resume it.

    Args:
        config: Algorithm, task, settings and number of steps.
        files: Paths of the run; it resumes from the newest checkpoint there.
        sweep: Column `sweep` of its rows.
        variant: Column `variant` of its rows.
        keep_checkpoints: Number of newest checkpoints to keep, besides the best.
        wandb: Options of Weights & Biases.
        mirror: Copy of rows and checkpoints on storage, if any.
        origin: Directory of a run from whose last checkpoint this one begins, while it has none of its own.

    Raises:
        UserError: A failure the user can mend, another process in the same directory among them.
    """

    def __init__(
        self,
        config: RunConfig,
        files: RunFiles,
        *,
        sweep: str = SINGLE_RUNS,
        variant: str = "",
        keep_checkpoints: int = 2,
        wandb: WandbOptions = WandbOptions(),  # noqa: B008  (frozen)
        mirror: Mirror | None = None,
        origin: Path | None = None,
    ) -> None:
        self.config, self._open, self._options, self._mirror = config, ExitStack(), wandb, mirror
        self._files, self._has_begun = files, False
        self.on_evaluation: Callable[[Mapping[str, Any]], None] | None = None
        """Called with each evaluation's entry in RLlib's results, once, when its row is written."""
        self.store = CheckpointStore(files.directory, keep_checkpoints)
        self.store.on_passed_over = self._log_skipped_checkpoint
        self._policies = KeptPolicies(files.directory, config.run.keep_policies_every)
        self._events = EventLog(files.directory)
        with ExitStack() as opened:  # closes what is open if the next cannot be opened
            self._lock(opened)
            opened.enter_context(_local_ray(config))
            self._build(opened, sweep, variant)
            self._wandb = opened.enter_context(self._wandb_run(sweep, variant))
            checkpoint = self.store.restore_newest(self.algorithm)
            if checkpoint is None and origin is not None:
                checkpoint = CheckpointStore(origin).restore_newest(self.algorithm)
            self.algorithm.refuse_without_origin()
            # A new run has nothing to save; a checkpoint that lacks the evaluation of its step is rewritten.
            self._saved = -1 if self.algorithm.lacks_evaluation else self.algorithm.env_steps
            self._board = opened.enter_context(TensorBoard(files.directory, self.algorithm.env_steps))
            self._begin(checkpoint, _identity(config, files, sweep))
            self._open = opened.pop_all()

    def _lock(self, opened: ExitStack) -> None:
        """Lock the directory, complete it from storage, and log how the session ends."""
        opened.enter_context(locked(self._files.directory))
        if self._files.is_new:
            opened.push(lambda kind, *_: self._remove_refused(kind))
        opened.push(lambda kind, error, trace: self.ended(error))
        if self._mirror is not None:
            self._mirror.restore()
            opened.callback(self._mirror.close)

    def _build(self, opened: ExitStack, sweep: str, variant: str) -> None:
        """Build the algorithm, and check that its replay fits into memory and its directory is shared."""
        rllib_config = to_rllib(self.config, self._files, sweep, variant)
        identity = trial_id(self._files.directory)
        self.algorithm = opened.enter_context(_built(rllib_config.results(trial_id=identity)))
        check_learner_sees_storage(self.algorithm, self._files.directory)
        if self.config.run.num_learners == 0:
            actor = self.algorithm.actor
            layout = make_method(self.config.settings).layout(actor.obs_dim, actor.action_dim)
            refuse_replay(self.config.settings, layout.num_bytes, self.config.run.steps)

    def _wandb_run(self, sweep: str, variant: str) -> WandbRun:
        directory = self._files.directory
        return WandbRun(
            directory,
            self._options.mode,
            group=directory.name if sweep == SINGLE_RUNS else group_of(sweep, self.config.run.task),
            run_id=trial_id(directory),
            **describe_run(self.config, sweep, variant),
        )

    def _begin(self, checkpoint: Path | None, about: Mapping[str, str]) -> None:
        """Connect the logs and the mirror to the algorithm, and log the start of the session."""
        steps, env_steps = self.config.run.steps, self.algorithm.env_steps
        self.algorithm.max_env_steps = steps
        if self._mirror is not None:
            self._mirror.start(env_steps)
        self.algorithm.on_row = self._on_row
        self.algorithm.on_warning = lambda text, step: self._events.write("warning", step, text=text)
        self._operators = OperatorMetrics(about, self.algorithm)
        self.resumed_from = None if checkpoint is None else read_manifest(checkpoint)
        self._events.begin(env_steps, checkpoint, {**about, "steps": steps, **self._resume_details()})
        self._has_begun = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def _remove_refused(self, kind: type[BaseException] | None) -> None:
        if kind is not None and issubclass(kind, Exception) and not self._has_begun:
            remove_new_run(self._files.directory)

    @property
    def is_complete(self) -> bool:
        """Whether all steps are made, and the last is evaluated."""
        return self.algorithm.env_steps >= self.config.run.steps and not self.algorithm.lacks_evaluation

    def request_stop(self) -> None:
        """End the iteration at the next step, from any thread; a resumed run repeats an unfinished evaluation."""
        self.algorithm.stop_requested = True

    def iterate(self) -> dict[str, Any]:
        """Train for an iteration; save a policy or a checkpoint if one is due, or at the end."""
        began = time.perf_counter()
        result: dict[str, Any] = self.algorithm.train()
        self._operators.iteration(flat_metrics(result), time.perf_counter() - began)
        self._log(result)
        self._keep_policy()  # before the checkpoint, which a resumed run goes on from
        if self.is_complete or self.algorithm.schedule.checkpoint_due(self.algorithm.env_steps):
            self.save()
        if self.is_complete and self._options.video and self._wandb.is_on:
            self._wandb.log_video(self._film, self.algorithm.env_steps)
        return result

    def _keep_policy(self) -> None:
        path = self._policies.save_if_due(self.algorithm)
        if path is not None:
            self._events.write("policy", self.algorithm.env_steps, path=str(path))
            if self._mirror is not None:
                self._mirror.policy(path)

    def _log(self, result: Mapping[str, Any]) -> None:
        metrics = {n: value for n, value in flat_metrics(result).items() if not n.startswith("evaluation/")}
        self._wandb.log(metrics, env_steps=self.algorithm.env_steps)
        self._board.log(metrics, self.algorithm.env_steps)

    def _log_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Log an evaluation at the step of its weights, where it belongs on the axis."""
        metrics, env_steps = evaluation_metrics(evaluation), int(evaluation["env_steps"])
        by_task = {
            task_metric(self.config.run.task, name): metrics[f"evaluation/{name}"]
            for name in ("return_mean", SUCCESS_RATE, *COST_COLUMNS)
            if f"evaluation/{name}" in metrics
        }
        self._wandb.log({**metrics, **by_task}, env_steps=env_steps)
        self._board.log(metrics, env_steps)
        if self.on_evaluation is not None:
            self.on_evaluation(evaluation)

    def _on_row(self, row: Path) -> None:
        algorithm = self.algorithm
        if (evaluation := algorithm.latest_evaluation) is not None:
            return_mean, env_steps = evaluation["env_runners"]["episode_return_mean"], evaluation["env_steps"]
            self._events.write("evaluated", env_steps, return_mean=return_mean, path=str(row))
            if len(algorithm.evaluation_runners) or env_steps < algorithm.env_steps:  # beside training
                self.store.evaluated(env_steps, return_mean)
            self._log_evaluation(evaluation)
        if self._mirror is not None:
            self._mirror.row(row)

    def _log_skipped_checkpoint(self, path: Path, error: CheckpointError) -> None:
        env_steps = int(path.name.removeprefix("step-"))
        self._events.write("checkpoint_passed_over", env_steps, path=str(path), error=str(error))

    def _resume_details(self) -> dict[str, Any]:
        """Details of a resume for its event: whether environments are saved or rebuilt, and repaired links."""
        if self.resumed_from is None:
            return {}
        links = {"repaired_links": self.store.repaired} if self.store.repaired else {}
        return {"environments": self.resumed_from.get("environments", "unknown"), **links}

    @property
    def resume_line(self) -> str | None:
        """A line about the checkpoint that the run resumes from; None for a new run."""
        if self.resumed_from is None:
            return None
        line = f"Resumed at step {self.resumed_from['env_steps']:,}"
        if self.resumed_from.get("environments") == "rebuilt":
            line += ", with rebuilt environments that begin new episodes"
        for name, before in self.store.repaired.items():
            line += f"; repaired the link checkpoints/{name}, which pointed to {before or 'nothing'}"
        return f"{line}."

    def ended(self, error: BaseException | None = None) -> None:
        """Log how this session ended; later calls do nothing."""
        is_built = hasattr(self, "algorithm")
        env_steps = self.algorithm.env_steps if is_built else 0
        self._events.end(env_steps, complete=is_built and self.is_complete, error=error)

    def _film(self, path: Path) -> None:
        from rllib_hpo.experiments.runs.evaluate import film

        film(self.store.directory / "last", path, self.config.run.seed)

    def merge_rows(self) -> None:
        """Merge the rows of a complete run into one file."""
        config = self.algorithm.config
        merge_trial(
            Path(config.results_dir), config.sweep, config.algorithm, self.config.task.name, config.trial_id
        )

    def save(self) -> None:
        """Write a checkpoint unless this step has one."""
        env_steps = self.algorithm.env_steps
        if env_steps != self._saved:
            path = self.store.save(self.algorithm)
            manifest = read_manifest(path)
            environments = manifest["environments"]
            self._events.write("checkpoint", env_steps, path=str(path), environments=environments)
            if self._mirror is not None:
                self._mirror.checkpoint(path)
            if self._options.artifacts and self._wandb.is_on:
                about = {key: manifest[key] for key in ("algorithm", "task", "env", "env_steps", "versions")}
                is_best = path.name == self.store.linked("best")
                self._wandb.log_model(path, [*manifest["files"], MANIFEST], about, is_best=is_best)
            self._saved = env_steps


def train(
    config: RunConfig,
    files: RunFiles,
    progress: Progress,
    *,
    keep_checkpoints: int = 2,
    wandb: WandbOptions = WandbOptions(),  # noqa: B008  (frozen)
) -> int | None:
    """Train until `steps`, from the newest intact checkpoint if there is one.

    Returns:
        The number of the signal that stopped the run early, or None when it is complete.

    Raises:
        UserError: A failure the user can mend; the last checkpoint and all rows are on disk.
    """
    is_complete = False
    with stop_request(progress.console) as stop:
        try:
            with (
                TrainingRun(config, files, keep_checkpoints=keep_checkpoints, wandb=wandb) as run,
                progress.running(run.algorithm, config.run.steps),
            ):
                if run.algorithm.observation_order is not None:
                    progress.console.print(run.algorithm.observation_order, highlight=False, soft_wrap=True)
                if run.resume_line is not None:
                    progress.console.print(run.resume_line, highlight=False, soft_wrap=True)
                run.on_evaluation = progress.report
                stop.on_stop(run.request_stop)
                stop.can_save = True
                while not run.is_complete and stop.signal is None:
                    run.iterate()
                if stop.signal is not None:  # at whatever instant it came
                    run.save()
                is_complete = run.is_complete
        except SystemExit:
            if stop.can_save:  # a second signal; else nothing was trained yet, and nothing is lost
                raise
    return None if is_complete else stop.signal


def _identity(config: RunConfig, files: RunFiles, sweep: str) -> dict[str, str]:
    """Names that identify a run to an operator."""
    run, trial = config.run, files.directory.absolute().name
    return {
        "sweep": sweep,
        "trial": trial,
        "algorithm": run.algorithm,
        "task": run.task,
        "seed": str(run.seed),
    }


@contextmanager
def _built(config: ActorCriticConfig) -> Iterator[ActorCriticAlgorithm]:
    algorithm: ActorCriticAlgorithm = config.build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


@contextmanager
def _local_ray(config: RunConfig) -> Iterator[None]:
    """Ray for this run: none without remote workers, else the cluster RAY_ADDRESS names, or one on this machine."""
    run = config.run
    workers = run.num_env_runners + run.num_learners + run.evaluation_num_env_runners
    if workers == 0:
        yield
        return
    with ray_session(num_cpus=max(os.cpu_count() or 1, workers + 1)):
        yield

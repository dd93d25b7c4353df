"""Run a sweep on Ray Tune: each trial has a run directory from which it can resume.

Tune decides where and when a trial runs. What a trial is, how far it has come and what it has measured stand in
its run directory and in the rows, so a sweep killed at any moment goes on from there, whatever Tune remembers.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import tune
from ray.tune import PlacementGroupFactory

from rllib_hpo.documents import read_json
from rllib_hpo.errors import (
    CheckpointError,
    SettingsError,
    StorageError,
    UserCodeError,
    UserError,
    WorkerDiedError,
    with_traceback,
)
from rllib_hpo.experiments.cluster.nodes import check_shared
from rllib_hpo.experiments.cluster.ray_session import ray_session
from rllib_hpo.experiments.config.run_config import RunConfig, resolve_saved
from rllib_hpo.experiments.config.sweep_config import Sweep, Trial
from rllib_hpo.experiments.process.signals import StopRequest, stop_request
from rllib_hpo.experiments.process.standard_streams import make_streams_safe
from rllib_hpo.experiments.runs.train import (
    CONFIG_FILE,
    RunFiles,
    TrainingRun,
    flat_metrics,
    quiet_ray,
    to_rllib,
)
from rllib_hpo.experiments.storage.checkpoints import CheckpointStore
from rllib_hpo.experiments.storage.folder import Storage, fetch, publish
from rllib_hpo.experiments.storage.mirror import Mirror
from rllib_hpo.experiments.storage.stored_checkpoints import steps_on
from rllib_hpo.experiments.sweeps.progress import SweepProgress
from rllib_hpo.experiments.sweeps.resources import check_placeable, resources
from rllib_hpo.experiments.sweeps.stop import SignalReclaimer, SweepStop, when_stopped
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from rllib_hpo.results import write_atomically
from rllib_hpo.results.paths import absolute
from rllib_hpo.rllib.checkpointing import finished_steps, read_manifest
from rllib_hpo.rllib.environment import probe_environment
from rllib_hpo.rllib.machines import cluster_machines, trials_at_a_time
from rllib_hpo.tasks import import_modules

SWEEP_FILE, PLAN_FILE, ERROR_FILE = "sweep.yaml", "plan.json", "error.txt"
MAX_FAILURES = 3
"""How often a trial is restarted from its last checkpoint after its process or machine died."""


@dataclass(frozen=True)
class SweepFiles:
    """Paths of a sweep's files."""

    directory: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", absolute(self.directory))

    @property
    def sweep_file(self) -> Path:
        """The sweep file, as it was given."""
        return self.directory / SWEEP_FILE

    @property
    def plan(self) -> Path:
        """Trials by name, with their variants."""
        return self.directory / PLAN_FILE

    @property
    def results(self) -> Path:
        """Parquet rows of all trials."""
        return self.directory / "results"

    def trial(self, name: str) -> RunFiles:
        """The run directory of a trial; its rows are in the sweep's results."""
        return RunFiles(self.directory / "trials" / name, self.results)

    def error(self, name: str) -> Path:
        """File with the error of a failed trial."""
        return self.trial(name).directory / ERROR_FILE


class _Plan(BaseModel):
    """The types of a plan's keys."""

    model_config = ConfigDict(extra="allow", strict=True)

    sweep: str
    trials: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")], str]
    """Variants by the trials' names, which are folders."""
    imports: list[str] = Field(default_factory=list)
    storage: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a sweep, or this session of it, ended."""

    done: tuple[str, ...]
    unfinished: tuple[str, ...]
    failed: Mapping[str, Path]
    """Files with the errors of failed trials."""
    stopped_by: int | None = None
    """The number of the signal that stopped it."""


def start_sweep(sweep: Sweep, source: Path, files: SweepFiles, imports: Sequence[str] = ()) -> None:
    """Make the directory of a new sweep, with the configuration of every trial.

    Args:
        sweep: The trials.
        source: The sweep file, which is copied.
        files: Where.
        imports: Modules that register tasks or algorithms; trials import them, wherever they run.

    Raises:
        UserError: If the directory already holds something, or trials cannot begin; nothing is made then.
    """
    if files.directory.exists() and any(files.directory.iterdir()):
        raise UserError(
            f"{files.directory} already exists; resume it with `--resume {files.directory}`, or choose another "
            "--out."
        )
    check_trials(sweep)
    files.directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, files.sweep_file)
    plan_trials(sweep, files, imports)


def broken_trials(sweep: Sweep) -> dict[str, UserError]:
    """Errors of trials that cannot begin, by name: make and probe their environments and networks here."""
    tried: dict[str, UserError | None] = {}
    broken = {}
    for trial in sweep.trials:
        values = {**trial.config.values(), "seed": 0, "steps": 0}
        key = json.dumps(values, sort_keys=True, default=str)
        if key not in tried:
            tried[key] = _problem(trial)
        if (problem := tried[key]) is not None:
            broken[trial.name] = problem
    return broken


def _problem(trial: Trial) -> UserError | None:
    try:
        config = to_rllib(trial.config, RunFiles(Path(trial.name)))
        config.validate()
        probe_environment(config)
    except UserError as error:
        return error
    return None


def check_trials(sweep: Sweep) -> None:
    """Check that all trials can begin.

    Raises:
        UserError: Naming them, with what is wrong.
    """
    if broken := broken_trials(sweep):
        raise describe_broken(broken)


def describe_broken(broken: Mapping[str, UserError]) -> UserError:
    """One error for all trials that cannot begin, with each reason once."""
    names: dict[str, list[str]] = {}
    for name, error in broken.items():
        names.setdefault(str(error), []).append(name)
    reasons = "; ".join(
        f"{', '.join(of_one[:3])}{f' and {len(of_one) - 3} more' if len(of_one) > 3 else ''} ({reason.rstrip('.')})"
        for reason, of_one in names.items()
    )
    trace = next((error.traceback for error in broken.values() if isinstance(error, UserCodeError)), "")
    return UserCodeError(
        f"Trials cannot start: {reasons}. Correct them, or leave them out of the sweep file.", trace
    )


def remove_new_sweep(files: SweepFiles, storage: Storage | None = None) -> None:
    """Remove a sweep that was refused before any trial began, so that a corrected command can make it."""
    trials = files.directory / "trials"
    begun = [path for path in trials.glob("*/*") if path.name != CONFIG_FILE]
    if begun or files.results.exists():
        return
    with suppress(OSError, StorageError):
        if storage is not None:
            storage.remove(PLAN_FILE)
        shutil.rmtree(trials)
        for path in (files.plan, files.sweep_file):
            path.unlink(missing_ok=True)
        files.directory.rmdir()


def plan_trials(sweep: Sweep, files: SweepFiles, imports: Sequence[str] = ()) -> None:
    """Add trials to a sweep's directory, or more steps to existing ones.

    Raises:
        SettingsError: If a trial that is there already would be another one.
    """
    before = read_plan(files) if files.plan.exists() else {"trials": {}, "imports": []}
    imports = sorted({*before["imports"], *imports})
    for trial in sweep.trials:
        _plan_trial(trial, files, imports)
    plan = {
        **before,
        "sweep": sweep.name,
        "description": sweep.description,
        "imports": imports,
        "trials": before["trials"] | {trial.name: trial.variant for trial in sweep.trials},
    }
    write_atomically(files.plan, json.dumps(plan, indent=1).encode())


def _plan_trial(trial: Trial, files: SweepFiles, imports: Sequence[str]) -> None:
    config_file = files.trial(trial.name).config
    if config_file.exists():
        before, after = resolve_saved(config_file, {}).values(), trial.config.values()
        changed = [name for name in after if name != "steps" and before.get(name) != after[name]]
        if changed or after["steps"] < before["steps"]:
            name = (changed or ["steps"])[0]
            raise SettingsError(
                f"The sweep's trial {trial.name} has {name}={before.get(name)!r}, not {after[name]!r}: a sweep can "
                "only be extended by seeds and steps; start a new one to change anything else."
            )
    trial.config.importing(imports).save(config_file)


def check_storage_free(storage: Storage) -> None:
    """Check that storage can be used and has no sweep of this name.

    Raises:
        UserError: If it is taken.
        StorageError: If storage cannot be reached or written.
    """
    with storage.reached():
        if storage.read_if_exists(PLAN_FILE) is not None:
            raise UserError(f"{storage.uri} already exists; resume it with `--resume {storage.uri}`.")
        storage.write(".writable", b"")  # told now, and not when the first trial is under way
        storage.remove(".writable")


def publish_sweep(files: SweepFiles, storage: Storage) -> None:
    """Upload the plan and the trials' configurations, and store the URI in the plan.

    Raises:
        StorageError: If storage cannot be reached or written.
    """
    plan = {**read_plan(files), "storage": storage.uri}
    write_atomically(files.plan, json.dumps(plan, indent=1).encode())
    publish(storage, files.directory, [SWEEP_FILE, *_config_files(plan), PLAN_FILE])


def fetch_sweep(files: SweepFiles, storage: Storage) -> None:
    """Download a sweep's plan and configurations into a local directory.

    Raises:
        StorageError: If storage cannot be reached, or has no sweep there.
        UserError: If the directory is that of another sweep.
    """
    if files.plan.exists() and read_plan(files).get("storage") != storage.uri:
        raise UserError(f"{files.directory} is a different sweep; choose another --out.")
    fetch(storage, files.directory, [SWEEP_FILE, PLAN_FILE])
    fetch(storage, files.directory, _config_files(read_plan(files)))


def storage_of(files: SweepFiles) -> Storage | None:
    """Storage that a sweep is mirrored to, or None, also if its directory is on that storage.

    Raises:
        StorageError: If storage cannot be used.
    """
    uri = read_plan(files).get("storage")
    storage = None if uri is None else Storage.open(uri)
    return None if storage is None or storage.local == files.directory.absolute() else storage


def _config_files(plan: Mapping[str, Any]) -> list[str]:
    return [f"trials/{name}/{CONFIG_FILE}" for name in plan["trials"]]


def read_plan(files: SweepFiles) -> dict[str, Any]:
    """Read the plan that `plan_trials` wrote.

    Raises:
        CheckpointError: If the directory is not that of a sweep.
    """
    if not files.plan.exists():
        raise CheckpointError(f"{files.directory} is not a sweep directory: it has no {PLAN_FILE}.")
    plan = read_json(files.plan, "plan of a sweep")
    try:
        _Plan.model_validate(plan)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"The plan {files.plan} is damaged: {place} ({first['msg']}).") from error
    return plan


def steps_done(files: RunFiles, storage: Storage | None = None) -> int:
    """Environment steps of the newest intact checkpoint of a trial, on storage if the sweep has one.

    Raises:
        StorageError: If storage cannot be reached.
    """
    if storage is not None:
        return steps_on(storage.child("trials").child(files.directory.name))
    newest = CheckpointStore(files.directory).newest_valid()
    return 0 if newest is None else finished_steps(read_manifest(newest))


def run_sweep(
    files: SweepFiles,
    progress: SweepProgress,
    *,
    only: Sequence[str] | None = None,
    max_concurrent: int | None = None,
    wandb: WandbOptions = WandbOptions(),  # noqa: B008  (frozen)
    keep_checkpoints: int = 2,
    storage: Storage | None = None,
) -> Outcome:
    """Run the incomplete trials of a sweep.

    Raises:
        UserError: If a trial can never be placed, or a node of the cluster does not see the sweep's directory and
            there is no storage.
        StorageError: If the storage cannot be reached.
    """
    # Tune's newer output engine prints a banner whatever its verbosity.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    plan = read_plan(files)
    names = [name for name in plan["trials"] if only is None or name in only]
    configs = {name: resolve_saved(files.trial(name).config, {}) for name in names}
    done_before = {name: steps_done(files.trial(name), storage) for name in names}
    waiting = [name for name in names if done_before[name] < configs[name].run.steps]
    for name in waiting:
        files.error(name).unlink(missing_ok=True)
        if storage is not None:
            with storage.reached():
                storage.remove(f"trials/{name}/{ERROR_FILE}")
    stopped_by = None
    if waiting:
        with stop_request(progress.console) as stop:
            try:
                with ray_session():
                    machines = cluster_machines()
                    requests = {
                        name: resources(configs[name], machines.keep_rollouts_apart) for name in waiting
                    }
                    check_placeable(requests, machines)
                    if storage is None:
                        check_shared(files.directory)
                    with progress.running({name: configs[name].run.steps for name in names}, done_before):
                        _tune(
                            files,
                            plan,
                            requests,
                            progress,
                            max_concurrent,
                            wandb,
                            keep_checkpoints,
                            storage,
                            stop,
                        )
            except SystemExit:
                if stop.can_save:  # a second signal; else no trial has started, and nothing is lost
                    raise
            stopped_by = stop.signal
    return replace(_outcome(files, names, configs, storage), stopped_by=stopped_by)


def _tune(
    files: SweepFiles,
    plan: Mapping[str, Any],
    requests: Mapping[str, PlacementGroupFactory],
    progress: SweepProgress,
    max_concurrent: int | None,
    wandb: WandbOptions,
    keep_checkpoints: int,
    storage: Storage | None,
    stop: StopRequest,
) -> None:
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # ours saves every trial, whichever the signal
    stopper = SweepStop(stop, progress.running_trials)
    trainable = tune.with_resources(SweepTrial, lambda config: requests[config["trial"]])
    tuner = tune.Tuner(
        trainable,
        param_space={
            "trial": tune.grid_search(list(requests)),
            "directory": str(files.directory.absolute()),
            "sweep": plan["sweep"],
            "imports": plan["imports"],
            "variants": plan["trials"],
            "wandb": wandb,
            "keep_checkpoints": keep_checkpoints,
            "storage": None if storage is None else storage.uri,
            "stop_key": stopper.key,
        },
        tune_config=tune.TuneConfig(
            max_concurrent_trials=max_concurrent,
            trial_dirname_creator=lambda trial: str(trial.config["trial"]),
            reuse_actors=False,
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


def _outcome(
    files: SweepFiles, names: Sequence[str], configs: Mapping[str, RunConfig], storage: Storage | None
) -> Outcome:
    done, unfinished, failed = [], [], {}
    for name in names:
        if _ended(files.trial(name), storage) >= configs[name].run.steps:
            done.append(name)
        elif files.error(name).exists():
            failed[name] = files.error(name)
        else:
            unfinished.append(name)
    return Outcome(tuple(done), tuple(unfinished), failed)


def _ended(files: RunFiles, storage: Storage | None) -> int:
    """`steps_done`, or 0 if storage does not answer; the next session reads it again."""
    try:
        return steps_done(files, storage)
    except StorageError as error:
        logging.getLogger(__name__).warning("%s", error)
        return 0


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
        self._error.unlink(missing_ok=True)  # from an earlier session on this node
        with self._reported():
            import_modules(config["imports"], f"The sweep {files.directory}")
            if config["storage"] is not None:
                run_dir = files.trial(name).directory
                self._mirror = Mirror(Storage.open(config["storage"]), run_dir, files.results)
                self._mirror.identify()
            elif not files.plan.exists():  # on a node that joined after the sweep had begun
                raise UserError(
                    f"The node {platform.node()} cannot access {files.directory}: give an --out that all nodes "
                    "share, or --storage."
                )
            self._run = TrainingRun(
                resolve_saved(files.trial(name).config, {}).importing(config["imports"]),
                files.trial(name),
                sweep=config["sweep"],
                variant=config["variants"][name],
                keep_checkpoints=config["keep_checkpoints"],
                wandb=config["wandb"],
                mirror=self._mirror,
            )

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
        return {
            **metrics,
            "env_steps": env_steps,
            "failed": bool(self._failure),
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
        self._failure = text
        with suppress(StorageError):  # a full disk, which the driver, who has the text too, will tell of
            write_atomically(self._error, text.encode())
        if self._mirror is not None:
            self._mirror.failed(ERROR_FILE, text.encode())


def capacity(sweep: Sweep) -> tuple[str, int]:
    """The cluster's resources in words, and how many of the sweep's largest trials fit at a time.

    Raises:
        SettingsError: If a trial can never be placed.
    """
    with ray_session() if os.environ.get("RAY_ADDRESS") else nullcontext():
        machines = cluster_machines()
    requests = {trial.name: resources(trial.config, machines.keep_rollouts_apart) for trial in sweep.trials}
    check_placeable(requests, machines)
    at_a_time = min(trials_at_a_time(request.bundles, machines) for request in requests.values())
    return f"{machines.total('CPU'):g} CPUs and {machines.total('GPU'):g} GPUs", at_a_time

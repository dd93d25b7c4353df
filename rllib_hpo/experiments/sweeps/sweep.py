"""Run a sweep on Ray Tune: each trial has a run directory from which it can resume.

Tune decides where and when a trial runs. What a trial is, how far it has come and what it has measured stand in
its run directory and in the rows, so a sweep killed at any moment goes on from there, whatever Tune remembers.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ray.tune import PlacementGroupFactory

from rllib_hpo.errors import SettingsError, StorageError, UserCodeError, UserError
from rllib_hpo.experiments.cluster.nodes import check_shared
from rllib_hpo.experiments.cluster.ray_session import ray_session
from rllib_hpo.experiments.config.run_config import RunConfig, resolve_saved
from rllib_hpo.experiments.config.sweep_config import Sweep, Trial
from rllib_hpo.experiments.process.signals import StopRequest
from rllib_hpo.experiments.runs.files import CONFIG_FILE, RunFiles, to_rllib
from rllib_hpo.experiments.storage.folder import STORAGE_ERRORS, Storage, remove_paths
from rllib_hpo.experiments.sweeps.plan import ERROR_FILE, PLAN_FILE, SweepFiles, read_plan, steps_done
from rllib_hpo.experiments.sweeps.progress import SweepProgress
from rllib_hpo.experiments.sweeps.resources import check_placeable, resources
from rllib_hpo.experiments.sweeps.seeds import group_seeds
from rllib_hpo.experiments.sweeps.trial import Batch, TrialOptions, in_session, run_batch
from rllib_hpo.results import write_atomically
from rllib_hpo.rllib.environment import probe_environment
from rllib_hpo.rllib.machines import Machines, cluster_machines, trials_at_a_time


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
    """Remove a sweep or search that was refused before any trial began, so that a corrected command can make it."""
    begun = [path for path in files.directory.glob("trials/*/*") if path.name != CONFIG_FILE]
    if begun or files.results.exists():
        return
    if storage is not None:
        with suppress(*STORAGE_ERRORS):
            storage.remove(PLAN_FILE)
    remove_paths(files.directory.glob("*"))  # which was empty before
    with suppress(OSError):
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
    config_file, config = files.trial(trial.name).config, trial.config
    if config_file.exists():
        earlier = resolve_saved(config_file, {})
        config = config.compiled_like(earlier)
        before, after = earlier.values(), config.values()
        changed = [name for name in after if name != "steps" and before.get(name) != after[name]]
        if changed or after["steps"] < before["steps"]:
            name = (changed or ["steps"])[0]
            raise SettingsError(
                f"The sweep's trial {trial.name} has {name}={before.get(name)!r}, not {after[name]!r}: a sweep can "
                "only be extended by seeds and steps; start a new one to change anything else."
            )
    config.importing(imports).save(config_file)


def run_sweep(
    files: SweepFiles,
    progress: SweepProgress,
    *,
    only: Sequence[str] | None = None,
    options: TrialOptions = TrialOptions(),  # noqa: B008  (frozen)
    seeds_per_trial: int = 1,
) -> Outcome:
    """Run the incomplete trials of a sweep.

    Args:
        files: The sweep's directory.
        progress: Shows how far the trials are.
        only: Names of the trials to run; None for all.
        options: How they are run.
        seeds_per_trial: Greatest number of seeds of one configuration that a process trains.

    Raises:
        SettingsError: If trials of several seeds cannot share a process.
        UserError: If a trial can never be placed, or a node of the cluster does not see the sweep's directory and
            there is no storage.
        StorageError: If the storage cannot be reached.
    """
    plan, storage = read_plan(files), options.storage
    names = [name for name in plan["trials"] if only is None or name in only]
    configs = {name: resolve_saved(files.trial(name).config, {}) for name in names}
    done_before = {name: steps_done(files.trial(name), storage) for name in names}
    waiting = {name: configs[name] for name in names if done_before[name] < configs[name].run.steps}
    groups = group_seeds(waiting, seeds_per_trial)
    forget_errors(files, list(waiting), storage)

    def run(stop: StopRequest, machines: Machines) -> None:
        requests = _requests(groups, configs, machines)
        check_placeable(requests, machines)
        if storage is None:
            check_shared(files.directory)
        with progress.running({name: configs[name].run.steps for name in names}, done_before):
            run_batch(
                files,
                Batch(
                    plan["sweep"],
                    plan["trials"],
                    requests,
                    groups if seeds_per_trial > 1 else {},
                    imports=plan["imports"],
                ),
                progress,
                options,
                stop,
            )

    stopped_by = in_session(progress.console, run) if waiting else None
    return replace(outcome_of(files, configs, storage), stopped_by=stopped_by)


def _requests(
    groups: Mapping[str, Sequence[str]], configs: Mapping[str, RunConfig], machines: Machines
) -> dict[str, PlacementGroupFactory]:
    """Resources by group of seeds."""
    return {
        name: resources(configs[group[0]], machines.keep_rollouts_apart, len(group))
        for name, group in groups.items()
    }


def forget_errors(files: SweepFiles, names: Sequence[str], storage: Storage | None) -> None:
    """Remove the errors of trials that run again.

    Raises:
        StorageError: If the storage cannot be reached.
    """
    for name in names:
        files.error(name).unlink(missing_ok=True)
        if storage is not None:
            with storage.reached():
                storage.remove(f"trials/{name}/{ERROR_FILE}")


def outcome_of(files: SweepFiles, configs: Mapping[str, RunConfig], storage: Storage | None) -> Outcome:
    """How the trials of these configurations, by name, stand now."""
    done, unfinished, failed = [], [], {}
    for name, config in configs.items():
        if _ended(files.trial(name), storage) >= config.run.steps:
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


def capacity(sweep: Sweep, groups: Mapping[str, Sequence[str]]) -> tuple[str, int]:
    """The cluster's resources in words, and how many of the sweep's largest groups of seeds fit at a time.

    Raises:
        SettingsError: If a group can never be placed.
    """
    with ray_session() if os.environ.get("RAY_ADDRESS") else nullcontext():
        machines = cluster_machines()
    requests = _requests(groups, sweep.configs, machines)
    check_placeable(requests, machines)
    at_a_time = min(trials_at_a_time(request.bundles, machines) for request in requests.values())
    return f"{machines.total('CPU'):g} CPUs and {machines.total('GPU'):g} GPUs", at_a_time

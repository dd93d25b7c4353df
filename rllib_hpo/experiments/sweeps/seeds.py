"""Train several seeds in one trial of Tune: each has its own run, and on a GPU their updates are made together.

On a CPU, where larger batches gain nothing, the seeds take turns, iteration by iteration: each is bitwise the run that
it would be alone. A seed that is behind, as after a kill between two checkpoints, catches up before the others go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from rllib_hpo.errors import SettingsError
from rllib_hpo.experiments.config.run_config import RunConfig
from rllib_hpo.experiments.sweeps.stop import when_stopped
from rllib_hpo.experiments.sweeps.trial_run import RunsTrainable, TrialRun
from rllib_hpo.learning.shared_updates import SharedUpdates
from rllib_hpo.rllib._private import get_from_cluster, put_in_cluster


def group_seeds(configs: Mapping[str, RunConfig], seeds_per_trial: int) -> dict[str, list[str]]:
    """Group trials that differ only in their seed.

    A trial with remote runners and without a GPU is alone: they would wait while seeds take turns on a CPU.

    Args:
        configs: Configurations by the trials' names.
        seeds_per_trial: Greatest number of trials in a group.

    Returns:
        The trials of each group by its name, in their order.

    Raises:
        SettingsError: If `seeds_per_trial` is no positive integer, or a trial cannot be in a group.
    """
    _check(configs, seeds_per_trial)
    groups: list[list[str]] = []
    last: dict[str, list[str]] = {}
    for name, config in configs.items():
        group = last.get(key := _without_seed(name, config))
        if group is None or len(group) == seeds_per_trial or not _gains(config):
            groups.append(group := [])
            last[key] = group
        group.append(name)
    return {_group_name(group): group for group in groups}


def notices(config: RunConfig, seeds_per_trial: int) -> list[str]:
    """`RunConfig.notices`, and a sentence if this trial's seeds stay apart."""
    apart = "seeds with remote runners, which would wait while seeds take turns on a CPU, are trained apart"
    return [*config.notices(), *([apart] if seeds_per_trial > 1 and not _gains(config) else [])]


def _gains(config: RunConfig) -> bool:
    """Whether seeds may share a process: not if remote runners would wait for turns on a CPU."""
    run = config.run
    return run.num_gpus_per_learner > 0 or run.num_env_runners + run.evaluation_num_env_runners == 0


def _check(configs: Mapping[str, RunConfig], seeds_per_trial: int) -> None:
    if type(seeds_per_trial) is not int or seeds_per_trial < 1:
        raise SettingsError(f"seeds_per_trial={seeds_per_trial!r} must be an integer of at least 1.")
    if seeds_per_trial == 1:
        return
    for name, config in configs.items():
        for setting, needed in (("api_stack", "new"), ("num_learners", 0)):
            if (value := getattr(config.run, setting)) != needed:
                raise SettingsError(
                    f"seeds_per_trial={seeds_per_trial} needs {setting}={needed}, but the trial {name} has "
                    f"{setting}={value}."
                )


def _without_seed(name: str, config: RunConfig) -> str:
    values = config.values()
    # A path may hold the seed; the runs that it names differ in nothing else.
    del values["seed"], values["initialize_from"]
    return json.dumps([name.rpartition("seed")[0], values], sort_keys=True, default=str)


def _group_name(names: Sequence[str]) -> str:
    """Name of a trial, or for example "sac-hopper-seeds0-3" of several."""
    if len(names) == 1:
        return names[0]
    (start, _, first), (_, _, last) = names[0].rpartition("seed"), names[-1].rpartition("seed")
    return f"{start}seeds{first}-{last}"


class SeedRuns:
    """Train the runs of several seeds by iterations, those that are behind first.

    Args:
        runs: The runs, which have not begun.
        stop_key: Key of the sweep's stop request, below which ends are kept for a restart of the trial; "" for none.
        shared: Makes their updates together; by default only on a GPU.
    """

    def __init__(
        self, runs: Sequence[TrialRun], stop_key: str = "", shared: SharedUpdates | None = None
    ) -> None:
        self._key, self._shared = stop_key, shared
        self._is_stopped = False
        self._died: Exception | None = None
        """The first error that a restart of the trial may fix."""
        self._ended = {run.name: text for run in runs if (text := self._recorded_end(run.name)) is not None}
        """Errors of runs that have ended for good, by name; empty for those that are complete."""
        self._active = [run for run in runs if run.name not in self._ended]

    def begin(self) -> None:
        """Build all runs, and resume each from its newest checkpoint."""
        for run in list(self._active):
            self._attempt(run, run.begin)
        devices = [run.learner.trainer.device.type for run in self._active if run.learner is not None]
        if self._shared is None and "cuda" in devices:
            self._shared = SharedUpdates()

    def stop(self) -> None:
        """End all runs, since the driver was asked to stop; runs in another thread."""
        self._is_stopped = True
        for run in list(self._active):
            run.stop()

    def step(self) -> dict[str, Any]:
        """Train the seeds that are furthest behind for one iteration each.

        Raises:
            Exception: That of a seed which a restart may fix, once all others have ended.
        """
        if self._died is not None and not self._active and not self._is_stopped:
            raise self._died
        least = min((run.env_steps for run in self._active), default=0)
        runs = [run for run in self._active if self._is_stopped or run.env_steps == least]
        results = {}
        for run, result in zip(runs, self._train(runs), strict=True):
            if result is not None:
                results[run.name] = result
                if result["done"]:
                    self._end(run, stopped=result["stopped"])
        return {
            "runs": results,
            "errors": self._ended,
            "done": not self._active and (self._died is None or self._is_stopped),
        }

    def close(self) -> None:
        """End all sessions; save the runs that are in the middle."""
        with ExitStack() as closing:  # calls all, whichever raises
            for run in self._active:
                closing.callback(run.close)

    def _train(self, runs: Sequence[TrialRun]) -> list[dict[str, Any] | None]:
        calls = [partial(self._attempt, run, run.step) for run in runs]
        learners = [run.learner for run in runs if run.learner is not None]
        if self._shared is None or self._is_stopped or len(learners) < len(runs):  # one cannot be built
            return [call() for call in calls]
        return self._shared.run(learners, calls)

    def _attempt(self, run: TrialRun, call: Callable[[], Any]) -> Any:
        """Return the result of a call; None after an error that a restart may fix, which ends the run until then."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001  (`step` raises it)
            self._died = self._died or error
            self._active.remove(run)
            with suppress(Exception):  # the first error counts
                run.close()
            return None

    def _end(self, run: TrialRun, *, stopped: bool) -> None:
        """Close a run that is complete, failed or stopped."""
        self._attempt(run, run.close)
        if run in self._active:
            self._active.remove(run)
            if not stopped or run.failure:
                self._ended[run.name] = run.failure
                self._record_end(run)

    def _record_end(self, run: TrialRun) -> None:
        if self._key:
            put_in_cluster(f"{self._key}/{run.name}", json.dumps(run.failure).encode())

    def _recorded_end(self, name: str) -> str | None:
        """The error of a run that ended before the trial was restarted, empty if it is complete; None otherwise."""
        text = get_from_cluster(f"{self._key}/{name}") if self._key else None
        return None if text is None else str(json.loads(text))


class SeedsTrial(RunsTrainable):
    """Several seeds of one configuration."""

    def setup(self, config: dict[str, Any]) -> None:
        """Build the runs, and resume each from its newest checkpoint."""
        super().setup(config)
        runs = [TrialRun(name, config) for name in config["groups"][config["trial"]]]
        self._runs = SeedRuns(runs, config["stop_key"])
        when_stopped(config["stop_key"], self._runs.stop)
        self._runs.begin()

    def step(self) -> dict[str, Any]:
        """Train the seeds that are furthest behind for one iteration each, and save if the sweep is stopped."""
        return self._runs.step()

    def cleanup(self) -> None:
        """Save the runs if the sweep is stopped in the middle."""
        self._runs.close()

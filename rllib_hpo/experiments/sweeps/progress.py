"""Show the progress of a sweep: trials done, running and failed, steps per second, time left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class SweepProgress(Callback):
    """Show Tune's trials as a bar on a terminal, or else as a line for every trial that ends.

    Args:
        console: Where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("{task.fields[state]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps, {task.fields[speed]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            expand=True,
            speed_estimate_period=300,
        )
        self._running: set[str] = set()
        self._ended: dict[str, str] = {}

    @contextmanager
    def running(self, steps: Mapping[str, int], done: Mapping[str, int]) -> Iterator[None]:
        """Show the whole sweep while the context lasts.

        Args:
            steps: Environment steps of each trial.
            done: Those made before.
        """
        self._steps, self._done = dict(steps), dict(done)
        self._ended = {name: "done" for name in steps if done[name] >= steps[name]}
        self._began, self._done_before = time.monotonic(), sum(done.values())
        for task in self._bar.task_ids:  # of an earlier generation of a search
            self._bar.remove_task(task)
        self._task = self._bar.add_task(
            "sweep", total=sum(steps.values()), completed=sum(done.values()), state="", speed=""
        )
        with self._bar:
            self._refresh()
            yield
            self._refresh()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count a trial that starts or restarts, or several seeds of one process, but none that have ended."""
        self._running |= {name for name in _names(trial) if name not in self._ended}
        self._refresh()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Count new steps of a trial, or of several seeds."""
        for name, own in result.get("runs", {trial.config["trial"]: result}).items():
            self._count(name, own)
        if result.get("done"):
            self._running.difference_update(_names(trial))
        self._refresh()

    def _count(self, name: str, result: dict[str, Any]) -> None:
        self._done[name] = int(result.get("env_steps", self._done[name]))
        if result.get("done"):
            if result.get("stopped") and not result.get("failed"):
                self._saved(name)
            else:
                self._end(name, self._how(name, result), result.get("evaluation/return_mean"))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count a trial that failed and will restart: its process, learner, runners or machine died."""
        for name in [name for name in _names(trial) if name in self._running]:
            self._running.discard(name)
            self.console.print(
                f"again   {name}   {self._done[name]:,} steps   it died and restarts from its last checkpoint",
                highlight=False,
                soft_wrap=True,
            )
        self._refresh()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count a trial that failed too often."""
        for name in [name for name in _names(trial) if name not in self._ended]:
            self._end(name, "failed")
        self._refresh()

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: Tune pickles callbacks for a restore that a sweep does not use."""
        return {}

    def running_trials(self) -> set[str]:
        """Names of the trials that are running."""
        return set(self._running)

    def _saved(self, name: str) -> None:
        self._running.discard(name)
        self.console.print(f"saved   {name}   {self._done[name]:,} steps", highlight=False)

    def _how(self, name: str, result: dict[str, Any]) -> str:
        """How a trial has ended: before its last step where a search has stopped it."""
        if result.get("failed"):
            return "failed"
        return "done" if self._done[name] >= self._steps[name] else "ended early"

    def _end(self, name: str, how: str, return_mean: float | None = None) -> None:
        self._running.discard(name)
        if self._ended.get(name) != how:
            self._ended[name] = how
            count = f"{len(self._ended)} of {len(self._steps)}"
            score = "" if return_mean is None else f"   return {return_mean:,.1f}"
            self.console.print(
                f"{count}   {how}   {name}   {self._done[name]:,} steps{score}",
                highlight=False,
                soft_wrap=True,
            )
            if how == "ended early":
                self._steps[name] = self._done[name]

    def _refresh(self) -> None:
        states = list(self._ended.values())
        done, failed = states.count("done"), states.count("failed")
        completed = sum(self._done.values())
        seconds = max(time.monotonic() - self._began, 1e-9)
        early = f" {states.count('ended early')} ended early," if "ended early" in states else ""
        self._bar.update(
            self._task,
            completed=completed,
            total=sum(self._steps.values()),
            state=f"{done} done,{early} {len(self._running)} running, {failed} failed",
            speed=f"{(completed - self._done_before) / seconds:,.0f} steps/s",
        )


def _names(trial: Any) -> list[str]:
    """Names of the runs that a trial of Tune trains."""
    name = trial.config["trial"]
    names: list[str] = trial.config.get("groups", {}).get(name, [name])
    return names

"""Show the progress of a training run: a bar, and a line for each evaluation."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

if TYPE_CHECKING:
    from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm

REFRESH_S = 0.5
EVALUATION_LINE_S = 30.0
"""Seconds between lines about a running evaluation, if there is no bar."""


class _StepsPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("   - steps/s" if speed is None else f"{speed:4.0f} steps/s")


class Progress:
    """Show steps, steps per second, the last return and the time left, as a bar on a terminal or else as lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Bar(
            TextColumn("{task.fields[doing]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _StepsPerSecond(),
            TextColumn("return {task.fields[last_return]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            expand=True,
            speed_estimate_period=60,
        )

    @contextmanager
    def running(self, algorithm: ActorCriticAlgorithm, steps: int) -> Iterator[None]:
        """Show the bar while the context lasts; a thread polls `algorithm.env_steps`."""
        done = threading.Event()
        task = self._bar.add_task(
            "training", total=steps, completed=algorithm.env_steps, last_return="-", doing="training"
        )

        def follow() -> None:
            last_line = time.monotonic()
            while not done.wait(REFRESH_S):
                played = algorithm.evaluation_steps
                self._bar.update(
                    task,
                    completed=algorithm.env_steps,
                    last_return=_last_return(algorithm),
                    doing=f"evaluating ({played:,} steps)" if played else "training",
                )
                if not played:
                    last_line = time.monotonic()
                elif not self.console.is_terminal and time.monotonic() - last_line > EVALUATION_LINE_S:
                    last_line = time.monotonic()
                    self.console.print(
                        f"step {algorithm.env_steps:>9,}   evaluating: {played:,} steps",
                        highlight=False,
                    )

        follower = threading.Thread(target=follow, daemon=True, name="progress")
        with self._bar:
            follower.start()
            try:
                yield
            finally:
                done.set()
                follower.join()
                self._bar.update(task, completed=algorithm.env_steps, last_return=_last_return(algorithm))

    def report(self, evaluation: Mapping[str, Any]) -> None:
        """Print a line for an evaluation, given as RLlib's results hold it."""
        numbers = evaluation["env_runners"]
        self.console.print(
            f"step {evaluation['env_steps']:>9,}   evaluation return {numbers['episode_return_mean']:9.1f} "
            f"± {numbers['episode_return_std']:.1f}   episode length {numbers['episode_len_mean']:.0f}"
            f"{success_and_cost(numbers)}",
            highlight=False,
        )


def success_and_cost(numbers: Mapping[str, Any]) -> str:
    """Describe success rate and costs of an evaluation or a row, as the end of a line; empty where it has neither."""
    text = ""
    if numbers.get("success_rate") is not None:
        text += f"   success {numbers['success_rate']:.0%}"
    if numbers.get("cost_mean") is not None:
        text += f"   cost {numbers['cost_mean']:.1f}, discounted {numbers['cost_discounted_mean']:.1f}"
    if numbers.get("cost_limit") is not None:
        text += f", limit {numbers['cost_limit']:g}"
    return text


def _last_return(algorithm: ActorCriticAlgorithm) -> str:
    if algorithm.latest_evaluation is None:
        return "-"
    return f"{algorithm.latest_evaluation['env_runners']['episode_return_mean']:.1f}"

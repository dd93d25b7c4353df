"""Report outcomes of episodes besides returns: goals, distances, and runs that passed a task's threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from rllib_hpo.analysis.curves import Curve, mean_over_seeds
from rllib_hpo.analysis.figures import INK, MUTED, panels, style_axis
from rllib_hpo.analysis.runs import Run, Series, cells_of, clock, series_of, tasks_of
from rllib_hpo.analysis.statistics import Interval, stratified_bootstrap
from rllib_hpo.analysis.tables import NOTHING, Table
from rllib_hpo.results.schema import SUCCESS_RATE
from rllib_hpo.tasks.soft_q import THRESHOLDS

SHOWN = {
    SUCCESS_RATE: "success rate",
    "goal_reached": "goal reached",
    "goal_reached_0": "goal 1",
    "goal_reached_1": "goal 2",
    "goal_reached_2": "goal 3",
    "goal_reached_3": "goal 4",
    "net_displacement_mean": "net displacement",
    "forward_max": "farthest forward",
    "goal_distance_min": "nearest to the goal",
    "discounted_return_mean": "discounted return",
}
"""Columns of the table, by the names in rows."""
_95 = 1.959963984540054


def wilson(successes: int, trials: int) -> Interval:
    """A share and its 95 % interval (Wilson 1927), which is sensible for few trials and for shares of 0 and 1.

    Raises:
        ValueError: If there are no trials.
    """
    if trials < 1:
        raise ValueError("there are no trials")
    share, z2 = successes / trials, _95**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(np.asarray(share), np.asarray(low), np.asarray(high))


def is_past(run: Run) -> bool | None:
    """Return whether a run passed its task's threshold in training; None if there is no threshold."""
    if run.task.env_id not in THRESHOLDS:
        return None
    name, sign, threshold = THRESHOLDS[run.task.env_id]
    values = run.diagnostics.get(name, np.array([]))
    values = values[np.isfinite(values)]
    if not len(values):
        return False
    return bool(values.max() > threshold) if sign == ">" else bool(values.min() < threshold)


def outcomes_table(runs: Sequence[Run]) -> Table | None:
    """Return the last evaluation's outcomes, by task and algorithm; None if no environment reports any."""
    telling = [run for run in runs if any(name in run.diagnostics for name in SHOWN)]
    if not telling:
        return None
    names = [name for name in SHOWN if any(name in run.diagnostics for run in telling)]
    rows, cells = [], cells_of(telling)
    for task in tasks_of(telling):
        for one in series_of(telling):
            if own := cells.get((task, one.label)):
                values = [_cell([_last(run, name) for run in own]) for name in names]
                rows.append([task.name, one.label, *values, _past([is_past(run) for run in own])])
    columns = ["task", "algorithm", *(SHOWN[name] for name in names), "runs beyond the threshold"]
    note = (
        "Mean ± sample standard deviation over seeds. Success rates, shares of goals, net displacement (metres) and "
        "discounted returns: last evaluation; farthest forward and nearest to the goal (metres): all of training. "
        "Thresholds: " + ", ".join(f"{env} {n} {s} {t:g}" for env, (n, s, t) in THRESHOLDS.items()) + ". "
        "In brackets Wilson 95% intervals."
    )
    return Table("outcomes", "Outcomes of episodes", note, columns, rows)


def _last(run: Run, name: str) -> float:
    values = run.diagnostics.get(name, np.array([]))
    values = values[np.isfinite(values)]
    return float(values[-1]) if len(values) else math.nan


def _cell(values: Sequence[float]) -> str:
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return NOTHING
    return f"{known.mean():.2f}" + (f" ± {known.std(ddof=1):.2f}" if len(known) > 1 else "")


def _past(found: Sequence[bool | None]) -> str:
    known = [one for one in found if one is not None]
    if not known:
        return NOTHING
    share, low, high = (float(value) for value in wilson(sum(known), len(known)))
    return f"{sum(known)} of {len(known)}: {share:.2f} [{low:.2f}, {high:.2f}]"


def success_figure(runs: Sequence[Run], rng: np.random.Generator) -> Figure | None:
    """Draw success rates of evaluations against environment steps; None if no environment reports any.

    A panel per task; a line is the mean over seeds at the steps that all have reached, not smoothed. The shade is its
    bootstrap 95% interval over seeds. A single seed has none: its episodes say nothing about other seeds.
    """
    known = [run for run in runs if np.isfinite(run.diagnostics.get(SUCCESS_RATE, np.nan)).any()]
    if not known:
        return None
    tasks, cells, series = tasks_of(known), cells_of(known), series_of(runs)
    figure, axes = panels(len(tasks), 3.4)
    for axis, task in zip(axes, tasks, strict=True):
        for one in series:
            _draw_success(axis, cells.get((task, one.label), []), one, rng)
        axis.set_title(task.name, loc="left", fontsize=11, fontweight="bold", color=INK)
        axis.set_xlabel(clock(run for run in known if run.task == task), fontsize=9, color=INK)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_ylim(-0.03, 1.03)
        style_axis(axis)
    axes[0].set_ylabel("success rate", fontsize=9, color=INK)
    lines = {line.get_label(): line for axis in axes for line in axis.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", frameon=False, fontsize=8)
    seeds = ", ".join(
        f"{task.name}: {len({run.seed for run in known if run.task == task})}" for task in tasks
    )
    figure.supxlabel(
        f"noise-free evaluations; shade: bootstrap 95% interval over seeds; seeds: {seeds}",
        fontsize=7.5,
        color=MUTED,
    )
    return figure


def _draw_success(axis: Any, own: Sequence[Run], series: Series, rng: np.random.Generator) -> None:
    curves = []
    for run in own:
        rates = run.diagnostics[SUCCESS_RATE]
        curves.append(Curve(run.steps[np.isfinite(rates)], rates[np.isfinite(rates)]))
    steps = mean_over_seeds(curves).steps if curves else np.array([])
    if not len(steps):
        return
    rates = np.stack([curve.values[np.isin(curve.steps, steps)] for curve in curves])  # (seeds, steps)
    interval = stratified_bootstrap(rates, lambda resampled: resampled.mean(1), rng)
    if len(curves) > 1:
        axis.fill_between(steps, interval.low, interval.high, color=series.color, alpha=0.18, linewidth=0)
    axis.plot(
        steps,
        interval.estimate,
        color=series.color,
        linestyle=series.dash,
        marker="o" if len(steps) == 1 else "",  # a line needs two points to be seen
        linewidth=1.6,
        label=series.label,
    )


def threshold_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw each run's progress in training, one line per seed, and the threshold; None if no task has one.

    It corresponds to Figure 3 of Haarnoja et al. 2017.
    """
    shown = [
        run
        for run in runs
        if run.task.env_id in THRESHOLDS and THRESHOLDS[run.task.env_id][0] in run.diagnostics
    ]
    if not shown:
        return None
    cells, series = cells_of(shown), series_of(shown)
    pairs = [(task, one) for task in tasks_of(shown) for one in series if (task, one.label) in cells]
    figure, axes = panels(len(pairs), 3.2)
    for axis, (task, one) in zip(axes, pairs, strict=True):
        name, _, threshold = THRESHOLDS[task.env_id]
        for run in cells[task, one.label]:
            axis.plot(run.steps, run.diagnostics[name], color=one.color, linewidth=1.2)
        axis.axhline(threshold, color=MUTED, linewidth=1, linestyle="dashed")
        axis.set_title(f"{task.name}, {one.label}", loc="left", fontsize=10, fontweight="bold", color=INK)
        axis.set_xlabel("environment steps", fontsize=9, color=INK)
        axis.set_ylabel(f"{SHOWN[name]} (m)", fontsize=9, color=INK)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        style_axis(axis)
    figure.supxlabel("a line for each seed; dashed: the threshold", fontsize=7.5, color=MUTED)
    return figure

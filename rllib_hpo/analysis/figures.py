"""Figures over all tasks: interquartile means with intervals, performance profiles, probability of improvement."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rllib_hpo.analysis import statistics
from rllib_hpo.analysis.curves import Curve, mean_over_seeds
from rllib_hpo.analysis.runs import Run, Series, cells_of, clock, series_of, tasks_of
from rllib_hpo.analysis.statistics import Interval
from rllib_hpo.analysis.tables import Scores, baseline_of

INK, MUTED, _GRID = "#222222", "#666666", "#E6E6E6"
SCALE = "normalised return (random 0, final SAC 1)"


def interval_figure(scores: Scores, series: Sequence[Series], rng: np.random.Generator) -> Figure:
    """Interquartile mean and mean of normalised scores, with stratified-bootstrap 95% intervals."""
    measures = {"interquartile mean": statistics.interquartile_mean, "mean": _mean}
    shown = [one for one in reversed(series) if scores.matrix(one.label) is not None]
    figure, axes = panels(len(measures), 1.2 + 0.35 * len(shown))
    for axis, (name, measure) in zip(axes, measures.items(), strict=True):
        for place, one in enumerate(shown):
            matrix = scores.matrix(one.label)
            assert matrix is not None
            _draw_interval(axis, place, statistics.stratified_bootstrap(matrix, measure, rng), one.color)
        axis.set_yticks(range(len(shown)), [one.label for one in shown] if axis is axes[0] else [])
        axis.set_title(name, loc="left", fontsize=11, fontweight="bold", color=INK)
        axis.set_xlabel(SCALE, fontsize=9, color=INK)
        style_axis(axis)
    _explain(figure, scores, "bar: stratified-bootstrap 95% interval")
    return figure


def profile_figure(scores: Scores, series: Sequence[Series], rng: np.random.Generator) -> Figure:
    """Share of runs that score above each threshold, with pointwise bootstrap 95% bands."""
    shown = [(one, matrix) for one in series if (matrix := scores.matrix(one.label)) is not None]
    highest = max(1.0, *(float(matrix.max()) for _, matrix in shown)) * 1.05
    lowest = min(0.0, *(float(matrix.min()) for _, matrix in shown))
    thresholds = np.linspace(lowest, highest, 101)
    figure, (axis,) = panels(1, 3.6)

    def profile(values: statistics.Floats) -> statistics.Floats:
        return statistics.performance_profile(values, thresholds)

    for one, matrix in shown:
        interval = statistics.stratified_bootstrap(matrix, profile, rng)
        axis.fill_between(thresholds, interval.low, interval.high, color=one.color, alpha=0.15, linewidth=0)
        axis.plot(
            thresholds, interval.estimate, color=one.color, linestyle=one.dash, linewidth=1.8, label=one.label
        )
    axis.set_xlabel(SCALE, fontsize=9, color=INK)
    axis.set_ylabel("share of runs above", fontsize=9, color=INK)
    axis.legend(frameon=False, fontsize=9, handlelength=2.8)
    style_axis(axis)
    _explain(figure, scores, "shade: pointwise bootstrap 95% band")
    return figure


def improvement_figure(scores: Scores, series: Sequence[Series], rng: np.random.Generator) -> Figure:
    """Probability that a run beats one of the baseline, over all tasks."""
    base = baseline_of(scores.labels)
    theirs = scores.matrix(base)
    shown = [
        (one, matrix)
        for one in reversed(series)
        if one.label != base and (matrix := scores.matrix(one.label)) is not None
    ]
    figure, (axis,) = panels(1, 1.2 + 0.35 * len(shown))
    for place, (one, ours) in enumerate(shown):
        assert theirs is not None
        _draw_interval(axis, place, statistics.bootstrap_improvement(ours, theirs, rng), one.color)
    axis.axvline(0.5, color=MUTED, linewidth=1, linestyle="dashed")
    axis.set_yticks(range(len(shown)), [one.label for one, _ in shown])
    axis.set_xlim(0, 1)
    axis.set_xlabel(f"P(run > run of {base})", fontsize=9, color=INK)
    style_axis(axis)
    _explain(figure, scores, "bar: bootstrap 95% interval")
    return figure


_MARKERS = "osD^vPX*"
"""Markers of series where the line style says something else."""
DRIFT, NOISE = "displacement_drift", "displacement_noise"


def displacement_figure(runs: Sequence[Run]) -> Figure | None:
    """How far the leapfrog moves actions in training: by the gradient (drift) and by the momentum (noise).

    A panel per task, mean over seeds where all have a number; None without such diagnostics.
    """
    chains = [run for run in runs if DRIFT in run.diagnostics and np.isfinite(run.diagnostics[DRIFT]).any()]
    if not chains:
        return None
    tasks, cells, series = tasks_of(chains), cells_of(chains), series_of(runs)
    figure, axes = panels(len(tasks), 3.4)
    for axis, task in zip(axes, tasks, strict=True):
        for place, one in enumerate(series):
            for name, style in ((DRIFT, "solid"), (NOISE, "dotted")):
                own = [Curve(run.steps, run.diagnostics[name]) for run in cells.get((task, one.label), [])]
                if own:
                    mean = mean_over_seeds(own)
                    label = f"{one.label}, {name.removeprefix('displacement_')}"
                    axis.plot(
                        mean.steps,
                        mean.mean,
                        color=one.color,
                        linestyle=style,
                        marker=_MARKERS[place % len(_MARKERS)],
                        markersize=4,
                        linewidth=1.6,
                        label=label,
                    )
        axis.set_title(task.name, loc="left", fontsize=11, fontweight="bold", color=INK)
        axis.set_xlabel(clock(run for run in chains if run.task == task), fontsize=9, color=INK)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set_ylim(bottom=0)
        style_axis(axis)
    axes[0].set_ylabel("mean |a_K - a_0|", fontsize=9, color=INK)
    lines = {line.get_label(): line for axis in axes for line in axis.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", frameon=False, fontsize=8)
    seeds = ", ".join(
        f"{task.env_id}: {len({run.seed for run in chains if run.task == task})}" for task in tasks
    )
    figure.supxlabel(f"diagnostics of training batches; seeds: {seeds}", fontsize=7.5, color=MUTED)
    return figure


def to_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as "png", "pdf" or "svg"; equal figures give equal bytes."""
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"png": {"Software": None}, "pdf": {"CreationDate": None}}.get(
        kind, {"Date": None}
    )
    with rc_context({"svg.hashsalt": "rllib_hpo"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _mean(values: statistics.Floats) -> statistics.Floats:
    return np.asarray(values.mean((-2, -1)))


def blank(width: float, height: float) -> Figure:
    """A figure of a size in inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def panels(num_panels: int, height: float, columns: int = 4) -> tuple[Figure, list[Any]]:
    """A figure with panels of a height in inches, at most `columns` in a row."""
    columns = min(num_panels, columns)
    rows = -(-num_panels // columns)
    figure = blank(4.2 * columns + 1.4, height * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[num_panels:]:
        unused.remove()
    return figure, axes[:num_panels]


def _draw_interval(axis: Any, place: int, interval: Interval, color: str) -> None:
    axis.plot([interval.low, interval.high], [place, place], color=color, linewidth=7, alpha=0.35)
    axis.plot([interval.estimate], [place], "o", color=color, markersize=6)
    axis.set_ylim(-0.6, place + 0.6)


def style_axis(axis: Any) -> None:
    """Quiet spines, ticks and grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(MUTED)
    axis.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    axis.grid(color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)


def _explain(figure: Figure, scores: Scores, what: str) -> None:
    """Add the meaning of the marks, the numbers of seeds, and the versions of the environments."""
    seeds = sorted({len(own) for own in scores.values.values()})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    environments = ", ".join(task.env_id for task in scores.tasks)
    figure.supxlabel(f"{what}; {count} seeds; {environments}", fontsize=7.5, color=MUTED, wrap=True)

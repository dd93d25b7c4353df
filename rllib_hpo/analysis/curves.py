"""Learning curves: the return of noise-free evaluations against environment steps, over seeds.

For display only: curves are smoothed. Statistics belong to the raw rows.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from rllib_hpo.analysis.runs import Run, Series, TaskId, clock, runs_of, series_of
from rllib_hpo.errors import UserError
from rllib_hpo.results.atomic import write_atomically

SPAN = 5
"""Evaluations in the smoothing window."""

_INK, _MUTED, _GRID = "#222222", "#666666", "#E6E6E6"


class Curve(NamedTuple):
    """Evaluation returns of one run against environment steps."""

    steps: NDArray[np.int64]
    """(N,) environment steps, strictly increasing."""
    values: NDArray[np.float64]
    """(N,) mean return of each evaluation."""
    scheduled: NDArray[np.bool_] | None = None
    """(N,) evaluations that enter moving averages; None for all."""

    def smoothed(self) -> Curve:
        """The moving average over the scheduled evaluations."""
        chosen = slice(None) if self.scheduled is None else self.scheduled
        return Curve(self.steps[chosen], ema(self.values[chosen]))


class SeedMean(NamedTuple):
    """Mean over seeds, at the steps that every seed has reached."""

    steps: NDArray[np.int64]
    """(M,) environment steps."""
    mean: NDArray[np.float64]
    """(M,) mean over seeds."""
    std: NDArray[np.float64]
    """(M,) sample standard deviation over seeds; zeros for a single seed."""


def ema(values: ArrayLike, span: float = SPAN) -> NDArray[np.float64]:
    """Exponential moving average with weights (1 - a)^age, a = 2 / (span + 1), normalised to sum to one.

    The same as pandas' `Series.ewm(span=span).mean()`: the first values are not drawn towards the very first.

    Args:
        values: (N,) numbers in order.
        span: at least 1; 1 changes nothing.
    """
    if span < 1:
        raise ValueError(f"span is {span}, less than 1")
    decay = 1 - 2 / (span + 1)
    smoothed = np.array(values, dtype=np.float64)
    weighted_sum = total_weight = 0.0
    for index, value in enumerate(smoothed):
        weighted_sum = decay * weighted_sum + value
        total_weight = decay * total_weight + 1
        smoothed[index] = weighted_sum / total_weight
    return smoothed


def mean_over_seeds(curves: Sequence[Curve]) -> SeedMean:
    """Mean and standard deviation over seeds at the steps that all `curves` share.

    A step that only some seeds have reached is left out: a mean over fewer seeds would jump there.

    Args:
        curves: at least one, one per seed.
    """
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    values = np.stack([curve.values[np.searchsorted(curve.steps, steps)] for curve in curves])  # (seeds, M)
    std = values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(steps))
    return SeedMean(steps, values.mean(axis=0), std)


def learning_curve(table: pa.Table, path: Path) -> Path:
    """Write the figure of `learning_curve_figure` as a PNG at `path`, atomically, making its folder.

    Raises:
        UserError: the table has no rows.
        StorageError: the file cannot be written.
    """
    buffer = io.BytesIO()
    learning_curve_figure(table).savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return write_atomically(path, buffer.getvalue())


def learning_curve_figure(table: pa.Table) -> Figure:
    """Draw evaluation rows: a panel per task, a line per algorithm and variant.

    Points are the evaluations themselves; a line is the mean over seeds of each seed's moving average (span 5), as
    far as all seeds have come; the shade is one standard deviation over seeds.

    Args:
        table: rows as `rllib_hpo.results.read_rows` gives them.

    Raises:
        UserError: the table has no rows.
    """
    runs = runs_of(table)
    if not runs:
        raise UserError("There are no evaluation rows to draw a learning curve from.")
    panels, series = _panels(runs), {one.label: one for one in series_of(runs)}
    figure, axes = _grid(len(panels), _return_label(table), clock(runs))
    notes = [{label: _note(seeds) for label, seeds in curves.items()} for curves in panels.values()]
    shared = _shared_notes(notes)
    for axis, ((task, env_id), curves), own in zip(axes, panels.items(), notes, strict=True):
        _draw_panel(axis, curves, series)
        subtitle = [] if task == env_id else [env_id]
        _style(axis, task, [*subtitle, *([] if shared else _merged(own))])
    _legend(figure, axes, {label: f"{label}, {shared[label]}" if shared else label for label in series})
    return figure


def _panels(runs: Sequence[Run]) -> dict[TaskId, dict[str, list[Curve]]]:
    """Curves by task, then by label, one per seed."""
    panels: dict[TaskId, dict[str, list[Curve]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        panels[run.task][run.label].append(Curve(run.steps, run.returns, run.scheduled))
    return panels


def _return_label(table: pa.Table) -> str:
    episodes = {len(returns) for returns in table["returns"].to_pylist()}
    if len(episodes) > 1:
        return "mean return of noise-free episodes"
    (count,) = episodes
    return f"mean return of {count} noise-free episodes" if count > 1 else "return of one noise-free episode"


def _grid(num_panels: int, return_label: str, steps_label: str) -> tuple[Figure, list[Axes]]:
    """A figure with `num_panels` axes, at most four in a row, and those axes in reading order."""
    columns = min(num_panels, 3 if num_panels in (5, 6, 9) else 4)
    rows = -(-num_panels // columns)
    size = (7.0, 4.4) if num_panels == 1 else (4.0 * columns, 3.4 * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # draws without a display, whatever backend the user has set
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[num_panels:]:
        unused.remove()
    for lowest in axes[max(0, num_panels - columns) : num_panels]:
        lowest.set_xlabel(steps_label, fontsize=10, color=_INK)
    for leftmost in axes[:num_panels:columns]:
        leftmost.set_ylabel(return_label, fontsize=10, color=_INK)
    return figure, axes[:num_panels]


def _draw_panel(axis: Axes, curves: Mapping[str, Sequence[Curve]], series: Mapping[str, Series]) -> None:
    """Draw one task; a label has the same colour and dashes in all panels."""
    crowded = sum(len(curve.steps) for seeds in curves.values() for curve in seeds) > 150
    for label, seeds in curves.items():
        color = series[label].color
        for curve in seeds:
            size, alpha = (3.5, 0.25) if crowded else (7.0, 0.4)
            axis.plot(
                curve.steps, curve.values, ".", color=color, alpha=alpha, markersize=size, markeredgewidth=0
            )
        smooth = mean_over_seeds([curve.smoothed() for curve in seeds])
        if len(seeds) > 1:
            low, high = smooth.mean - smooth.std, smooth.mean + smooth.std
            axis.fill_between(smooth.steps, low, high, color=color, alpha=0.18, linewidth=0)
        marker = "o" if len(smooth.steps) == 1 else ""  # a line needs two points to be seen
        axis.plot(
            smooth.steps,
            smooth.mean,
            linestyle=series[label].dash,
            marker=marker,
            color=color,
            linewidth=1.8,
            label=label,
        )


def _note(seeds: Sequence[Curve]) -> str:
    """Number of seeds of a line, and the step that not all of them have passed, if any."""
    count = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    common = mean_over_seeds(seeds).steps
    if not len(common):
        return f"{count}, no step in common"
    if common[-1] == max(curve.steps[-1] for curve in seeds):
        return count
    return f"{count}, mean up to {EngFormatter(sep='')(common[-1])}"


def _shared_notes(notes: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The note of each label that is the same in all panels with that label."""
    shared: dict[str, str] = {}
    for panel in notes:
        for label, note in panel.items():
            if shared.setdefault(label, note) != note:
                return {}
    return shared


def _merged(notes: Mapping[str, str]) -> list[str]:
    """Notes of one panel, one line each, or a single line if they agree."""
    if len(set(notes.values())) == 1:
        return [next(iter(notes.values()))]
    return [f"{label}: {notes[label]}" for label in notes]


def _style(axis: Axes, title: str, subtitle: Sequence[str]) -> None:
    axis.set_title("\n".join(subtitle), loc="left", fontsize=8.5, color=_MUTED)
    axis.annotate(
        title,
        (0, 1),
        (0, 8 + 11 * len(subtitle)),  # points above the panel and its subtitle
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=11,
        fontweight="bold",
        color=_INK,
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_MUTED)
    axis.tick_params(colors=_MUTED, labelcolor=_INK, labelsize=9)
    axis.grid(color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.margins(x=0.02)
    axis.set_xlim(right=max(1.0, axis.get_xlim()[1]))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))


def _legend(figure: Figure, axes: Sequence[Axes], names: Mapping[str, str]) -> None:
    """Add one legend below all panels, with the meaning of points, lines and shades."""
    lines = {line.get_label(): line for axis in axes for line in axis.get_lines()}
    explanation = ["points: evaluations", f"line: moving average over {SPAN} evaluations"]
    if any(axis.collections for axis in axes):
        explanation = [
            explanation[0],
            f"{explanation[1]}, mean over seeds",
            "shade: ± one standard deviation",
        ]
    letters = 13 * figure.get_figwidth()  # that fit beside each other, about
    columns = min(max(int(letters / (max(map(len, names.values())) + 8)), 1), len(names))
    figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(names) // columns))
    figure.legend(
        [lines[label] for label in names],
        list(names.values()),
        loc="outside lower center",
        ncols=columns,
        fontsize=9.5,
        frameon=False,
        handlelength=2.8,  # a whole period of each line style
        labelcolor=_INK,
        title="   ".join(explanation),
        title_fontproperties={"size": 8},
    ).get_title().set_color(_MUTED)

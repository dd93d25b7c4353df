"""Compare returns and costs: a figure with the limit, and a table of who keeps to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rllib_hpo.analysis.curves import Curve, mean_over_seeds
from rllib_hpo.analysis.figures import INK, MUTED, panels, style_axis
from rllib_hpo.analysis.runs import Floats, Run, Series, TaskId, cells_of, clock, series_of, tasks_of
from rllib_hpo.analysis.tables import NOTHING, Table, coverage, final

DOING_NOTHING: Mapping[str, float] = {"Ant-v4": 1_000.0, "Ant-v5": 1_000.0}
"""Returns of 1,000 steps with zero torque, by environment: the healthy bonus alone."""
_TITLES = {
    "return": "return",
    "cost_mean": "cost of an episode",
    "cost_discounted_mean": "discounted cost of an episode",
}


def cost_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw a row of panels per task: return, cost and discounted cost, with the limit where it applies.

    Lines are means over seeds of moving averages. The result is None if no task has a cost.
    """
    costly = [run for run in runs if run.costs]
    if not costly:
        return None
    tasks, cells, series = tasks_of(costly), cells_of(costly), series_of(runs)
    figure, axes = panels(len(_TITLES) * len(tasks), 3.2, columns=len(_TITLES))
    for row, task in enumerate(tasks):
        for column, name in enumerate(_TITLES):
            axis = axes[row * len(_TITLES) + column]
            for one in series:
                _draw(axis, cells.get((task, one.label), []), name, one)
            _draw_references(axis, task, [run for run in costly if run.task == task], name)
            axis.set_title(f"{task.name}: {_TITLES[name]}", loc="left", fontsize=10, color=INK)
            axis.set_xlabel(clock(run for run in costly if run.task == task), fontsize=9, color=INK)
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            style_axis(axis)
    lines = {line.get_label(): line for axis in axes for line in axis.get_lines()}
    shown = {label: line for label, line in lines.items() if not str(label).startswith("_")}
    figure.legend(shown.values(), shown.keys(), loc="outside right upper", frameon=False, fontsize=8)
    seeds = ", ".join(
        f"{task.name}: {len({run.seed for run in costly if run.task == task})}" for task in tasks
    )
    figure.supxlabel(f"noise-free evaluations, moving averages; seeds: {seeds}", fontsize=7.5, color=MUTED)
    return figure


def _draw(axis: Any, own: Sequence[Run], name: str, series: Series) -> None:
    curves = [
        Curve(run.steps, run.returns if name == "return" else run.costs[name], run.scheduled) for run in own
    ]
    if curves:
        mean = mean_over_seeds([curve.smoothed() for curve in curves])
        axis.plot(
            mean.steps,
            mean.mean,
            color=series.color,
            linestyle=series.dash,
            linewidth=1.6,
            label=series.label,
        )


def _draw_references(axis: Any, task: TaskId, own: Sequence[Run], name: str) -> None:
    """Draw the limit, and the return of doing nothing."""
    level, label = None, ""
    if name == "return":
        level, label = DOING_NOTHING.get(task.env_id), "doing nothing"
    elif own[0].limited == name:
        level, label = float(own[0].costs["cost_limit"][-1]), "limit"
    if level is not None:
        axis.axhline(level, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2, label=label)


def cost_table(runs: Sequence[Run]) -> Table | None:
    """Return final return, costs and episode length of each cell, who is within the limit, and training costs.

    The result is None if no task has a cost.
    """
    costly = [run for run in runs if run.costs]
    if not costly:
        return None
    order = [one.label for one in series_of(costly)]
    cells = cells_of(costly)
    rows = [
        [task.name, label, str(len(cells[task, label])), *_cell(cells[task, label])]
        for task in tasks_of(costly)
        for label in order
        if (task, label) in cells
    ]
    columns = [
        *("task", "algorithm", "seeds", "return", "cost", "discounted cost", "limit", "within the limit"),
        *("cost per 100 steps", "steps of an episode", "cost of training", "predicted / real"),
    ]
    references = [
        f"{name} returns {DOING_NOTHING[env_id]:,.0f} for doing nothing"
        for name, env_id in tasks_of(costly)
        if env_id in DOING_NOTHING
    ]
    note = (
        "Mean ± sample standard deviation over seeds of the mean of each seed's last five evaluations. Within the "
        "limit: seeds whose mean cost is at most the limit (d: on the discounted cost, which late violations "
        "hardly raise; u: on the undiscounted). Cost of training: sum over all training episodes. Predicted / "
        "real: the cost critic's value at the start of the last ten training episodes, divided by their discounted "
        "cost; a shield is meaningful only where this is near 1."
        + "".join(f" {sentence}." for sentence in references)
    )
    return Table("costs", "Returns and costs", note + coverage(costly), columns, rows)


def _cell(own: Sequence[Run]) -> list[str]:
    limit, limited = float(own[0].costs["cost_limit"][-1]), own[0].limited
    finals = {name: np.array([_final(run, run.costs[name]) for run in own]) for name in own[0].costs}
    within = int((finals[limited] <= limit).sum())
    per_100 = 100 * finals["cost_mean"] / finals["episode_length_mean"]
    predicted = [_latest(run, "q_cost_start") / _latest(run, "cost_discounted_latest") for run in own]
    return [
        _shown(np.array([_final(run, run.returns) for run in own])),
        _shown(finals["cost_mean"]),
        _shown(finals["cost_discounted_mean"]),
        f"{limit:,.1f} {'u' if limited == 'cost_mean' else 'd'}",
        f"{within} of {len(own)}",
        _shown(per_100),
        _shown(finals["episode_length_mean"]),
        _shown(np.array([_latest(run, "train_cost_total") for run in own])),
        _shown(np.array(predicted), digits=2),
    ]


def _final(run: Run, values: Floats) -> float:
    return final(values[run.scheduled])


def _latest(run: Run, name: str) -> float:
    """Return the last value of a diagnostic; NaN if there is none."""
    return float(run.diagnostics[name][-1]) if name in run.diagnostics else np.nan


def _shown(values: Floats, digits: int = 1) -> str:
    known = values[np.isfinite(values)]
    if not len(known):
        return NOTHING
    mean = f"{known.mean():,.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {known.std(ddof=1):,.{digits}f}"

"""Tables and figures of the amortization gap, from the rows that `rllib-hpo gap` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from rllib_hpo.analysis.figures import INK, MUTED, panels, style_axis
from rllib_hpo.analysis.statistics import Floats, Interval, stratified_bootstrap
from rllib_hpo.analysis.tables import NOTHING, Table
from rllib_hpo.errors import UserError

ROWS = "gap.parquet"
"""File of the rows in the folder that is written."""
NUMBERS = ("distance", "kl", "value_lost", "q_gap", "acceptance")
_ABOUT = {"policy", "algorithm", "task", "env_steps", "leapfrog_steps", "num_draws", "trusted", "floor"}
MOST_PANELS = 12
"""Policies that the figure of stages shows, those with the most steps; the table has all."""
_DRAWN, _ZERO, _OTHER = "#0072B2", "#D55E00", "#009E73"


class Stage(NamedTuple):
    """Which of a policy's distributions is measured."""

    momentum: str
    """Whose momentum: "train", "explore"; empty for policies without one."""
    steps: int | None
    """Leapfrog steps made; None for policies without them."""
    rounds: int = 1
    """Number of chains, each with a fresh momentum."""
    noise: bool = True
    """Whether the momentum is drawn, or zero (the drift alone)."""
    mass: str = ""
    """"consistent" where that mass replaces the policy's own."""


_COLUMNS = {*_ABOUT, *NUMBERS, *Stage._fields}


class Line(NamedTuple):
    """What rows say of one policy's stage in the states whose reference is trusted."""

    policy: str
    stage: Stage
    about: Mapping[str, Any]
    """Columns that are equal in all its rows."""
    values: Mapping[str, Floats]
    """Numbers by column, (S,)."""
    num_states: int
    """States measured, with those that are not trusted."""

    def mean(self, column: str, seed: int = 0) -> Interval:
        """Return the mean over states with its bootstrap 95% interval; NaN where there is none."""
        chosen = self.values[column]
        if not len(chosen) or not np.isfinite(chosen).all():
            return Interval(*(np.asarray(np.nan),) * 3)
        return stratified_bootstrap(chosen[:, None], _mean_of_runs, np.random.default_rng(seed))


def lines_of(rows: pa.Table) -> list[Line]:
    """Group rows by policy and stage, in their order."""
    groups: dict[tuple[str, Stage], list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        stage = Stage(**{name: row[name] for name in Stage._fields})
        groups.setdefault((row["policy"], stage), []).append(row)
    return [
        Line(
            policy,
            stage,
            own[0],
            {
                name: np.array([row[name] for row in own if row["trusted"]], np.float64)
                for name in (*NUMBERS, "floor")
            },
            len(own),
        )
        for (policy, stage), own in groups.items()
    ]


def gap_table(rows: pa.Table) -> Table:
    """Return the means over trusted states with bootstrap 95% intervals, a line for each policy and stage."""
    lines, cells, trusted = lines_of(rows), list[list[str]](), dict[str, tuple[int, int]]()
    for line in lines:
        if line.policy not in trusted:
            trusted[line.policy] = len(line.values["floor"]), line.num_states
            cells.append([line.policy, "a perfect policy", _cell(line.mean("floor")), *[NOTHING] * 4])
        cells.append([line.policy, stage_name(line.stage), *(_cell(line.mean(name)) for name in NUMBERS)])
    num_trusted, num_states = map(sum, zip(*trusted.values(), strict=True))
    draws = sorted({line.about["num_draws"] for line in lines})
    return Table(
        "gap",
        "Amortization gap",
        f"Means over states whose reference is trusted ({num_trusted:,} of {num_states:,} states of {len(trusted)} "
        f"{'policy' if len(trusted) == 1 else 'policies'}), with bootstrap 95 % intervals over states; "
        f"{' or '.join(f'{number:,}' for number in draws)} draws of policy and reference in each. "
        "Distance is the square root of the energy distance.",
        ["policy", "actions", "distance", "KL (nats)", "soft value lost", "Q lost", "Metropolis acceptance"],
        cells,
    )


def stage_name(stage: Stage) -> str:
    """Return what a stage is, in words."""
    if stage.steps is None:
        return "the policy's"
    if stage.steps == 0:
        return "before the leapfrog"
    chains = f"{stage.rounds} x " if stage.rounds > 1 else ""
    steps = f"{stage.steps} step{'s' if stage.steps > 1 else ''}"
    momentum = f"momentum of {'training' if stage.momentum == 'train' else 'exploration'}"
    drift = "no momentum" if stage.momentum == "train" else "no momentum, chain of exploration"
    mass = ", consistent mass" if stage.mass else ""
    return f"{chains}{steps}, {momentum if stage.noise else drift}{mass}"


def gap_figure(rows: pa.Table) -> Figure:
    """Draw each stage's distance with its interval, a panel per policy; a line shows a perfect policy's distance."""
    panel_lines: dict[str, list[Line]] = {}
    for line in lines_of(rows):
        panel_lines.setdefault(line.policy, []).append(line)
    most = sorted(panel_lines, key=lambda name: panel_lines[name][0].about["env_steps"])[-MOST_PANELS:]
    panel_lines = {name: lines for name, lines in panel_lines.items() if name in most}
    longest = max(map(len, panel_lines.values()))
    figure, axes = panels(len(panel_lines), 1.2 + 0.32 * longest, columns=2)
    for axis, (name, lines) in zip(axes, panel_lines.items(), strict=True):
        style_axis(axis)
        axis.set_title(name, fontsize=10, color=INK)
        axis.axvline(float(lines[0].mean("floor").estimate), color=MUTED, linestyle="--")
        for place, line in enumerate(lines):
            is_other = line.stage.mass or line.stage.rounds > 1
            color = _ZERO if not line.stage.noise else _OTHER if is_other else _DRAWN
            interval = line.mean("distance")
            axis.plot([interval.low, interval.high], [place, place], color=color, linewidth=5, alpha=0.35)
            axis.plot([interval.estimate], [place], "o", color=color, markersize=5)
        axis.set_yticks(range(len(lines)), [stage_name(line.stage) for line in lines], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(left=0)
    figure.supxlabel("distance to exp(Q / alpha); dashed: of two references", fontsize=9, color=INK)
    return figure


def gap_over_training_figure(rows: pa.Table) -> Figure | None:
    """Draw the distance against environment steps, a panel per task; None if no policy was measured at two steps.

    SAC-HPO has two lines, of its actions before the leapfrog and after it.
    """
    curves: dict[str, dict[tuple[str, str], dict[int, list[float]]]] = {}
    for line in lines_of(rows):
        label = _label_over_training(line)
        if label is not None and len(line.values["distance"]):
            of_task = curves.setdefault(line.about["task"], {})
            of_step = of_task.setdefault((line.about["algorithm"], label), {})
            of_step.setdefault(line.about["env_steps"], []).append(float(line.values["distance"].mean()))
    if not any(len(of_step) > 1 for of_task in curves.values() for of_step in of_task.values()):
        return None
    figure, axes = panels(len(curves), 3.2)
    for axis, (task, of_task) in zip(axes, curves.items(), strict=True):
        style_axis(axis)
        axis.set_title(task, fontsize=10, color=INK)
        for (algorithm, label), of_step in of_task.items():
            steps = sorted(of_step)
            means = [float(np.mean(of_step[step])) for step in steps]
            style = "--" if label == "before the leapfrog" else "-"
            axis.plot(steps, means, style, marker="o", markersize=4, label=f"{algorithm} {label}".strip())
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8, frameon=False)
        axis.set_xlabel("environment steps", fontsize=9, color=INK)
    figure.supylabel("distance to exp(Q / alpha), mean over seeds", fontsize=9, color=INK)
    return figure


def _label_over_training(line: Line) -> str | None:
    """Return how a stage is named in the figure over training; None if it is not shown there."""
    stage = line.stage
    if stage.steps is None:
        return ""
    if stage.steps == 0:
        return "before the leapfrog"
    is_own = stage.momentum == "train" and stage.noise and not stage.mass and stage.rounds == 1
    return "after the leapfrog" if is_own and stage.steps == line.about["leapfrog_steps"] else None


def read_gap(folder: Path) -> pa.Table:
    """Read the rows that `write_gap` wrote.

    Raises:
        UserError: If the folder has none.
    """
    path = folder / ROWS
    if not path.is_file():
        raise UserError(f"{folder} has no {ROWS}: `rllib-hpo gap POLICIES --out {folder}` writes it.")
    try:
        rows = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if missing := sorted(_COLUMNS - {*rows.column_names}):
        raise UserError(f"{path} is not of `rllib-hpo gap`: it lacks {', '.join(missing)}.")
    return rows


def _mean_of_runs(values: Floats) -> Floats:
    return np.asarray(values.mean((-2, -1)))


def _cell(interval: Interval) -> str:
    if np.isnan(interval.estimate):
        return NOTHING
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"

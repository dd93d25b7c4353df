"""Figures of a search: which settings matter, and which values go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from rllib_hpo.analysis.figures import INK, MUTED, blank, panels, style_axis
from rllib_hpo.analysis.searches import SearchRows
from rllib_hpo.results.configurations import exactly, shown_values
from rllib_hpo.results.schema import EvaluationRow

FEWEST_TRIALS = 8
"""Number of trials below which importances would say nothing."""
LOG_RATIO = 10
"""Ratio of the largest to the smallest value from which a positive setting has a logarithmic axis."""


def search_figures(searches: Sequence[SearchRows]) -> dict[str, tuple[Figure, str]]:
    """Figures of searches by name, with captions; importances only where they can be computed."""
    figures = {}
    for number, search in enumerate(searches, start=1):
        figures[f"parallel-{number}"] = parallel_figure(search), f"Trials of the search: {search.title}"
        scores = importances(search)
        if scores:
            caption = f"Importance of the searched settings: {search.title}"
            figures[f"importance-{number}"] = importance_figure(search, scores), caption
    return figures


def importances(search: SearchRows) -> dict[str, float]:
    """Share of each setting in what sets the best tenth of the trials apart; empty if it cannot be told.

    PED-ANOVA (Watanabe et al., arXiv 2304.10255) of Optuna, on returns at the last step that all trials have reached.
    It needs Optuna, `FEWEST_TRIALS` trials, and settings that do not change during a trial.
    """
    if search.cell.changing or len(search.trials) < FEWEST_TRIALS:
        return {}
    try:
        import optuna
    except ImportError:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    step = common_step(search)
    values = {name: _column(search, name, step) for name in search.cell.differing}
    distributions = {name: _distribution(optuna, column) for name, column in values.items()}
    study = optuna.create_study(direction="maximize")
    for place, row in enumerate(_rows_at(search, step)):
        params = {
            name: column[place]
            if not isinstance(distributions[name], optuna.distributions.CategoricalDistribution)
            else exactly(column[place])
            for name, column in values.items()
        }
        study.add_trial(
            optuna.create_trial(params=params, distributions=distributions, value=row.return_mean)
        )
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
    )
    return {name: float(score) for name, score in found.items()}


def importance_figure(search: SearchRows, scores: dict[str, float]) -> Figure:
    """Bars of importances, the greatest on top."""
    ordered = sorted(scores.items(), key=lambda one: one[1])
    figure, (axis,) = panels(1, 1.2 + 0.35 * len(ordered))
    axis.barh([name for name, _ in ordered], [score for _, score in ordered], color="#3b6ea5")
    axis.set_xlim(0, 1)
    axis.set_xlabel("importance (PED-ANOVA)", fontsize=9, color=INK)
    style_axis(axis)
    figure.supxlabel(
        f"{len(search.trials)} trials, returns at {common_step(search):,} steps", fontsize=7.5, color=MUTED
    )
    return figure


def parallel_figure(search: SearchRows) -> Figure:
    """A line for each trial through its settings and, last, its latest return; the best lines are on top.

    Settings that change during a trial have the values that it ended with. Trials that exceed a limit on costs are
    dotted, below the others.
    """
    last = [rows[-1] for rows in search.trials.values()]
    columns = {
        name: [search.configs[row.config_hash].get(name) for row in last] for name in search.cell.differing
    }
    if len({row.env_steps for row in last}) > 1:
        columns["steps"] = [row.env_steps for row in last]
    returns = np.array([row.return_mean for row in last])
    axes = [_places(values) for values in [*columns.values(), returns.tolist()]]
    names = [*columns, "latest return"]
    figure = blank(1.6 + 1.7 * len(names), 4.2)
    axis = figure.subplots()
    scale = Normalize(*_limits(returns))
    exceeding = np.array([bool(search.excess(row)) for row in last])
    for trial in np.lexsort((returns, ~exceeding)):
        axis.plot(
            range(len(names)),
            [places[trial] for places, _ in axes],
            color=colormaps["viridis"](scale(returns[trial])),
            linestyle="dotted" if exceeding[trial] else "solid",
            linewidth=1.3,
            alpha=0.85,
        )
    for place, (_, ticks) in enumerate(axes):
        axis.axvline(place, color=MUTED, linewidth=0.8)
        for height, text in ticks:
            axis.text(place + 0.03, height, text, fontsize=7.5, color=INK, va="center")
    axis.set_xticks(range(len(names)), names, fontsize=8.5)
    axis.set_yticks([])
    axis.set_ylim(-0.05, 1.05)
    axis.set_xlim(-0.1, len(names) - 0.6)
    axis.spines[:].set_visible(False)
    dotted = "; dotted: over the limit on costs" if exceeding.any() else ""
    figure.supxlabel(f"{len(last)} trials; colour: latest return{dotted}", fontsize=7.5, color=MUTED)
    return figure


def common_step(search: SearchRows) -> int:
    """The last step at which every trial has been evaluated; 0 if there is none."""
    return max(
        set.intersection(*({row.env_steps for row in rows} for rows in search.trials.values())), default=0
    )


def _rows_at(search: SearchRows, step: int) -> list[EvaluationRow]:
    return [next(row for row in rows if row.env_steps == step) for rows in search.trials.values()]


def _column(search: SearchRows, name: str, step: int) -> list[Any]:
    return [search.configs[row.config_hash].get(name) for row in _rows_at(search, step)]


def _distribution(optuna: Any, values: Sequence[Any]) -> Any:
    if not _are_numbers(values):
        return optuna.distributions.CategoricalDistribution(sorted({exactly(value) for value in values}))
    kind = "IntDistribution" if all(isinstance(value, int) for value in values) else "FloatDistribution"
    return getattr(optuna.distributions, kind)(min(values), max(values), log=_is_logarithmic(values))


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _is_logarithmic(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= LOG_RATIO


def _limits(values: Any) -> tuple[float, float]:
    low, high = float(min(values)), float(max(values))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _places(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights from 0 to 1 of values on their axis, and its ticks: both ends, or every choice."""
    if not _are_numbers(values):
        shown = shown_values(values)
        heights = dict(zip(shown, np.linspace(0, 1, max(2, len(shown))).tolist(), strict=False))
        return [heights[exactly(value)] for value in values], [(heights[key], shown[key]) for key in shown]
    numbers = np.log(values) if _is_logarithmic(values) else np.asarray(values, float)
    low, high = _limits(numbers)
    ends = [(0.0, min(values)), (1.0, max(values))] if high > low else [(0.5, values[0])]
    return ((numbers - low) / (high - low)).tolist(), [(height, f"{value:,.4g}") for height, value in ends]

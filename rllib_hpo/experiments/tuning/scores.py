"""Compare evaluations of trials: by the search's metric, and those within a limit on costs before all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from rllib_hpo.errors import SettingsError
from rllib_hpo.experiments.config.search_config import Search
from rllib_hpo.results import excess_cost


class Score(NamedTuple):
    """What an evaluation is compared by."""

    value: float
    """The search's metric."""
    excess: float = 0.0
    """By how much its cost exceeds the limit; 0 within it, or if there is none."""


def score_of(search: Search, metrics: Mapping[str, float]) -> Score:
    """Return the score of an evaluation with these metrics, named as by `evaluation_metrics`.

    Raises:
        SettingsError: If its evaluations have no such number.
    """
    value = metrics.get(f"evaluation/{search.file.metric}")
    if value is None:
        names = sorted(name.removeprefix("evaluation/") for name in metrics if name.startswith("evaluation/"))
        raise SettingsError(
            f"metric={search.file.metric!r} is no number of these evaluations; they have {', '.join(names)}."
        )
    if search.limited is None:
        return Score(value)
    cost, limit = (metrics[f"evaluation/{name}"] for name in (search.limited, "cost_limit"))
    return Score(value, excess_cost(cost, limit))


def comparable(search: Search, scores: Iterable[Score]) -> Callable[[Score], float]:
    """Return the function that makes these scores one number each, more is better.

    That is the metric (negative for mode min) within the limit, else the worst metric within it minus the excess: the
    rule of Deb 2000, "An efficient constraint handling method for genetic algorithms", equation 4.
    """
    sign = 1.0 if search.file.mode == "max" else -1.0
    worst = min((sign * one.value for one in scores if not one.excess), default=0.0)
    return lambda one: worst - one.excess if one.excess else sign * one.value

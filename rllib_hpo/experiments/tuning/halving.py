"""Decide which trials stop early: asynchronous successive halving (ASHA), by what all trials have reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Reports = Mapping[int, float]
"""Scores of one trial by environment step; more is better."""


def stops(own: Reports, others: Iterable[Reports], rungs: Sequence[int], reduction_factor: int) -> bool:
    """Whether a trial ends at its latest report.

    It does where that report is the first at or after a rung, and below the quantile 1 - 1/reduction_factor of the
    scores that the other trials had there (Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020, in
    the form that stops trials and never pauses one). The first trial at a rung goes on.

    Args:
        own: The trial's scores.
        others: Those of all other trials, ended ones among them.
        rungs: Environment steps, ascending.
        reduction_factor: One of this many goes on.
    """
    if not own:
        return False
    latest = max(own)
    reached = [rung for rung in rungs if rung <= latest]
    if not reached or _step_at(own, reached[-1]) != latest:
        return False
    scores = [other[step] for other in others if (step := _step_at(other, reached[-1])) is not None]
    return bool(scores) and own[latest] < float(np.quantile(scores, 1 - 1 / reduction_factor))


def _step_at(reports: Reports, rung: int) -> int | None:
    """The step of the first report at or after a rung; None before it."""
    return min((step for step in reports if step >= rung), default=None)

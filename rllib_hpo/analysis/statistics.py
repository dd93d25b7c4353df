"""Statistics of returns over runs and tasks, as Agarwal et al. (2021, arXiv 2108.13264) recommend them.

Arrays in, numbers out. Scores are (..., R, T): R runs (seeds) of each of T tasks, behind them any number of
leading dimensions, such as replications of a bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from rllib_hpo.errors import UserError

Floats = NDArray[np.float64]
LAST = 5
"""Evaluations that the final return is the mean of."""


class Interval(NamedTuple):
    """An estimate and the interval about it; scalars, or arrays of one shape."""

    estimate: Floats
    low: Floats
    high: Floats


def interquartile_mean(scores: ArrayLike) -> Floats:
    """Mean of the middle half of all R * T scores, (...,) of (..., R, T) (section 4.3).

    A quarter of the scores, rounded down, is left out at either end.

    Raises:
        ValueError: If a score is not finite, or there is none.
    """
    values = _scores(scores)
    pooled = np.sort(values.reshape(*values.shape[:-2], -1), axis=-1)
    cut = pooled.shape[-1] // 4
    return np.asarray(pooled[..., cut : pooled.shape[-1] - cut].mean(-1))


def optimality_gap(scores: ArrayLike, target: float = 1.0) -> Floats:
    """How far scores fall short of `target` on average, (...,) of (..., R, T) (section 4.3)."""
    return np.asarray(np.maximum(target - _scores(scores), 0).mean((-2, -1)))


def stratified_bootstrap(
    scores: ArrayLike,
    statistic: Callable[[Floats], Floats],
    rng: np.random.Generator,
    *,
    replications: int = 2_000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic, runs resampled with replacement within each task (section 4.1).

    Args:
        scores: (R, T).
        statistic: (N, R, T) -> (N, ...), as the functions of this module.
        rng: Where the resamples are drawn from.
        replications: N.
        confidence: Share of the replications within the interval.

    Raises:
        ValueError: If a score is not finite, or there is none.
    """
    values = _scores(scores)
    resampled = statistic(_resampled(values, rng, replications))
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return Interval(statistic(values[None])[0], low, high)


def _resampled(values: Floats, rng: np.random.Generator, replications: int) -> Floats:
    """(N, R, T): runs of (R, T) drawn with replacement, each task's for itself."""
    runs, tasks = values.shape
    chosen = rng.integers(runs, size=(replications, runs, tasks))
    return values[chosen, np.arange(tasks)]


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Share of runs that score above each threshold, averaged over tasks, (..., K) (section 4.2)."""
    values, limits = _scores(scores), np.asarray(thresholds, np.float64)
    above = values[..., None] > limits
    return np.asarray(above.mean((-3, -2)))


def probability_of_improvement(ours: ArrayLike, theirs: ArrayLike) -> Floats:
    """P(X > Y) + P(X = Y) / 2 for a run X of ours and one Y of theirs, averaged over tasks (section 4.3).

    Args:
        ours: (..., R, T).
        theirs: (..., Q, T), of the same tasks.

    Raises:
        ValueError: If the numbers of tasks differ, or a score is not finite.
    """
    x, y = _scores(ours), _scores(theirs)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"scores of {x.shape[-1]} and of {y.shape[-1]} tasks cannot be compared")
    runs, others = x.shape[-2], y.shape[-2]
    # Mann and Whitney's U from the ranks of both together: R Q comparisons need not be made.
    ranks = rankdata(np.concatenate([x, y], axis=-2), axis=-2)[..., :runs, :]
    wins = ranks.sum(-2) - runs * (runs + 1) / 2
    return np.asarray((wins / (runs * others)).mean(-1))


def bootstrap_improvement(
    ours: ArrayLike,
    theirs: ArrayLike,
    rng: np.random.Generator,
    *,
    replications: int = 2_000,
    confidence: float = 0.95,
) -> Interval:
    """`probability_of_improvement` of (R, T) and (Q, T), runs of both resampled within each task."""
    x, y = _scores(ours), _scores(theirs)
    resampled = probability_of_improvement(_resampled(x, rng, replications), _resampled(y, rng, replications))
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(probability_of_improvement(x, y), low, high)


def paired_difference(
    ours: ArrayLike,
    theirs: ArrayLike,
    rng: np.random.Generator,
    *,
    replications: int = 2_000,
    confidence: float = 0.95,
) -> Interval:
    """Mean of ours minus theirs by seed, (T,) of (R, T) each, the same seeds in the same rows.

    Raises:
        ValueError: If the shapes differ, or a score is not finite.
    """
    x, y = _scores(ours), _scores(theirs)
    if x.shape != y.shape:
        raise ValueError(f"scores of shapes {x.shape} and {y.shape} are not of the same seeds and tasks")
    return stratified_bootstrap(
        x - y, lambda values: values.mean(-2), rng, replications=replications, confidence=confidence
    )


def steps_to_reach(steps: ArrayLike, returns: ArrayLike, target: float) -> Floats:
    """The first evaluation at which each run reaches `target`, (R,) of returns (R, E); NaN where none does.

    Args:
        steps: (E,) environment steps of the evaluations, increasing.
        returns: (R, E).
        target: The return to reach.
    """
    values = np.asarray(returns, np.float64)
    reached = values >= target
    first = np.asarray(steps, np.float64)[reached.argmax(-1)]
    return np.where(reached.any(-1), first, np.nan)


def final_and_best(returns: ArrayLike) -> tuple[Floats, Floats]:
    """Mean of the last five evaluations, and the best one, each (...,) of returns (..., E)."""
    values = np.asarray(returns, np.float64)
    if values.shape[-1] == 0:
        raise ValueError("there is no evaluation")
    return values[..., -LAST:].mean(-1), values.max(-1)


def normalise(scores: ArrayLike, random: ArrayLike, reference: ArrayLike) -> Floats:
    """Scores (..., R, T) on a scale where `random` (T,) is 0 and `reference` (T,) is 1.

    Raises:
        UserError: If both are equal at a task, naming its place.
    """
    zero, one = np.asarray(random, np.float64), np.asarray(reference, np.float64)
    if (zero == one).any():
        place = int(np.flatnonzero(zero == one)[0])
        raise UserError(
            f"Scores of task {place} cannot be normalised: a random policy and the reference both reach {one[place]:g}."
        )
    return (_scores(scores) - zero) / (one - zero)


def _scores(scores: ArrayLike) -> Floats:
    values = np.asarray(scores, np.float64)
    if values.ndim < 2 or 0 in values.shape[-2:]:
        raise ValueError(f"scores have shape {values.shape}; runs x tasks are needed, at least one of each")
    if not np.isfinite(values).all():
        raise ValueError("a score is not finite")
    return values

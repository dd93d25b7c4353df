"""Statistics of the leapfrog's effect on a policy's draws: Q, spread, and non-Gaussianity.

The claims are those of arXiv 2103.12020, V-C4. Draws are resampled for the intervals, one before the leapfrog together
with the one after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from rllib_hpo.analysis.statistics import Floats, Interval

REPLICATIONS = 200


class ShapeNumbers(NamedTuple):
    """Estimates with bootstrap 95% intervals; NaN where the denominator is 0."""

    share_rising: Interval
    """Share of draws whose Q is higher at the end of their chain than at its start."""
    variance_ratio: Interval
    """Sum of the variances of all action dimensions, after over before."""
    non_gaussianity_before: Interval
    """`non_gaussianity` of the base policy's draws, which the tanh alone makes non-Gaussian."""
    non_gaussianity_after: Interval


def shape_numbers(
    before: Floats, after: Floats, q_before: Floats, q_after: Floats, rng: np.random.Generator
) -> ShapeNumbers:
    """Compute the statistics of N draws.

    Args:
        before: (N, A) actions where the chains begin.
        after: (N, A) actions where they end.
        q_before: (N,) Q of `before`.
        q_after: (N,) Q of `after`.
        rng: Where the resamples are drawn from.
    """
    rises = (q_after > q_before).astype(np.float64)
    weights = rng.multinomial(len(rises), np.full(len(rises), 1 / len(rises)), REPLICATIONS) / len(rises)

    def interval(statistic: Callable[[Floats], float]) -> Interval:
        estimate = statistic(np.full(len(rises), 1 / len(rises)))
        resampled = np.array([statistic(row) for row in weights])
        # Resampling itself leads away from the Gaussian, so replications are centred on the estimate.
        low, high = estimate + np.quantile(resampled, [0.025, 0.975]) - resampled.mean()
        return Interval(np.asarray(estimate), low, high)

    def ratio(weight: Floats) -> float:
        wide, narrow = _variance(after, weight), _variance(before, weight)
        return wide / narrow if narrow > 0 else float("nan")

    return ShapeNumbers(
        interval(lambda weight: float(weight @ rises)),
        interval(ratio),
        interval(lambda weight: non_gaussianity(before, weight)),
        interval(lambda weight: non_gaussianity(after, weight)),
    )


def _variance(values: Floats, weights: Floats) -> float:
    centred = values - weights @ values
    return float((weights @ (centred * centred)).sum())


def non_gaussianity(values: Floats, weights: Floats | None = None) -> float:
    """Share of the draws' variance that a Gaussian's quantiles leave unexplained, a mean over action dimensions.

    Of each dimension it is 1 - R^2 of the normal Q-Q plot: Shapiro and Francia's 1 - W' (1972), the squared Wasserstein
    distance to the nearest Gaussian in units of the variance. It is about 0 for Gaussian draws (2 in N), 0.05 for
    uniform ones, 0.36 for two far points. Dimensions that do not vary do not count.

    Args:
        values: (N, A).
        weights: (N,) of sum 1; equal ones unless given.
    """
    weights = np.full(len(values), 1 / len(values)) if weights is None else weights
    unexplained = [_unexplained(column, weights) for column in np.asarray(values, np.float64).T]
    varying = [value for value in unexplained if value is not None]
    return float(np.mean(varying)) if varying else float("nan")


def _unexplained(values: Floats, weights: Floats) -> float | None:
    """1 - R^2 of the Q-Q plot of (N,) values; None where all are the same."""
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    drawn = weights > 0
    values, weights = values[drawn], weights[drawn]
    if values[-1] - values[0] <= 1e-9:
        return None
    quantiles = ndtri(np.cumsum(weights) - weights / 2)
    values, quantiles = values - weights @ values, quantiles - weights @ quantiles
    covariance = weights @ (values * quantiles)
    spread = (weights @ (values * values)) * (weights @ (quantiles * quantiles))
    return float(1 - covariance * covariance / spread)

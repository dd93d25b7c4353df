"""Test statistics against loops, scipy and closed forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from rllib_hpo.analysis.statistics import (
    bootstrap_improvement,
    final_and_best,
    interquartile_mean,
    normalise,
    optimality_gap,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    steps_to_reach,
    stratified_bootstrap,
)
from rllib_hpo.errors import UserError

numbers = st.floats(-1e3, 1e3, width=32)
scores_ = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=numbers)


def rng() -> np.random.Generator:
    """Make a generator with a fixed seed."""
    return np.random.default_rng(0)


@given(scores_)
def test_the_interquartile_mean_is_scipys_trimmed_mean(scores: np.ndarray) -> None:
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores.ravel(), 0.25), abs=1e-9)


@given(scores_, st.randoms())
def test_the_order_of_runs_does_not_matter(scores: np.ndarray, random: object) -> None:
    shuffled = np.random.default_rng(1).permutation(scores)
    assert interquartile_mean(shuffled) == pytest.approx(interquartile_mean(scores), abs=1e-9)
    profile = performance_profile(scores, [0.0, 1.0])
    np.testing.assert_array_equal(performance_profile(shuffled, [0.0, 1.0]), profile)


@given(scores_, st.floats(0.1, 10), numbers)
def test_the_interquartile_mean_moves_with_its_scores(scores: np.ndarray, scale: float, shift: float) -> None:
    expected = scale * interquartile_mean(scores) + shift
    assert interquartile_mean(scale * scores + shift) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_leading_dimensions_are_replications() -> None:
    scores = rng().normal(size=(7, 5, 3))
    for function in (interquartile_mean, optimality_gap, lambda x: performance_profile(x, [0.0, 0.5])):
        np.testing.assert_allclose(function(scores), np.stack([function(each) for each in scores]))
    others = rng().normal(size=(7, 4, 3))
    np.testing.assert_allclose(
        probability_of_improvement(scores, others),
        [probability_of_improvement(x, y) for x, y in zip(scores, others, strict=True)],
    )


@given(scores_)
def test_a_profile_is_a_share_of_runs(scores: np.ndarray) -> None:
    thresholds = np.linspace(-10, 10, 7)
    expected = [np.mean([[score > limit for score in run] for run in scores]) for limit in thresholds]
    np.testing.assert_allclose(performance_profile(scores, thresholds), expected)


@given(scores_, st.integers(1, 5))
def test_improvement_is_counted(ours: np.ndarray, runs: int) -> None:
    theirs = np.round(rng().normal(size=(runs, ours.shape[1])))
    ours = np.round(ours)  # so that some are equal
    per_task = [
        np.mean([[(x > y) + 0.5 * (x == y) for y in theirs[:, task]] for x in ours[:, task]])
        for task in range(ours.shape[1])
    ]
    assert probability_of_improvement(ours, theirs) == pytest.approx(np.mean(per_task))
    whitney = [
        stats.mannwhitneyu(ours[:, t], theirs[:, t]).statistic / (len(ours) * runs)
        for t in range(ours.shape[1])
    ]
    assert probability_of_improvement(ours, theirs) == pytest.approx(np.mean(whitney))
    assert probability_of_improvement(theirs, ours) == pytest.approx(1 - np.mean(per_task))


def test_the_gap_counts_what_falls_short() -> None:
    assert optimality_gap([[0.5, 2.0], [1.0, 0.0]]) == pytest.approx((0.5 + 0 + 0 + 1) / 4)


def test_a_bootstrap_draws_runs_within_their_tasks() -> None:
    """With one run per task there is nothing to resample; with distant tasks, their mean stays between them."""
    single = np.array([[1.0, 100.0, -3.0]])
    interval = stratified_bootstrap(single, lambda x: x.mean((-2, -1)), rng())
    assert (interval.low, interval.estimate, interval.high) == pytest.approx((98 / 3,) * 3)
    apart = np.array([[0.0, 1e6], [1.0, 1e6 + 1]])
    interval = stratified_bootstrap(apart, lambda x: x.mean((-2, -1)), rng())
    assert (interval.low, interval.high) == pytest.approx((5e5, 5e5 + 1))


def test_an_interval_covers_as_often_as_it_says() -> None:
    """Scores are normal; the percentile bootstrap of 20 runs is known to be slightly too narrow."""
    draws, hits = rng(), 0
    for _ in range(300):
        interval = stratified_bootstrap(
            draws.normal(size=(20, 2)), lambda x: x.mean((-2, -1)), draws, replications=500, confidence=0.9
        )
        hits += bool(interval.low <= 0 <= interval.high)
    assert 0.82 <= hits / 300 <= 0.94


def test_the_bootstraps_standard_error_is_the_closed_form() -> None:
    scores = rng().normal(size=(30, 1))
    interval = stratified_bootstrap(scores, lambda x: x.mean((-2, -1)), rng(), replications=20_000)
    expected = 1.96 * scores.std() / np.sqrt(30)
    assert (interval.high - interval.low) / 2 == pytest.approx(expected, rel=0.03)


def test_improvement_has_an_interval() -> None:
    better, worse = rng().normal(2, 1, (5, 8)), rng().normal(0, 1, (6, 8))
    interval = bootstrap_improvement(better, worse, rng())
    assert 0.5 < interval.low <= interval.estimate <= interval.high <= 1
    same = bootstrap_improvement(worse, worse, rng())
    assert same.estimate == 0.5
    assert same.low < 0.5 < same.high


def test_differences_are_paired_by_seed() -> None:
    """Seeds that vary more than the algorithms do not hide a difference that every seed shows."""
    seeds = 1_000 * rng().normal(size=(5, 1))
    theirs = seeds + rng().normal(size=(5, 3))
    ours = theirs + np.array([1.0, 0.0, -2.0]) + 0.01 * rng().normal(size=(5, 3))
    interval = paired_difference(ours, theirs, rng())
    np.testing.assert_allclose(interval.estimate, (ours - theirs).mean(0))
    assert interval.low[0] > 0.9
    assert interval.high[2] < -1.9
    with pytest.raises(ValueError, match="not of the same seeds and tasks"):
        paired_difference(ours[:4], theirs, rng())


def test_steps_to_reach() -> None:
    steps, returns = [0, 10, 20, 30], [[0, 1, 2, 3], [5, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0]]
    np.testing.assert_array_equal(steps_to_reach(steps, returns, 2), [20, 0, np.nan, 20])


def test_final_and_best() -> None:
    returns = np.array([[9.0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 7]])
    final, best = final_and_best(returns)
    np.testing.assert_allclose(final, [3, 1.4])
    np.testing.assert_array_equal(best, [9, 7])
    assert final_and_best([4.0, 6.0]) == (5, 6)
    with pytest.raises(ValueError, match="no evaluation"):
        final_and_best(np.empty((3, 0)))


def test_normalised_scores() -> None:
    np.testing.assert_allclose(normalise([[0, 30], [10, 10]], [0, 10], [10, 20]), [[0, 2], [1, 0]])
    with pytest.raises(UserError, match=r"task 1 cannot be normalised: .* both reach 10"):
        normalise([[0, 30]], [0, 10], [10, 10])


@pytest.mark.parametrize(
    "bad", [[[np.nan]], [[np.inf, 1]], [], [1.0, 2.0], np.empty((0, 3)), np.empty((3, 0))]
)
@pytest.mark.parametrize(
    "function",
    [
        interquartile_mean,
        lambda x: performance_profile(x, [0]),
        lambda x: stratified_bootstrap(x, np.mean, rng()),
    ],
)
def test_what_are_no_scores(bad: object, function: Callable[[object], object]) -> None:
    with pytest.raises(ValueError, match="score"):
        function(bad)


def test_other_tasks_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="3 and of 2 tasks"):
        probability_of_improvement(np.zeros((2, 3)), np.zeros((2, 2)))

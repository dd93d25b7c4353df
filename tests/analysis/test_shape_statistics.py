"""Test statistics of leapfrog displacements, on draws with known values."""

from __future__ import annotations

import numpy as np
import pytest

from rllib_hpo.analysis.shape_statistics import non_gaussianity, shape_numbers


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("dims", [1, 8])
def test_gaussians_are_gaussian_whatever_their_scale(dims: int) -> None:
    draws = rng().normal(size=(1000, dims))
    assert 0 <= non_gaussianity(draws) < 0.005
    assert non_gaussianity(draws * np.arange(1, dims + 1) - 7) == pytest.approx(non_gaussianity(draws))


def test_known_distances_from_a_gaussian() -> None:
    """In closed form 1 - R^2 is 1 - 3 / pi for uniform draws, and 1 - 2 / pi for two points."""
    assert non_gaussianity(np.linspace(-1, 1, 4001)[:, None]) == pytest.approx(1 - 3 / np.pi, abs=1e-3)
    assert non_gaussianity(np.repeat([[-1.0], [1.0]], 2000, axis=0)) == pytest.approx(1 - 2 / np.pi, abs=1e-3)


def test_dimensions_that_stand_still_do_not_count() -> None:
    draws = rng().normal(size=(500, 1))
    assert non_gaussianity(np.hstack([draws, np.ones((500, 1))])) == pytest.approx(non_gaussianity(draws))
    assert np.isnan(non_gaussianity(np.ones((10, 2))))


def test_weights_are_repetitions() -> None:
    draws = rng().normal(size=(6, 2))
    weights = np.array([0, 1, 2, 3, 1, 1]) / 8
    repeated = np.repeat(draws, [0, 1, 2, 3, 1, 1], axis=0)
    spread = repeated.var(0).sum()
    numbers = shape_numbers(draws, draws * 3, np.zeros(6), np.ones(6), rng())
    assert numbers.variance_ratio.estimate == pytest.approx(9)
    assert spread == pytest.approx(((weights @ draws**2) - (weights @ draws) ** 2).sum())


def test_intervals_hold_what_they_estimate() -> None:
    """Draws are shifted and scaled by two, with a higher Q for three in four."""
    draws = rng().normal(size=(1000, 3))
    rises = np.where(np.arange(1000) % 4 == 0, -1.0, 1.0)
    numbers = shape_numbers(draws, 2 * draws + 1, np.zeros(1000), rises, rng())
    assert numbers.share_rising.estimate == pytest.approx(0.75)
    assert 0.70 < numbers.share_rising.low < 0.75 < numbers.share_rising.high < 0.80
    assert numbers.variance_ratio.estimate == pytest.approx(4)
    for interval in (numbers.non_gaussianity_before, numbers.non_gaussianity_after):
        assert interval.low < interval.estimate < interval.high
    two_modes = draws + 4 * (np.arange(1000) % 2)[:, None]
    bimodal = shape_numbers(draws, two_modes, np.zeros(1000), rises, rng())
    assert bimodal.non_gaussianity_after.low > bimodal.non_gaussianity_before.high

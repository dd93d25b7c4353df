"""Test tempering, equation (17) of the first version of arXiv 2103.12020."""

from __future__ import annotations

import itertools
import math

import pytest

from rllib_hpo.samplers.tempering import tempering_scales
from tests.reference import leapfrog as reference

STEPS = [1, 2, 3, 10]


@pytest.mark.parametrize("std", [0.1, 0.5, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("num_steps", STEPS)
def test_equals_the_equation(std: float, num_steps: int) -> None:
    """The factor after step k is sqrt(beta_{k-1} / beta_k), with beta_0 = 1 / std^2."""
    assert tempering_scales(std, num_steps) == pytest.approx(
        reference.tempering_scales(1 / std**2, num_steps)
    )


@pytest.mark.parametrize("std", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("num_steps", STEPS)
def test_cools_to_one(std: float, num_steps: int) -> None:
    """For std >= 1: beta_0 <= beta_1 <= ... <= beta_K = 1, so that no factor exceeds 1."""
    betas = [1 / std**2]
    for scale in tempering_scales(std, num_steps):
        betas.append(betas[-1] / scale**2)
    assert all(later >= earlier * (1 - 1e-12) for earlier, later in itertools.pairwise(betas))
    assert betas[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("std", [0.1, 1.0, 1.5])
@pytest.mark.parametrize("num_steps", STEPS)
def test_product_of_the_factors(std: float, num_steps: int) -> None:
    """prod sqrt(beta_{k-1} / beta_k) = sqrt(beta_0) = 1 / std: at std 0.1 a tenfold amplification."""
    scales = tempering_scales(std, num_steps)
    assert len(scales) == num_steps
    assert math.prod(scales) == pytest.approx(1 / std)


def test_heats_below_one() -> None:
    """With std < 1 every factor exceeds 1, so settings reject it unless heating is allowed."""
    assert all(scale > 1 for scale in tempering_scales(0.5, 3))


def test_zero_steps() -> None:
    """No step, no factor."""
    assert tempering_scales(1.5, 0) == ()

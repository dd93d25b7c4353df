"""Test samples and normalising constants against closed forms, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rllib_hpo.analysis.annealed_smc import annealed_smc, reflect
from rllib_hpo.streams import torch_generator

NUM = 4_000


def log_normal(precision: Tensor, mean: Tensor) -> Tensor:
    """Return log of the integral of exp(-precision (a - mean)^2 / 2) over [-1, 1], elementwise."""
    std = precision.rsqrt()
    high, low = (torch.special.ndtr((wall - mean) / std) for wall in (1.0, -1.0))
    return (std * math.sqrt(2 * math.pi) * (high - low)).log()


def test_a_quadratic_is_a_truncated_gaussian() -> None:
    precision = torch.tensor([[1.0, 10.0, 100.0], [400.0, 4.0, 0.1]], dtype=torch.float64)
    mean = torch.tensor([[0.0, 0.5, -0.9], [0.3, 1.0, 0.0]], dtype=torch.float64)

    def density(action: Tensor) -> tuple[Tensor, Tensor]:
        off = action - mean[:, None]
        return -0.5 * (precision[:, None] * off.square()).sum(2), -precision[:, None] * off

    found = annealed_smc(density, 2, 3, torch_generator(0), num_particles=NUM, dtype=torch.float64)
    torch.testing.assert_close(found.log_z, log_normal(precision, mean).sum(1), rtol=0.02, atol=0.05)
    grid = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    weights = torch.softmax(-0.5 * precision[..., None] * (grid - mean[..., None]).square(), -1)
    expected = (weights * grid).sum(-1)
    spread = ((weights * grid.square()).sum(-1) - expected.square()).sqrt()
    assert float(((found.actions.mean(1) - expected).abs() / spread).max()) < 4 / math.sqrt(NUM / 10)
    torch.testing.assert_close(found.actions.std(1), spread, rtol=0.06, atol=0)
    assert found.actions.abs().max() <= 1
    assert (found.acceptance > 0.5).all()


def test_a_piecewise_linear_density_is_exponential_in_its_pieces() -> None:
    """It is that of a ReLU network: slope 8 up to 0.25, then -3."""

    def density(action: Tensor) -> tuple[Tensor, Tensor]:
        rises = action < 0.25
        value = torch.where(rises, 8 * (action - 0.25), -3 * (action - 0.25))
        slope = torch.where(rises, 8.0, -3.0).to(action)
        return value.sum(2), slope

    rising, falling = (1 - math.exp(-8 * 1.25)) / 8, (1 - math.exp(-3 * 0.75)) / 3
    found = annealed_smc(density, 1, 1, torch_generator(1), num_particles=NUM, dtype=torch.float64)
    assert float(found.log_z) == pytest.approx(math.log(rising + falling), abs=0.02)
    share = float((found.actions < 0.25).double().mean())
    assert share == pytest.approx(rising / (rising + falling), abs=0.03)


@pytest.mark.parametrize(("dim", "tolerance"), [(1, 0.02), (6, 0.1)])
def test_both_modes_are_found_in_proportion(dim: int, tolerance: float) -> None:
    """Two Gaussians of width 0.1, one with 0.3 of the mass."""
    centers, shares, width = (0.5, -0.5), torch.tensor([0.3, 0.7], dtype=torch.float64), 0.1

    def density(action: Tensor) -> tuple[Tensor, Tensor]:
        off = torch.stack([action - center for center in centers])
        parts = shares.log()[:, None, None] - 0.5 * (off / width).square().sum(3)
        weights = parts.softmax(0)
        return parts.logsumexp(0), -(weights[..., None] * off).sum(0) / width**2

    found = annealed_smc(density, 1, dim, torch_generator(2), num_particles=NUM, dtype=torch.float64)
    expected = dim * math.log(width * math.sqrt(2 * math.pi))
    assert float(found.log_z) == pytest.approx(expected, abs=tolerance)
    assert float((found.actions[0, :, 0] > 0).double().mean()) == pytest.approx(0.3, abs=0.05)


def test_a_wall_turns_the_momentum_once_for_each_reflection() -> None:
    position, momentum = reflect(
        torch.tensor([0.5, 1.25, -1.5, 3.5, -5.25]), torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0])
    )
    assert position.tolist() == [0.5, 0.75, -0.5, -0.5, -0.75]
    assert momentum.tolist() == [1.0, -1.0, 1.0, 1.0, 1.0]

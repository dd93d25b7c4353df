"""Test SVGD's direction, its scores and the sampling network's density against NumPy loops and autograd in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rllib_hpo.samplers.svgd import SamplingNetwork, Space, Width, direction, kernel_width, log_slope, score

Array = NDArray[np.float64]
FLOOR = 1e-3


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _width(squared: list[float], num_fixed: int, width: Width) -> float:
    lower_middle = sorted(squared)[(len(squared) - 1) // 2]
    scale = math.log(num_fixed) if width == "official" else 2 * math.log(num_fixed + 1)
    return max(lower_middle / scale, FLOOR)


def _direction(fixed: Array, scores: Array, moved: Array, width: Width) -> Array:
    """Return the direction of one state, computed by pairs of particles."""
    h = _width([float(((x - y) ** 2).sum()) for x in fixed for y in moved], len(fixed), width)
    result = np.zeros_like(moved)
    for j, y in enumerate(moved):
        for x, gradient in zip(fixed, scores, strict=True):
            kernel = math.exp(-float(((x - y) ** 2).sum()) / h)
            result[j] += (kernel * gradient - 2 * (x - y) / h * kernel) / len(fixed)
    return result


@pytest.mark.parametrize("width", ["official", "paper"])
@pytest.mark.parametrize(("num_fixed", "num_moved"), [(5, 3), (4, 4), (2, 1)])
def test_the_direction_is_the_papers_sum(width: Width, num_fixed: int, num_moved: int) -> None:
    """This holds also if all particles of a state coincide, or two of them."""
    fixed, scores = _normal(6, num_fixed, 3, seed=1), _normal(6, num_fixed, 3, seed=2)
    moved = _normal(6, num_moved, 3, seed=3)
    fixed[0] = moved[0] = fixed[0, 0]
    moved[1, 0] = fixed[1, 0]
    fixed[2] *= 1e-3
    moved[2] *= 1e-3
    expected = [
        _direction(x, s, y, width)
        for x, s, y in zip(fixed.numpy(), scores.numpy(), moved.numpy(), strict=True)
    ]
    found = direction(fixed, scores, moved, width, FLOOR)
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-10, atol=1e-12)


def test_particles_that_coincide_follow_the_mean_score_and_nothing_else() -> None:
    """The kernel is 1, its gradient 0, and its width the floor."""
    fixed, scores = torch.ones(2, 4, 3, dtype=torch.float64) / 3, _normal(2, 4, 3)
    found = direction(fixed, scores, fixed[:, :2], "official", FLOOR)
    torch.testing.assert_close(found, scores.mean(1, keepdim=True).expand(-1, 2, -1), rtol=0, atol=1e-15)
    assert kernel_width(torch.zeros(2, 4, 2), "official", FLOOR).tolist() == pytest.approx([FLOOR] * 2)


def test_the_median_of_an_even_number_is_the_lower_middle() -> None:
    squared = torch.tensor([[[4.0, 1.0], [2.0, 3.0]]])
    assert kernel_width(squared, "official", FLOOR).item() == pytest.approx(2 / math.log(2))
    assert kernel_width(squared, "paper", FLOOR).item() == pytest.approx(2 / (2 * math.log(3)))


@pytest.mark.parametrize("space", ["official", "pre_tanh", "action"])
def test_scores_are_gradients_of_the_densities_they_name(space: Space) -> None:
    """Q(a) is sin(3 a) . (1, 2), in the space of the particles."""

    def q(action: Tensor) -> Tensor:
        return (torch.sin(3 * action) * torch.tensor([1.0, 2.0], dtype=torch.float64)).sum(-1)

    pre_tanh = _normal(20, 2).requires_grad_()
    action = torch.tanh(pre_tanh)
    (gradient,) = torch.autograd.grad(q(action).sum(), action, retain_graph=True)
    density = {
        "action": q(action),
        "pre_tanh": q(action) + log_slope(pre_tanh).sum(-1),
        "official": q(action) + torch.log(1 - action.square() + 1e-6).sum(-1),
    }[space]
    variable = pre_tanh if space == "pre_tanh" else action
    (expected,) = torch.autograd.grad(density.sum(), variable)
    torch.testing.assert_close(score(action, gradient, space).detach(), expected, rtol=1e-9, atol=1e-9)


def test_the_official_score_keeps_particles_from_the_border() -> None:
    """At a = 0.99 with a gradient of 20 the density in action space rises towards the border, and the code's falls."""
    action, gradient = torch.tensor([0.99], dtype=torch.float64), torch.tensor([20.0], dtype=torch.float64)
    found = {space: score(action, gradient, space).item() for space in ("official", "pre_tanh", "action")}
    assert found["official"] == pytest.approx(20 - 1.98 / (0.0199 + 1e-6))
    assert found["pre_tanh"] == pytest.approx(0.0199 * 20 - 1.98)
    assert found["action"] == 20
    assert found["official"] < -79


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_volume_is_that_of_the_jacobian(num_layers: int) -> None:
    network = SamplingNetwork(4, 3, 32, num_layers, torch.Generator().manual_seed(0)).double()
    obs, latent = _normal(5, 4), _normal(5, 6, 3, seed=1)
    action, log_volume = network.log_volume(obs, latent)
    torch.testing.assert_close(action, torch.tanh(network(obs, latent)).detach(), rtol=0, atol=1e-12)
    for state in range(5):
        for k in range(6):
            jacobian = torch.autograd.functional.jacobian(
                lambda xi, state=state: torch.tanh(network(obs[[state]], xi[None, None])).flatten(),
                latent[state, k],
            )
            assert log_volume[state, k].item() == pytest.approx(
                torch.linalg.slogdet(jacobian).logabsdet.item()
            )


def test_a_singular_map_has_no_volume() -> None:
    network = SamplingNetwork(2, 2, 8, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.policy[-1].weight.zero_()
    _, log_volume = network.log_volume(torch.zeros(1, 2), torch.zeros(1, 3, 2))
    assert torch.equal(log_volume, torch.full((1, 3), -math.inf))

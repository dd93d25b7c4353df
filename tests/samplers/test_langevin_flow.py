"""Test coupling layers: unchanged halves, inverse, volume, and the forces they follow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rllib_hpo.samplers.langevin_flow import (
    ActionTarget,
    CouplingLayer,
    LangevinFlow,
    PreTanhTarget,
    half_mask,
    smooth_norm,
)
from tests.samplers.landscapes import Landscape, hill_and_bump

ROWS, OBS, STEP = 16, 3, 0.1


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(dim: int, number: int = 0, decided: bool = True) -> CouplingLayer:
    generator = torch.Generator().manual_seed(number)
    made = CouplingLayer(OBS, half_mask(dim, number), 16, STEP, True, generator).double()
    for network in (made.offset, made.scale, made.shift) if decided else ():
        network[2].weight.data.mul_(50)
    return made


def force_of(dim: int) -> Callable[[Tensor], Tensor]:
    """Return both parts of a smooth force."""
    value = hill_and_bump if dim == 2 else lambda action: -((action - 0.3) ** 2).sum(-1)
    target = PreTanhTarget(Landscape(value), 0.3 * normal(ROWS, dim, seed=7))
    return lambda position: sum(target.parts(position), torch.zeros(()))


@pytest.mark.parametrize("dim", [2, 3, 6])
def test_masks_are_halves_that_complement_each_other(dim: int) -> None:
    masks = [half_mask(dim, k) for k in range(3)]
    assert torch.equal(masks[0] + masks[1], torch.ones(dim))
    assert torch.equal(masks[0], masks[2])
    assert {int(mask.sum()) for mask in masks[:2]} == {dim // 2, (dim + 1) // 2}


def test_a_single_dimension_is_moved_by_every_layer() -> None:
    assert not half_mask(1, 0).any()
    assert not half_mask(1, 1).any()


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("number", [0, 1])
def test_a_layer_is_its_equation(dim: int, number: int) -> None:
    """Eq. (9) holds; the half that the networks see stays unchanged, and they see nothing of the other."""
    one, obs, x, force = layer(dim, number), normal(ROWS, OBS), normal(ROWS, dim, seed=1), force_of(dim)
    mask = half_mask(dim, number).double()
    seen = torch.cat([mask * x, obs], -1)
    inner = x + STEP**2 / 2 * force(x) + STEP * one.offset(seen).exp()
    expected = mask * x + (1 - mask) * (inner * one.scale(seen).exp() + one.shift(seen))
    found = one(x, obs, force)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[:, mask > 0], x[:, mask > 0])


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_layer_can_be_inverted(dim: int) -> None:
    """Iterating x = z - (eps^2 / 2) F(x), a contraction, finds x from y alone; networks see the unchanged half."""
    one, obs, x, force = layer(dim, 1), normal(ROWS, OBS), normal(ROWS, dim, seed=1), force_of(dim)
    y, mask = one(x, obs, force), half_mask(dim, 1).double()
    seen = torch.cat([mask * y, obs], -1)
    z = (y - one.shift(seen)) * (-one.scale(seen)).exp() - STEP * one.offset(seen).exp()
    found = mask * y + (1 - mask) * z
    for _ in range(100):
        found = mask * y + (1 - mask) * (z - STEP**2 / 2 * force(found))
    assert not torch.allclose(y, x, atol=0.1)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-9)


def test_a_layers_volume_is_that_of_its_equation() -> None:
    """log |det| = sum over moved dimensions of S + log |det(I + (eps^2 / 2) dF)|, by autograd in float64."""
    one, obs, x, force = layer(2, 0), normal(ROWS, OBS), normal(ROWS, 2, seed=1), force_of(2)
    jacobians = torch.autograd.functional.jacobian(lambda at: one(at, obs, force).sum(0), x).permute(1, 0, 2)
    slopes = torch.autograd.functional.jacobian(lambda at: force(at).sum(0), x).permute(1, 0, 2)
    scale = one.scale(torch.cat([half_mask(2, 0) * x, obs], -1))[:, 1]
    expected = scale + torch.log1p(STEP**2 / 2 * slopes[:, 1, 1])
    torch.testing.assert_close(torch.linalg.slogdet(jacobians).logabsdet, expected)


def test_exponents_are_bounded_unless_they_are_literal() -> None:
    """The bound is c tanh(x / c) with c = 5, close to x for small x; sigma is lower by another 5."""
    one, obs, x = layer(2), normal(ROWS, OBS), normal(ROWS, 2, seed=1)
    seen, mask = torch.cat([half_mask(2, 0) * x, obs], -1), half_mask(2, 0).double()
    one._literal = False
    offset, scale = 5 * (one.offset(seen) / 5).tanh() - 5, 5 * (one.scale(seen) / 5).tanh()
    expected = (x + STEP * offset.exp()) * scale.exp() + one.shift(seen)
    torch.testing.assert_close(one(x, obs, torch.zeros_like), mask * x + (1 - mask) * expected)
    for parameter in one.parameters():
        parameter.data.mul_(1e4)
    assert torch.isfinite(one(x, obs, torch.zeros_like)).all()


def test_at_first_a_flow_hardly_moves_an_action() -> None:
    flow = LangevinFlow(OBS, 3, 2, 16, STEP, generator=torch.Generator().manual_seed(0)).double()
    x, target = normal(ROWS, 3), PreTanhTarget(Landscape(lambda action: action.sum(-1)), normal(ROWS, 3))
    moved = flow(x, normal(ROWS, OBS), lambda position: sum(target.parts(position), torch.zeros(())))
    assert 0 < (moved - x).abs().max() < 0.1


def test_a_flow_may_be_blind_to_the_state() -> None:
    flow = LangevinFlow(0, 3, 2, 16, STEP).double()
    x = normal(ROWS, 3)
    one, other = (flow(x, normal(ROWS, OBS, seed=seed), torch.zeros_like) for seed in (0, 1))
    assert torch.equal(one, other)


def test_the_force_rises_along_q_and_towards_the_previous_action() -> None:
    """The parts equal central differences of Q(tanh x) and of -sqrt(|x - x_t|^2 + 1e-4)."""
    x, previous, step = normal(ROWS, 2), normal(ROWS, 2, seed=1), 1e-6
    parts = PreTanhTarget(Landscape(hill_and_bump), previous).parts(x)
    for dim in range(2):
        offset = step * torch.eye(2, dtype=torch.float64)[dim]
        rise, pull = (
            (function(x + offset) - function(x - offset)) / (2 * step)
            for function in (
                lambda at: hill_and_bump(torch.tanh(at)),
                lambda at: -((at - previous).square().sum(-1) + 1e-4).sqrt(),
            )
        )
        torch.testing.assert_close(parts.proximity[:, dim], pull, rtol=1e-5, atol=1e-6)
        share = parts.value[:, dim] / rise
        torch.testing.assert_close(share, 1 / (1 + smooth_norm(_slope(x))), rtol=1e-4, atol=1e-6)


def _slope(x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(hill_and_bump(torch.tanh(x)).sum(), x)[0]


def test_the_papers_force_descends_what_is_to_be_maximised() -> None:
    """It is -grad U of U = Q / beta - |a - a_t|, as printed."""
    beta, previous = torch.tensor(0.5, dtype=torch.float64), normal(ROWS, 2, seed=1)
    action = torch.tanh(normal(ROWS, 2)).requires_grad_()
    potential = hill_and_bump(action) / beta - smooth_norm(action - torch.tanh(previous))
    expected = -torch.autograd.grad(potential.sum(), action)[0]
    parts = ActionTarget(Landscape(hill_and_bump), previous, beta).parts(action)
    torch.testing.assert_close(sum(parts), expected)


def test_forces_are_bounded_where_q_is_steep() -> None:
    target = PreTanhTarget(Landscape(lambda action: 1e6 * action.sum(-1)), torch.zeros(ROWS, 2).double())
    parts = target.parts(normal(ROWS, 2))
    assert all(part.norm(dim=-1).max() <= 1 for part in parts)

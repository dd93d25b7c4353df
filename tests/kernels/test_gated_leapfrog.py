"""Test the hand-written backward pass of the chain against autograd through the plain chain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rllib_hpo.kernels.gated_leapfrog import LeapfrogOptions, gated_leapfrog
from rllib_hpo.samplers.forces import GatedForce, unit_gradient
from rllib_hpo.samplers.leapfrog import leapfrog

OBS, DIM, ROWS = 5, 3, 12
PER_DIMENSION = torch.tensor([0.1, 0.25, 0.5], dtype=torch.float64)
CHAINS = {
    "one step": LeapfrogOptions(0.25, 1, final_kick=False),
    "three steps": LeapfrogOptions(0.25, 3, final_kick=False),
    "final kick": LeapfrogOptions(0.25, 3),
    "one step, final kick": LeapfrogOptions(0.25, 1),
    "steps per dimension": LeapfrogOptions(PER_DIMENSION, 3),
    "mass": LeapfrogOptions(0.25, 3, inverse_mass=4.0),
    "tempered": LeapfrogOptions(0.25, 3, final_kick=False, momentum_scales=(0.9, 0.7, 0.5)),
    "tempered, final kick": LeapfrogOptions(0.25, 3, momentum_scales=(0.9, 0.7, 0.5)),
}


def _force(state_input: bool) -> GatedForce:
    generator = torch.Generator().manual_seed(1)
    force = GatedForce(OBS, DIM, 8, state_input=state_input, generator=generator).double()
    with torch.no_grad():
        for parameter in force.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return force


def _inputs() -> list[Tensor]:
    """Draw a_0, rho_0 and states, with gradients."""
    generator = torch.Generator().manual_seed(2)
    sizes = (DIM, DIM, OBS)
    return [
        torch.randn(ROWS, size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes
    ]


def _direction(action: Tensor) -> Tensor:
    """Return the direction of some Q, constant for the backward pass."""
    return unit_gradient(torch.sin(3 * action.detach()) + 0.1)


def _plain(
    force: GatedForce, steps: LeapfrogOptions, action: Tensor, momentum: Tensor, obs: Tensor
) -> tuple[Tensor, Tensor]:
    gated = force.condition(obs)
    return leapfrog(action, momentum, lambda a: gated(a, _direction(a))[0], **steps._asdict())


def _gradients(
    force: GatedForce, end: tuple[Tensor, Tensor], inputs: list[Tensor], weights: Tensor
) -> list[Any]:
    """Return gradients of a weighted sum of a_K and rho_K in the inputs and all parameters."""
    total = sum((w * x).sum() for w, x in zip(weights, end, strict=True))
    return list(torch.autograd.grad(total, [*inputs, *force.parameters()], allow_unused=True))


@pytest.mark.parametrize("state_input", [True, False])
@pytest.mark.parametrize("steps", CHAINS.values(), ids=CHAINS)
def test_equals_autograd(steps: LeapfrogOptions, state_input: bool) -> None:
    """Values agree, and gradients of a_0, rho_0, the states and every parameter."""
    force, inputs = _force(state_input), _inputs()
    ours = gated_leapfrog(inputs[0], inputs[1], inputs[2], _direction, force.layers(), steps, leapfrog)
    plain = _plain(force, steps, *inputs)
    torch.testing.assert_close(ours, plain, rtol=0.0, atol=1e-12)
    weights = torch.randn(2, ROWS, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found, expected = (_gradients(force, end, inputs, weights) for end in (ours, plain))
    assert sum(gradient is not None for gradient in expected) == 9 + (state_input * 2 - 1)
    for ours_, plain_ in zip(found, expected, strict=True):
        if plain_ is None:
            assert ours_ is None
        else:
            assert plain_.abs().max() > 1e-3
            torch.testing.assert_close(ours_, plain_, rtol=0.0, atol=1e-11)


@pytest.mark.parametrize("steps", [CHAINS["three steps"], CHAINS["final kick"]], ids=["open", "closed"])
def test_detached_rows_have_no_gradient(steps: LeapfrogOptions) -> None:
    """The other rows keep their gradients."""
    force, inputs, cut = _force(True), _inputs(), 5
    weights = torch.randn(2, ROWS, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    some = gated_leapfrog(inputs[0], inputs[1], inputs[2], _direction, force.layers(), steps, leapfrog, cut)
    torch.testing.assert_close(some, _plain(force, steps, *inputs), rtol=0.0, atol=1e-12)
    found = _gradients(force, some, inputs, weights)
    weights[:, :cut] = 0
    expected = _gradients(force, _plain(force, steps, *inputs), inputs, weights)
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0.0, atol=1e-11)


def test_one_end_alone_may_have_a_gradient() -> None:
    """It is the action's, as in SAC-HPO's loss, or the momentum's."""
    for which in (0, 1):
        force, inputs = _force(True), _inputs()
        ours = gated_leapfrog(
            inputs[0], inputs[1], inputs[2], _direction, force.layers(), CHAINS["final kick"], leapfrog
        )
        plain = _plain(force, CHAINS["final kick"], *inputs)
        found, expected = (
            torch.autograd.grad(end[which].sum(), [*inputs, *force.parameters()]) for end in (ours, plain)
        )
        for ours_, plain_ in zip(found, expected, strict=True):
            torch.testing.assert_close(ours_, plain_, rtol=0.0, atol=1e-11)

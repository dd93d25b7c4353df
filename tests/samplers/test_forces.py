"""Test forces: the unit gradient and the gated operator of equation (13) of arXiv 2103.12020."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rllib_hpo.samplers.forces import GatedForce, unit_gradient
from tests.readout import gated_force_layers
from tests.reference import networks as reference

OBS, DIM, ROWS = 5, 3, 40


def _inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw states, actions and unit gradients."""
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randn(ROWS, OBS, generator=generator, dtype=torch.float64)
    action, gradient = torch.randn(2, ROWS, DIM, generator=generator, dtype=torch.float64)
    return obs, action, reference.unit_gradient(gradient)


def _gated(state_input: bool = True, spread: float = 0.0) -> GatedForce:
    """Make a float64 gated force, with `spread` > 0 far from its initial values."""
    generator = torch.Generator().manual_seed(1)
    force = GatedForce(OBS, DIM, 8, state_input=state_input, generator=generator).double()
    if spread:
        with torch.no_grad():
            for parameter in force.parameters():
                parameter.copy_(
                    spread * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                )
    return force


def test_unit_gradient() -> None:
    """g = -grad / |grad| opposes the direction in which Q rises (kicks subtract it), and has length one."""
    gradient = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    g = unit_gradient(gradient)
    torch.testing.assert_close(g.norm(dim=-1), torch.ones(ROWS, dtype=torch.float64), rtol=0.0, atol=1e-7)
    assert ((g * gradient).sum(-1) < 0).all()
    torch.testing.assert_close(g, reference.unit_gradient(gradient), rtol=1e-12, atol=1e-12)


def test_unit_gradient_of_zero_is_zero() -> None:
    """1e-8 is added to the norm, not inside it: a dead critic exerts no force instead of NaN."""
    assert torch.equal(unit_gradient(torch.zeros(2, DIM)), torch.zeros(2, DIM))
    tiny = torch.tensor([[1e-8, 0.0, 0.0]], dtype=torch.float64)
    assert unit_gradient(tiny)[0, 0].item() == pytest.approx(-0.5)


@pytest.mark.parametrize("state_input", [True, False])
def test_gated_force_equals_the_equation(state_input: bool) -> None:
    """sigma_h * g + (1 - sigma_h) * T_h with two separate ELU networks over [s, a, g], the bracket of (13)."""
    force = _gated(state_input, spread=0.7)
    obs, action, g = _inputs()
    value, gate = force.condition(obs)(action, g)
    inputs = torch.cat(([obs] if state_input else []) + [action, g], -1)
    expected, sigma = reference.gated_force(*gated_force_layers(force), inputs, g)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gate, sigma, rtol=1e-11, atol=1e-12)
    assert gate.min() < 0.2
    assert gate.max() > 0.8


def test_gate_is_half_open_at_initialisation() -> None:
    """Last layers start small: sigma_h about 0.5 and T_h about 0, so the force starts as g / 2."""
    obs, action, g = _inputs()
    value, gate = _gated().condition(obs)(action, g)
    assert (gate - 0.5).abs().max() < 0.02
    assert (value - 0.5 * g).abs().max() < 0.03


def test_state_input_can_be_switched_off() -> None:
    """The state is optional in (13): without it T_h and sigma_h depend on action and gradient alone."""
    obs, action, g = _inputs()
    other = obs + 1
    without, with_state = _gated(False, spread=0.7), _gated(True, spread=0.7)
    assert torch.equal(without.condition(obs)(action, g)[0], without.condition(other)(action, g)[0])
    assert not torch.allclose(
        with_state.condition(obs)(action, g)[0], with_state.condition(other)(action, g)[0]
    )
    difference = sum(p.numel() for p in with_state.parameters()) - sum(
        p.numel() for p in without.parameters()
    )
    assert difference == 2 * 8 * OBS


def test_gradients() -> None:
    """Derivatives of the gated force in action, gradient and every parameter, against finite differences."""
    force = _gated(spread=0.7)
    obs, action, g = (x[:4] for x in _inputs())
    names, values = zip(*force.named_parameters(), strict=True)

    def call(action: Tensor, g: Tensor, *parameters: Tensor) -> Tensor:
        named = {f"force.{name}": x for name, x in zip(names, parameters, strict=True)}
        return torch.func.functional_call(_Conditioned(force), named, (obs, action, g))

    assert torch.autograd.gradcheck(call, (action.requires_grad_(), g.requires_grad_(), *values))


class _Conditioned(torch.nn.Module):
    """Wrap `GatedForce.condition` as a forward method, for `functional_call`."""

    def __init__(self, force: GatedForce) -> None:
        super().__init__()
        self.force = force

    def forward(self, obs: Tensor, action: Tensor, g: Tensor) -> Tensor:
        return self.force.condition(obs)(action, g)[0]

"""Test chains near a previous policy: forces, densities, volume, and an objective that exact dynamics preserves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rllib_hpo.networks.critics import Critics
from rllib_hpo.samplers.leapfrog import leapfrog
from rllib_hpo.samplers.previous import (
    ActionTarget,
    Gaussian,
    ScalarGate,
    WhitenedTarget,
    inverse_softplus,
    joint_distance,
    whole,
)
from tests.reference.densities import normal_log_prob, tanh_log_det
from tests.samplers.landscapes import Landscape, hill_and_bump

ROWS, DIM, OBS = 64, 2, 3
BETA = torch.tensor(0.4, dtype=torch.float64)
FORMS = {"whitened": WhitenedTarget, "paper": ActionTarget}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(seed: int, rows: int = ROWS) -> Gaussian:
    return Gaussian(0.3 * normal(rows, DIM, seed=seed), -0.7 + 0.2 * normal(rows, DIM, seed=seed + 50))


def log_target(form: type, previous: Gaussian, position: Tensor) -> Tensor:
    """Return log p of eq. (12) by definition, (B,), in the coordinates of `form`, without constants."""
    std = previous.log_std.exp()
    if form is WhitenedTarget:
        action = torch.tanh(previous.mean + std * position)
        return hill_and_bump(action) / BETA + normal_log_prob(position)
    pre_tanh = torch.atanh(position)
    log_prior = normal_log_prob(pre_tanh, previous.mean, std) - tanh_log_det(pre_tanh)
    return hill_and_bump(position) / BETA + log_prior


@each_form
def test_the_force_is_the_gradient_of_the_target(form: type) -> None:
    """The force equals central differences of -log p."""
    previous = gaussian(seed=1)
    target = form(Landscape(hill_and_bump), previous)
    position = target.position(gaussian(seed=2).draw(normal(ROWS, DIM, seed=3)))
    found, step = whole(target.parts(position, BETA)), 1e-6
    for dim in range(DIM):
        offset = torch.zeros(DIM, dtype=torch.float64)
        offset[dim] = step
        rise = log_target(form, previous, position + offset) - log_target(form, previous, position - offset)
        torch.testing.assert_close(found[:, dim], -rise / (2 * step), rtol=1e-6, atol=1e-6)


@each_form
def test_autograd_knows_all_of_the_force_that_is_smooth(form: type) -> None:
    """For a piecewise linear Q, its derivative by autograd equals central differences."""
    slope = torch.tensor([1.5, -0.8], dtype=torch.float64)
    target = form(Landscape(lambda action: action @ slope), gaussian(seed=1))
    position = target.position(gaussian(seed=2).draw(normal(ROWS, DIM, seed=3))).requires_grad_()
    for dim in range(DIM):
        (found,) = torch.autograd.grad(whole(target.parts(position, BETA))[:, dim].sum(), position)
        with torch.no_grad():
            offset = 1e-6 * torch.eye(DIM, dtype=torch.float64)[dim]
            force = [whole(target.parts(position + sign * offset, BETA))[:, dim] for sign in (1, -1)]
        torch.testing.assert_close(found[:, dim], (force[0] - force[1]) / 2e-6, rtol=1e-5, atol=1e-5)


def test_parts_of_the_force_are_what_they_are_called() -> None:
    previous = gaussian(seed=1)
    target = WhitenedTarget(Landscape(lambda action: 0 * action.sum(-1)), previous)
    position = normal(ROWS, DIM)
    value, prior = target.parts(position, BETA)
    assert not value.any()
    assert torch.equal(prior, position)


@each_form
def test_densities_are_those_of_the_policies(form: type) -> None:
    """Their difference does not depend on the coordinates: the tanh's Jacobian is on both sides, or on neither."""
    previous, base, noise = gaussian(seed=1), gaussian(seed=2), normal(ROWS, DIM, seed=3)
    target, pre_tanh = form(Landscape(hill_and_bump), previous), base.draw(noise)
    position = target.position(pre_tanh)
    jacobian = tanh_log_det(pre_tanh) if form is ActionTarget else 0
    expected = normal_log_prob(pre_tanh, previous.mean, previous.log_std.exp()) - jacobian
    torch.testing.assert_close(target.log_prior(position), expected)
    expected = normal_log_prob(pre_tanh, base.mean, base.log_std.exp()) - jacobian
    torch.testing.assert_close(target.log_base(base, noise), expected)
    torch.testing.assert_close(target.action(position), torch.tanh(pre_tanh))


def test_the_distance_without_steps_is_the_divergence() -> None:
    """E[D] at K = 0 is KL(pi_theta | pi_t) of two Gaussians, in closed form; the momentum cancels."""
    num = 200_000
    base, previous = (Gaussian(*(row[:1] for row in gaussian(seed))) for seed in (1, 2))
    target, noise = WhitenedTarget(Landscape(hill_and_bump), previous), normal(num, DIM)
    momentum = normal(num, DIM, seed=9)
    position = target.position(base.draw(noise))
    log_base = target.log_base(base, noise)
    distance = joint_distance(log_base, target.log_prior(position), momentum, momentum).mean()
    one, other = (torch.distributions.Normal(g.mean, g.log_std.exp()) for g in (base, previous))
    expected = torch.distributions.kl_divergence(one, other).sum()
    assert distance.item() == pytest.approx(expected.item(), abs=0.01)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("gated", [False, True])
def test_the_map_preserves_volume(form: type, gated: bool) -> None:
    """log |det d(x_K, rho_K) / d(x_0, rho_0)| = 0, with a gate and separate step sizes, by autograd in float64."""
    generator = torch.Generator().manual_seed(0)
    critics = Critics(OBS, DIM, 16, 2, generator).double()
    gate = ScalarGate(OBS, DIM, 2, 16, generator).double() if gated else None
    for weight in [] if gate is None else gate.parameters():
        weight.data.mul_(5)  # so that it is decided somewhere
    obs, one = normal(1, OBS), gaussian(seed=1, rows=1)
    target = form(critics.condition(obs), one)

    def force(position: Tensor) -> Tensor:
        found = whole(target.parts(position, BETA))
        return found if gate is None else gate(obs, *target.gate_input(position, found), found)

    def flow(state: Tensor) -> Tensor:
        position, momentum = state.view(2, 1, DIM)
        step_size = torch.tensor([0.1, 0.3], dtype=torch.float64)
        moved = leapfrog(position, momentum, force, step_size=step_size, num_steps=5)
        return torch.cat(moved).flatten()

    for seed in range(5):
        start = target.position(one.draw(0.5 * normal(1, DIM, seed=seed)))
        state = torch.cat([start, 0.5 * normal(1, DIM, seed=100 + seed)]).flatten()
        jacobian = torch.autograd.functional.jacobian(flow, state)
        assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(0, abs=1e-9)
        assert not torch.allclose(flow(state), state)


def test_exact_dynamics_leaves_the_objective_alone() -> None:
    """K = 20 small steps raise E Q, and change E[Q - beta D] only by the integrator's error."""
    num = 4_000
    previous = Gaussian(torch.zeros(num, DIM).double(), torch.full((num, DIM), -0.5).double())
    target, noise, momentum = (
        WhitenedTarget(Landscape(hill_and_bump), previous),
        normal(num, DIM),
        normal(num, DIM, seed=1),
    )
    start, log_base = target.position(previous.draw(noise)), target.log_base(previous, noise)
    beta = torch.tensor(0.05, dtype=torch.float64)

    def after(num_steps: int, step_size: float) -> tuple[float, float]:
        position, last = leapfrog(
            start,
            momentum,
            lambda position: whole(target.parts(position, beta)),
            step_size=step_size,
            num_steps=num_steps,
        )
        value = hill_and_bump(target.action(position))
        distance = joint_distance(log_base, target.log_prior(position), momentum, last)
        return value.mean().item(), (value - beta * distance).mean().item()

    (value, objective), (raised, same) = after(0, 0.02), after(20, 0.02)
    assert raised > value + 0.25
    assert same == pytest.approx(objective, abs=2e-3)
    assert abs(after(20, 0.3)[1] - objective) > 10 * abs(same - objective), "large steps are not exact"


def test_a_gate_is_between_the_force_and_its_own() -> None:
    """sigma_h is one number for all dimensions; initially it is about a half, and T_h about 0."""
    gate = ScalarGate(OBS, DIM, 2, 16, torch.Generator().manual_seed(0)).double()
    obs, position, force = normal(ROWS, OBS), normal(ROWS, DIM, seed=1), normal(ROWS, DIM, seed=2)
    inputs = torch.cat([obs, position, force], -1)
    share = torch.sigmoid(gate.gate(inputs))
    assert share.shape == (ROWS, 1)
    expected = share * force + (1 - share) * torch.tanh(gate.transform(inputs))
    torch.testing.assert_close(gate(obs, position, force, force), expected)
    torch.testing.assert_close(gate(obs, position, force, force), 0.5 * force, rtol=0.05, atol=0.05)


def test_softplus_is_inverted() -> None:
    steps = torch.tensor([1e-4, 0.1, 3.0], dtype=torch.float64)
    torch.testing.assert_close(torch.nn.functional.softplus(inverse_softplus(steps)), steps)

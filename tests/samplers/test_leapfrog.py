"""Test the integrator: equations (9) and (13) of arXiv 2103.12020, with any force that depends on the action alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rllib_hpo.samplers.leapfrog import LeapfrogState, leapfrog, leapfrog_step
from tests.reference import leapfrog as reference

BATCH, DIM = 5, 3


def _phase_point(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    action, momentum = torch.randn(2, BATCH, DIM, generator=generator, dtype=torch.float64)
    return action, momentum


def _nonlinear_force(seed: int = 1) -> Callable[[Tensor], Tensor]:
    """Return a force without potential: reversibility and unit Jacobian must not need one."""
    matrix = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda action: torch.sin(action @ matrix) * (1 + action.pow(2).sum(-1, keepdim=True))


def _potential(action: Tensor) -> Tensor:
    """Return a smooth, non-quadratic U(a), shape (B,)."""
    return (action.pow(2) / 2 + action.pow(4) / 4).sum(-1) + torch.sin(action.sum(-1))


def _potential_gradient(action: Tensor) -> Tensor:
    return action + action.pow(3) + torch.cos(action.sum(-1, keepdim=True))


class _Counting:
    """Count a force's evaluations."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, action: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(action)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("variant", ["scalar", "per-dimension", "mass", "tempered"])
def test_equals_the_equations(num_steps: int, variant: str) -> None:
    """K merged steps equal K literal repetitions of (9), which evaluate the force 2 K times."""
    action, momentum = _phase_point()
    force = _nonlinear_force()
    step_size: float | Tensor = 0.1
    options: dict[str, object] = {}
    if variant == "per-dimension":
        step_size = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64)
    if variant == "mass":
        options = {"inverse_mass": 6.25}
    if variant == "tempered":
        options = {"momentum_scales": [0.9 - 0.1 * k for k in range(num_steps)]}
    ours = leapfrog(action, momentum, force, step_size=step_size, num_steps=num_steps, **options)
    literal = reference.leapfrog(action, momentum, force, step_size, num_steps, **options)
    torch.testing.assert_close(ours, literal, rtol=1e-8, atol=1e-12)  # chaotic: rounding grows


def test_is_reversible() -> None:
    """Negating the momentum and running the same steps returns to the start, for any force F(s, a)."""
    action, momentum = _phase_point()
    force = _nonlinear_force()
    there = leapfrog(action, momentum, force, step_size=0.1, num_steps=6)
    back = leapfrog(there[0], -there[1], force, step_size=0.1, num_steps=6)
    assert (there[0] - action).abs().max() > 0.1
    torch.testing.assert_close(back, (action, -momentum), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inverse_mass", [1.0, 4.0])
def test_has_unit_jacobian(inverse_mass: float) -> None:
    """|det d(a_K, rho_K) / d(a_0, rho_0)| = 1, the premise of (10); kicks and drifts are shears."""
    action, momentum = (x[0] for x in _phase_point())

    def chain(phase: Tensor) -> Tensor:
        start = phase[None, :DIM], phase[None, DIM:]
        end = leapfrog(*start, _nonlinear_force(), step_size=0.2, num_steps=4, inverse_mass=inverse_mass)
        return torch.cat(end, -1)[0]

    jacobian = torch.autograd.functional.jacobian(chain, torch.cat([action, momentum]))
    assert (jacobian - torch.eye(2 * DIM)).abs().max() > 0.1
    assert torch.linalg.det(jacobian).item() == pytest.approx(1.0, abs=1e-10)


def test_jacobian_of_a_tempered_chain_is_constant() -> None:
    """Scaling rho by s_k after step k multiplies the Jacobian by prod s_k^A: a constant, whatever the force."""
    scales = [0.9, 0.7, 0.8]

    def chain(phase: Tensor) -> Tensor:
        start = phase[None, :DIM], phase[None, DIM:]
        end = leapfrog(*start, _nonlinear_force(), step_size=0.2, num_steps=3, momentum_scales=scales)
        return torch.cat(end, -1)[0]

    for seed in range(3):
        action, momentum = (x[0] for x in _phase_point(seed))
        jacobian = torch.autograd.functional.jacobian(chain, torch.cat([action, momentum]))
        assert torch.linalg.det(jacobian).item() == pytest.approx((0.9 * 0.7 * 0.8) ** DIM, rel=1e-9)


def test_energy_drift_is_second_order_in_the_step_size() -> None:
    """U(a) + |rho|^2 / 2 changes by O(eps^2) over a fixed time: halving eps quarters the change."""
    action, momentum = (x / 2 for x in _phase_point())

    def drift(num_steps: int) -> Tensor:
        end, end_momentum = leapfrog(
            action, momentum, _potential_gradient, step_size=0.8 / num_steps, num_steps=num_steps
        )
        before = _potential(action) + momentum.pow(2).sum(-1) / 2
        return _potential(end) + end_momentum.pow(2).sum(-1) / 2 - before

    coarse, fine, finer = drift(16), drift(32), drift(64)
    assert coarse.abs().min() > 1e-7
    torch.testing.assert_close(coarse / fine, torch.full_like(fine, 4.0), rtol=0.05, atol=0.0)
    torch.testing.assert_close(fine / finer, torch.full_like(fine, 4.0), rtol=0.02, atol=0.0)


def test_energy_of_a_mass_matrix() -> None:
    """With inverse mass m the conserved energy is U(a) + m |rho|^2 / 2, not U(a) + |rho|^2 / 2."""
    action, momentum = (x / 2 for x in _phase_point())
    mass = 3.0
    end, end_momentum = leapfrog(
        action, momentum, _potential_gradient, step_size=0.002, num_steps=200, inverse_mass=mass
    )
    before = _potential(action) + mass * momentum.pow(2).sum(-1) / 2
    after = _potential(end) + mass * end_momentum.pow(2).sum(-1) / 2
    torch.testing.assert_close(after, before, rtol=0.0, atol=1e-4)
    kinetic_change = (end_momentum.pow(2).sum(-1) - momentum.pow(2).sum(-1)).abs() / 2
    assert ((mass - 1) * kinetic_change > 1e-2).all()


@pytest.mark.parametrize(
    ("num_steps", "final_kick", "evaluations"),
    [(0, True, 0), (0, False, 0), (1, True, 2), (1, False, 1), (3, True, 4), (3, False, 3)],
)
@pytest.mark.parametrize("scales", [False, True])
def test_number_of_force_evaluations(
    num_steps: int, final_kick: bool, evaluations: int, scales: bool
) -> None:
    """The force after a step is the force before the next: K + 1 evaluations, K where rho_K is not used."""
    force = _Counting()
    leapfrog(
        *_phase_point(),
        force,
        step_size=0.1,
        num_steps=num_steps,
        final_kick=final_kick,
        momentum_scales=[0.9] * num_steps if scales else None,
    )
    assert force.calls == evaluations


@pytest.mark.parametrize("scales", [None, [0.9, 0.8, 0.7]])
def test_final_kick_changes_the_momentum_only(scales: list[float] | None) -> None:
    """Skipping the last half kick leaves a_K bitwise unchanged."""
    options = {"step_size": 0.1, "num_steps": 3, "momentum_scales": scales}
    whole = leapfrog(*_phase_point(), _nonlinear_force(), **options)
    cut = leapfrog(*_phase_point(), _nonlinear_force(), **options, final_kick=False)
    assert torch.equal(whole[0], cut[0])
    assert not torch.allclose(whole[1], cut[1])


def test_zero_steps_return_the_start() -> None:
    """K = 0 is the identity, bitwise: the chain of SAC-HPO is then SAC's policy."""
    action, momentum = _phase_point()
    end = leapfrog(action, momentum, _nonlinear_force(), step_size=0.1, num_steps=0)
    assert torch.equal(end[0], action)
    assert torch.equal(end[1], momentum)


def test_is_pure() -> None:
    """The inputs are not modified, and a second call gives the same result."""
    action, momentum = _phase_point()
    step_size = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64)
    copies = [x.clone() for x in (action, momentum, step_size)]
    first = leapfrog(action, momentum, _nonlinear_force(), step_size=step_size, num_steps=3)
    second = leapfrog(action, momentum, _nonlinear_force(), step_size=step_size, num_steps=3)
    assert all(torch.equal(x, copy) for x, copy in zip((action, momentum, step_size), copies, strict=True))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_single_steps_compose() -> None:
    """`leapfrog` is `leapfrog_step` repeated, with the force at one step's end passed to the next step."""
    action, momentum = _phase_point()
    force = _Counting()
    state = LeapfrogState(action, momentum, force(action))
    for _ in range(3):
        state = leapfrog_step(state, force, step_size=0.1)
    assert force.calls == 4
    whole = leapfrog(action, momentum, torch.tanh, step_size=0.1, num_steps=3)
    torch.testing.assert_close((state.action, state.momentum), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state.force, torch.tanh(state.action))


def test_a_cut_step_ends_the_chain() -> None:
    """After a step without its final kick the momentum is rho_{k+1/2}, so a further step is rejected."""
    action, momentum = _phase_point()
    cut = leapfrog_step(LeapfrogState(action, momentum, action), torch.tanh, step_size=0.1, final_kick=False)
    assert cut.force is None
    with pytest.raises(ValueError, match="final kick"):
        leapfrog_step(cut, torch.tanh, step_size=0.1)


def test_gradients_reach_the_step_size() -> None:
    """A learned step size gets its derivative through kicks and drifts (checked against finite differences)."""
    action, momentum = _phase_point()
    step_size = torch.tensor([0.1, 0.2, 0.15], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda eps: leapfrog(action, momentum, _nonlinear_force(), step_size=eps, num_steps=3), (step_size,)
    )


# One step on U = a^T P a / 2 with full momentum refresh is linear: a' = M_aa a + M_ar rho, so the law of a' and the
# law that the chain keeps are closed-form. No sampling here.


def _position_maps(
    precision: Tensor, step_size: float, num_steps: int, inverse_mass: float
) -> tuple[Tensor, Tensor]:
    """Return M_aa and M_ar of `leapfrog` under F = grad U, from basis vectors, checked against the shears."""
    size = precision.shape[0]
    identity, zeros = torch.eye(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    force: Callable[[Tensor], Tensor] = lambda action: action @ precision  # noqa: E731
    starts = torch.cat([identity, zeros]), torch.cat([zeros, identity])
    end, _ = leapfrog(*starts, force, step_size=step_size, num_steps=num_steps, inverse_mass=inverse_mass)
    matrix = reference.linear_map(precision, step_size, num_steps, inverse_mass)
    torch.testing.assert_close(end.T, matrix[:size], rtol=1e-11, atol=1e-12)
    return end[:size].T, end[size:].T


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_conventional_chain_keeps_a_gaussian_posterior(num_steps: int) -> None:
    """For std = 1 and F = grad U, equation (9), one chain preserves N(0, P^-1) up to O(eps^2).

    Hence the Hamiltonian policy refines its base policy towards exp(-U) and, once there, stays.
    """
    precision = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    covariance = torch.linalg.inv(precision)

    def change(step_size: float) -> float:
        m_aa, m_ar = _position_maps(precision, step_size, num_steps, 1.0)
        return float((m_aa @ covariance @ m_aa.T + m_ar @ m_ar.T - covariance).abs().max())

    assert change(0.1) < 0.1**2
    assert change(0.05) < change(0.1) / 3.9


@pytest.mark.parametrize(
    ("std", "consistent"), [(1.0, False), (0.5, False), (2.0, False), (0.5, True), (2.0, True)]
)
def test_stationary_variance(std: float, consistent: bool) -> None:
    """Repeated chains on U = p a^2 / 2, each with a new rho ~ N(0, std^2), converge to this variance.

    Unit mass: std^2 / (p (1 - p eps^2 / 4)), so temperature std^2 instead of 1 (and 1 for std = 1, to O(eps^2)).
    Consistent mass beta_0 = 1 / std^2: 1 / (p (1 - p (eps / std)^2 / 4)), the posterior at every std.
    """
    p, step_size = 1.5, 0.2
    precision = torch.tensor([[p]], dtype=torch.float64)
    m_aa, m_ar = _position_maps(precision, step_size, 3, 1 / std**2 if consistent else 1.0)
    stationary = float(m_ar**2 * std**2 / (1 - m_aa**2))
    temperature, scaled_step = (1.0, step_size / std) if consistent else (std**2, step_size)
    exact = temperature / (p * (1 - p * scaled_step**2 / 4))
    assert stationary == pytest.approx(exact, rel=1e-9)

"""Test radial flows between Gaussian and tanh: Rezende & Mohamed 2015 (arXiv 1505.05770), eq. (14) and appendix A.2."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from rllib_hpo.algorithms.sac import SoftActorCriticModel
from rllib_hpo.samplers.base import zero_noise
from rllib_hpo.samplers.gaussian import tanh_gaussian, tanh_log_det
from rllib_hpo.samplers.radial_flow import RadialFlow
from rllib_hpo.settings import SACNFSettings
from tests.reference import densities as reference


def _flow(dim: int = 2, num_flows: int = 3, seed: int = 0, spread: float = 1.0) -> RadialFlow:
    """Make a float64 flow whose parameters are far from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    flow = RadialFlow(dim, num_flows, generator=generator).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return flow


def _points(rows: int, dim: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_equals_the_equations(dim: int) -> None:
    """Every layer is z + beta h (z - z_0), with the determinant of appendix A.2."""
    flow, z = _flow(dim), _points(50, dim)
    expected = reference.radial_flow(z, flow.center, flow.raw_a, flow.raw_b)
    torch.testing.assert_close(flow(z), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_log_det_matches_autograd(dim: int) -> None:
    """log |det dz' / dz| of the whole stack from the full Jacobian."""
    flow, z = _flow(dim), _points(10, dim)
    for row, log_det in zip(z, flow(z)[1], strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: flow(x[None])[0][0], row)
        assert log_det.item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-9)


def _parameters(size: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(-6.0, 6.0), min_size=size, max_size=size)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data(), dim=st.integers(1, 4), num_flows=st.integers(1, 4))
def test_inverts_for_any_parameters(data: st.DataObject, dim: int, num_flows: int) -> None:
    """a = softplus(.) > 0 and beta = -a + softplus(.) > -a make every layer a bijection, for any parameters."""
    flow = RadialFlow(dim, num_flows).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            values = data.draw(_parameters(parameter.numel()))
            parameter.copy_(torch.tensor(values, dtype=torch.float64).reshape(parameter.shape))
    z = torch.tensor(data.draw(_parameters(3 * dim)), dtype=torch.float64).reshape(3, dim)
    a, beta = flow._a_and_beta()
    assert (a > 0).all()
    assert (beta > -a).all()
    forward, log_det = flow(z)
    assert torch.isfinite(log_det).all()
    torch.testing.assert_close(flow.inverse(forward), z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(flow(flow.inverse(z))[0], z, rtol=1e-6, atol=1e-6)


def test_near_identity_at_initialisation() -> None:
    """A new flow hardly changes z, so that SAC-NF starts as SAC; its centres differ, so that layers diverge."""
    flow = RadialFlow(3, 4, generator=torch.Generator().manual_seed(0)).double()
    z = _points(200, 3)
    moved, log_det = flow(z)
    assert (moved - z).abs().max() < 0.05
    assert log_det.abs().max() < 0.05
    assert len(torch.unique(flow.center, dim=0)) == 4
    assert 0 < flow.center.abs().max() < 0.5


def test_layers_part_under_training() -> None:
    """Parameters of different layers get different gradients from the first step on."""
    flow = RadialFlow(2, 2, generator=torch.Generator().manual_seed(0)).double()
    moved, log_det = flow(_points(64, 2))
    (moved.pow(2).sum() - log_det.sum()).backward()
    for parameter in (flow.raw_a, flow.raw_b):
        assert parameter.grad is not None
        first, second = parameter.grad
        assert abs(first - second) > 1e-2 * abs(first)


def test_at_a_centre() -> None:
    """At z = z_0 the map and its derivatives are finite (r = 0 there), and z_0 is a fixed point of its layer."""
    flow = _flow(3, 1)
    z = flow.center.detach().clone().requires_grad_()
    moved, log_det = flow(z)
    torch.testing.assert_close(moved, z)
    (moved.sum() + log_det.sum()).backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters() if p.grad is not None)


def _flow_density(flow: RadialFlow, action: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return pi(action) of the SAC-NF policy: log N(z_0) - sum log |det| - tanh correction, z_0 by inversion."""
    u = torch.atanh(action)
    z_0 = flow.inverse(u)
    reached, log_det = flow(z_0)
    torch.testing.assert_close(reached, u, rtol=1e-8, atol=1e-8)
    return (reference.normal_log_prob(z_0, mean, std) - log_det - tanh_log_det(u)).exp().detach()


@pytest.mark.parametrize("seed", range(3))
def test_density_integrates_to_one_in_one_dimension(seed: int) -> None:
    """int_{-1}^{1} pi(a) da = 1 through flow and tanh."""
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(2000))
    mean, std = torch.tensor([0.1], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    density = _flow_density(_flow(1, 3, seed, spread=0.5), nodes[:, None], mean, std)
    assert float(weights @ density) == pytest.approx(1.0, abs=1e-4)


def test_density_integrates_to_one_in_two_dimensions() -> None:
    """The same over (-1, 1)^2, where the factor (1 + beta h)^(d - 1) counts."""
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(300))
    grid, area = torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten()
    mean, std = torch.tensor([0.1, -0.2], dtype=torch.float64), torch.tensor([0.3, 0.25], dtype=torch.float64)
    density = _flow_density(_flow(2, 3, spread=0.5), grid, mean, std)
    assert float(area @ density) == pytest.approx(1.0, abs=1e-3)


def test_gradients() -> None:
    """Derivatives of z' and log-det in the input and every parameter, against finite differences."""
    flow, z = _flow(2, 2), _points(4, 2)
    names, values = zip(*flow.named_parameters(), strict=True)

    def call(z: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(flow, dict(zip(names, parameters, strict=True)), (z,))

    assert torch.autograd.gradcheck(call, (z.requires_grad_(), *values))


def test_detached_rows() -> None:
    """The first rows have the same values, and no gradient comes from them."""
    flow, z = _flow(3, 4), _points(10, 3).requires_grad_()
    whole, cut = flow(z), flow(z, 4)
    torch.testing.assert_close(whole, cut, rtol=0.0, atol=0.0)
    leaves = [z, *flow.parameters()]
    expected = torch.autograd.grad(whole[0][4:].square().sum() - whole[1][4:].sum(), leaves)
    found = torch.autograd.grad(cut[0].square().sum() - cut[1].sum(), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_no_flow_limit_is_the_gaussian() -> None:
    """softplus(b) = a, hence beta = 0, is the identity: the density then is the tanh-Gaussian's."""
    flow = _flow(2, 3)
    with torch.no_grad():
        flow.raw_b.copy_(flow.raw_a)
    z = _points(20, 2)
    moved, log_det = flow(z)
    torch.testing.assert_close(moved, z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), rtol=0.0, atol=1e-12)
    zeros = torch.zeros_like(z)
    assert torch.equal(tanh_gaussian(zeros, zeros, z)[0], torch.tanh(z))


def test_evaluation_is_the_mean_through_the_flow() -> None:
    """Noise-free, SAC-NF acts by tanh(flow(mu)), which is not tanh(mu) once the flow has learned."""
    model = SoftActorCriticModel(5, 2, SACNFSettings(hidden_units=16), seed=0).double()
    model.sampler.flow = _flow(2, 4)
    obs = _points(8, 5)
    zeros = {name: value.double() for name, value in zero_noise(model.sampler, 8).items()}
    mean, _ = model.sampler.policy(obs)
    action = model.sample(obs, zeros, "train").action
    torch.testing.assert_close(action, torch.tanh(model.sampler.flow(mean)[0]))
    assert (action - torch.tanh(mean)).abs().max() > 0.01

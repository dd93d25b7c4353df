"""Test the tanh-Gaussian base policy of SAC (Haarnoja et al. 2018, arXiv 1801.01290, appendix C)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_hpo.samplers.gaussian import GaussianPolicy, gaussian_log_prob, squash, tanh_gaussian, tanh_log_det
from tests.reference import densities as reference


def _rows(values: list[float], rows: int = 1) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).expand(rows, -1)


def _log_density(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return log pi(action), by giving `tanh_gaussian` the noise that leads to `action`."""
    noise = (torch.atanh(action) - mean) / log_std.exp()
    reached, log_prob = tanh_gaussian(mean, log_std, noise)
    torch.testing.assert_close(reached, action, rtol=0.0, atol=1e-12)
    return log_prob


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.4, 0.3), (-0.6, 0.4)])
def test_density_integrates_to_one_in_one_dimension(mean: float, std: float) -> None:
    """int_{-1}^{1} pi(a) da = 1 (Gauss-Legendre, 400 nodes)."""
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(400))
    density = _log_density(nodes[:, None], _rows([mean], 400), _rows([math.log(std)], 400)).exp()
    assert float(weights @ density) == pytest.approx(1.0, abs=1e-9)


def test_density_integrates_to_one_in_two_dimensions() -> None:
    """int int pi(a) da = 1 over (-1, 1)^2: log_prob sums over action dimensions, it does not average."""
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(200))
    grid, area = torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten()
    rows = len(grid)
    density = _log_density(grid, _rows([0.2, -0.5], rows), _rows([math.log(0.5), math.log(0.3)], rows)).exp()
    assert float(area @ density) == pytest.approx(1.0, abs=1e-9)


def test_tanh_log_det_matches_autograd() -> None:
    """log |det d tanh(u) / du| from the full Jacobian."""
    u = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    for row, log_det in zip(u, tanh_log_det(u), strict=True):
        jacobian = torch.autograd.functional.jacobian(torch.tanh, row)
        assert log_det.item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-9)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_tanh_log_det_is_exact_far_out(sign: float) -> None:
    """Where tanh(u) rounds to 1 the logarithm stays finite: 2 (log 2 - |u|) to first order, also in float32."""
    for dtype in (torch.float32, torch.float64):
        u = torch.tensor([[sign * 15.0], [sign * 40.0]], dtype=dtype)
        exact = torch.tensor([2 * (math.log(2) - 15.0), 2 * (math.log(2) - 40.0)], dtype=dtype)
        torch.testing.assert_close(tanh_log_det(u), exact, rtol=1e-6, atol=1e-6)


def test_equals_the_reference() -> None:
    """Action and log-density against the literal change of variables, with correlated parameters and noise."""
    generator = torch.Generator().manual_seed(3)
    mean, log_std, noise = torch.randn(3, 64, 4, generator=generator, dtype=torch.float64) * 0.7
    action, log_prob = tanh_gaussian(mean, log_std, noise)
    u = mean + log_std.exp() * noise
    expected = reference.normal_log_prob(u, mean, log_std.exp()) - reference.tanh_log_det(u)
    torch.testing.assert_close(action, torch.tanh(u), rtol=1e-14, atol=0.0)
    torch.testing.assert_close(log_prob, expected, rtol=1e-11, atol=1e-11)


def test_log_prob_gradients() -> None:
    """Pathwise derivatives of action and log-density in mean and log-std, against finite differences."""
    generator = torch.Generator().manual_seed(4)
    mean, log_std, noise = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    inputs = mean.requires_grad_(), (log_std * 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: tanh_gaussian(m, s, noise), inputs)


def _policy_and_inputs() -> tuple[GaussianPolicy, torch.Tensor, torch.Tensor]:
    """Make a policy and inputs for which some log-stds leave [-20, 2]."""
    generator = torch.Generator().manual_seed(6)
    policy = GaussianPolicy(5, 3, 16, 1, generator=generator).double()
    with torch.no_grad():
        policy.network[-1].weight.mul_(8)
    obs = torch.randn(40, 5, generator=generator, dtype=torch.float64).requires_grad_()
    noise = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    assert 0.02 < (policy(obs)[1] == 2).double().mean() < 0.5
    return policy, obs, noise


@pytest.mark.parametrize("detached_rows", [0, 15])
@pytest.mark.parametrize("of", [(1, 0), (0, 1), (0.7, 1.3)], ids=["action", "log-density", "both"])
def test_a_draw_equals_autograd(of: tuple[float, float], detached_rows: int) -> None:
    """Action and log-density agree, and their gradients in states and parameters, with some detached rows."""
    policy, obs, noise = _policy_and_inputs()
    drawn = squash(*policy.draw(obs, noise, detached_rows), detached_rows)
    mean, log_std = policy(obs)
    u = mean + log_std.exp() * noise
    plain = torch.tanh(u), gaussian_log_prob(noise, log_std) - tanh_log_det(u)
    for ours, theirs in zip(drawn, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(squash(*policy.draw(obs, noise)), plain, rtol=0.0, atol=0.0)
    weights = torch.linspace(0.5, 2, 40, dtype=torch.float64).unsqueeze(-1)[detached_rows:]
    found, expected = (
        torch.autograd.grad(
            sum(
                (w * weights * end.reshape(40, -1)[detached_rows:]).sum()
                for w, end in zip(of, ends, strict=True)
                if w
            ),
            [obs, *policy.parameters()],
        )
        for ends in (drawn, plain)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-10)


def test_zero_noise_gives_the_mean() -> None:
    """Noise-free evaluation: a = tanh(mu)."""
    mean, log_std = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.equal(tanh_gaussian(mean, log_std, torch.zeros_like(mean))[0], torch.tanh(mean))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_policy_network(num_layers: int) -> None:
    """`num_layers` hidden ReLU layers, then mean and log-std; log-std stays within [-20, 2]."""
    policy = GaussianPolicy(5, 2, 16, num_layers, generator=torch.Generator().manual_seed(0)).double()
    obs = torch.randn(1000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean, log_std = policy(obs)
    assert mean.shape == log_std.shape == (1000, 2)
    assert sum(p.ndim == 2 for p in policy.parameters()) == num_layers + 1
    far = policy(1e4 * obs)[1]
    assert far.min() == -20.0
    assert far.max() == 2.0


def test_policy_draws_from_its_generator() -> None:
    """Equal generators give equal parameters; the global generator is unused."""
    before = torch.get_rng_state()
    first, second = (GaussianPolicy(3, 2, 8, 1, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(before, torch.get_rng_state())

"""Test every hand-written backward pass against finite differences, and that detached rows have no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rllib_hpo.kernels.gated_force import ForceLayers
from rllib_hpo.kernels.gated_leapfrog import LeapfrogOptions, gated_leapfrog
from rllib_hpo.kernels.q_networks import q_values
from rllib_hpo.kernels.radial_flow import radial_flow
from rllib_hpo.kernels.relu_mlp import relu_mlp
from rllib_hpo.kernels.squash import gaussian_draw, tanh_squash
from rllib_hpo.networks.critics import Critics
from rllib_hpo.samplers.leapfrog import leapfrog
from tests.devices import DEVICES

ROWS, UNITS, DIM, OBS = 6, 5, 2, 3
Inputs = list[Tensor]


def _normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def _mlp(inputs: Tensor, *parameters: Tensor, cut: int = 0) -> Tensor:
    return relu_mlp(inputs, parameters[:2], parameters[2:], cut)


def _q(inputs: Tensor, *parameters: Tensor, cut: int = 0) -> Tensor:
    return q_values(inputs, parameters[:2], parameters[2:])


def _draw(outputs: Tensor, cut: int = 0) -> Any:
    return gaussian_draw(outputs, _normal(ROWS, DIM, seed=9).detach().to(outputs.device), cut)


def _squash(pre_tanh: Tensor, log_density: Tensor, cut: int = 0) -> Any:
    return tanh_squash(pre_tanh, log_density, cut)


def _flow(z: Tensor, centers: Tensor, raw_a: Tensor, raw_beta: Tensor, cut: int = 0) -> Any:
    return radial_flow(z, centers, raw_a.exp(), raw_beta.exp(), cut)


def _leapfrog(action: Tensor, momentum: Tensor, obs: Tensor, *layers: Tensor, cut: int = 0) -> Any:
    def direction(at: Tensor) -> Tensor:  # piecewise constant, as the gradient of a ReLU network
        return torch.ones_like(at) * torch.tensor([0.5, -1.0]).to(at)

    options = LeapfrogOptions(0.25, 2)
    return gated_leapfrog(action, momentum, obs, direction, ForceLayers(*layers), options, leapfrog, cut)


KERNELS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]], int]] = {
    # function, shapes of its arguments, how many of them have a row for each state
    "relu_mlp": (_mlp, [(ROWS, OBS), (UNITS, OBS), (DIM, UNITS), (UNITS,), (DIM,)], 1),
    "one Q network": (_q, [(ROWS, OBS), (1, UNITS, OBS), (1, 1, UNITS), (1, 1, UNITS), (1, 1, 1)], 0),
    "twin Q networks": (_q, [(ROWS, OBS), (2, UNITS, OBS), (2, 1, UNITS), (2, 1, UNITS), (2, 1, 1)], 0),
    "five Q networks": (_q, [(ROWS, OBS), (5, UNITS, OBS), (5, 1, UNITS), (5, 1, UNITS), (5, 1, 1)], 0),
    "gaussian_draw": (_draw, [(ROWS, 2 * DIM)], 1),
    "tanh_squash": (_squash, [(ROWS, DIM), (ROWS,)], 1),
    "radial_flow": (_flow, [(ROWS, DIM), (3, DIM), (3,), (3,)], 1),
    "gated_leapfrog": (
        _leapfrog,
        [
            *[(ROWS, DIM), (ROWS, DIM), (ROWS, OBS)],
            *[(2 * UNITS,), (2 * UNITS, 2 * DIM), (DIM, UNITS), (DIM,), (DIM, UNITS), (DIM,), (2 * UNITS, OBS)],
        ],
        3,
    ),
}  # fmt: skip


def _inputs(name: str, device: str = "cpu") -> Inputs:
    inputs = [_normal(*shape, seed=seed) for seed, shape in enumerate(KERNELS[name][1])]
    return [tensor.detach().to(device).requires_grad_() for tensor in inputs]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", KERNELS)
def test_gradients_are_those_of_finite_differences(name: str, device: str) -> None:
    assert torch.autograd.gradcheck(KERNELS[name][0], _inputs(name, device))


@pytest.mark.parametrize("name", [name for name, (_, _, num_with_rows) in KERNELS.items() if num_with_rows])
def test_detached_rows_change_no_value_and_have_no_gradient(name: str) -> None:
    function, _, num_with_rows = KERNELS[name]
    inputs, cut = _inputs(name), 2
    whole, partly = function(*inputs), function(*inputs, cut=cut)
    for one, other in zip(_tuple(whole), _tuple(partly), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    total = sum(output.sum() for output in _tuple(partly))
    for gradient in torch.autograd.grad(total, inputs[:num_with_rows]):
        assert not gradient[:cut].any()
        assert gradient[cut:].any()


@pytest.mark.parametrize("num", [1, 2, 5])
def test_the_minimum_and_its_gradient_are_autograds(num: int) -> None:
    """This holds for one critic, for twins by rows and by masks, for several, and for the first alone."""
    critics = Critics(OBS, DIM, 16, 2, torch.Generator().manual_seed(0), num).double()
    for rows in (8, 200):
        obs, action = 5 * _normal(rows, OBS, seed=1), _normal(rows, DIM, seed=2)
        q = critics(obs, action)
        for values, expected in (
            (critics.condition(obs).minimum(action), q.amin(0)),
            (critics.minimum(obs, action), q.amin(0)),
            (critics.first(obs, action), q[0]),
        ):
            torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)
            gradients = [
                torch.autograd.grad(x.sum(), action, retain_graph=True)[0] for x in (values, expected)
            ]
            torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    if num > 1:
        assert len(q.argmin(0).unique()) > 1


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)

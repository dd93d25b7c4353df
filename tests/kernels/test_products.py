"""Test that matrix products agree between libraries and matrix layouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rllib_hpo.algorithms.sac import SoftActorCriticModel
from rllib_hpo.kernels import products, q_networks
from rllib_hpo.replay.layout import RowLayout
from rllib_hpo.samplers.base import draw_noise
from rllib_hpo.settings import ActorCriticSettings, SACHPOSettings, SACNFSettings, SACSettings
from rllib_hpo.streams import TorchStreams
from tests.learning.engine import make_optimizers, update

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda matrix: matrix.clone(),
    "columns": lambda matrix: matrix.T.contiguous().T,
    "cut out": lambda matrix: torch.cat([torch.ones_like(matrix), matrix], 1)[:, matrix.shape[1] :],
}
LARGE = [SACSettings(), SACNFSettings(), SACHPOSettings(leapfrog_steps=2)]
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@each_layout
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 4), (300, 200, 100), (512, 376, 256), (64, 256, 1)])
def test_linear(layout: Callable[[Tensor], Tensor], relu: bool, shape: tuple[int, int, int]) -> None:
    """x W^T + b in float32, small and large, equals that in float64."""
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(0)
    x, w, b = (
        torch.randn(size, generator=generator) for size in ((rows, inner), (columns, inner), (columns,))
    )
    expected = x.double() @ w.double().T + b.double()
    expected = expected.relu() if relu else expected
    found = products.linear(layout(x), layout(w), b, relu=relu)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)


@each_layout
@pytest.mark.parametrize("shape", [(3, 5, 4), (300, 200, 100), (256, 1, 300), (256, 256, 376)])
def test_product(layout: Callable[[Tensor], Tensor], shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, generator=generator) for size in ((rows, inner), (inner, columns)))
    found = products.product(layout(left), layout(right))
    torch.testing.assert_close(found.double(), left.double() @ right.double(), rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(not products.HAS_ONEDNN, reason="this torch has no oneDNN, or is not for x86")
def test_only_large_products_of_float32_go_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, ...]] = []
    onednn = products._onednn

    def observed(inputs: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        taken.append(tuple(inputs.shape))
        return onednn(inputs, weight, bias, activation)

    monkeypatch.setattr(products, "_onednn", observed)
    for rows, dtype in ((8, torch.float32), (256, torch.float64), (256, torch.float32)):
        matrix = torch.ones(rows, 256, dtype=dtype)
        products.product(matrix, torch.ones(256, 256, dtype=dtype))
    assert taken == [(256, 256)]


@pytest.mark.parametrize("settings", LARGE, ids=lambda settings: settings.sampler)
def test_updates_of_full_size_agree(settings: ActorCriticSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 256 units and 256 rows, repetitions agree bitwise, and products without oneDNN nearly."""
    first, second = _trained(settings), _trained(settings)
    assert all(torch.equal(first[name], value) for name, value in second.items())
    monkeypatch.setattr(products, "HAS_ONEDNN", False)
    for name, value in _trained(settings).items():
        # Adam makes much of a gradient that is almost nothing, so single numbers may differ by more.
        assert (first[name] - value).norm() <= 1e-4 * value.norm() + 1e-6, name


@pytest.mark.parametrize("settings", LARGE, ids=lambda settings: settings.sampler)
def test_both_critics_at_a_time_are_the_same(
    settings: ActorCriticSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's single batched product equals a CPU's separate products; in float64."""
    small = settings.model_copy(update={"hidden_units": 32})
    one_by_one = _trained(small, torch.float64)
    monkeypatch.setattr(q_networks, "separate", lambda w, b: [q_networks.Layers(list(w), list(b))])
    for name, value in _trained(small, torch.float64).items():
        torch.testing.assert_close(one_by_one[name], value, rtol=1e-9, atol=1e-11)


def _trained(settings: ActorCriticSettings, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return the parameters after three updates with Humanoid's sizes."""
    model = SoftActorCriticModel(376, 17, settings, seed=0).to(dtype)
    optimizers, streams, layout = (
        make_optimizers(model, settings),
        TorchStreams(0, "test"),
        RowLayout(376, 17),
    )
    for _ in range(3):
        batch = layout.unpack(torch.randn(256, layout.width, generator=streams["rows"]).to(dtype))
        noise = draw_noise(model.sampler, 512, streams)
        update(model, optimizers, batch, {name: value.to(dtype) for name, value in noise.items()}, settings)
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_policys_network_is_a_chain_of_modules() -> None:
    """The hand-written passes equal those of torch's own modules, gradients included."""
    network = SoftActorCriticModel(5, 3, SACSettings(hidden_units=16), seed=0).double().sampler.policy.network
    inputs = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs.requires_grad_()
    ours, theirs = network(inputs, 4), torch.nn.Sequential.forward(network, inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    parameters = [inputs, *network.parameters()]
    found = torch.autograd.grad(ours.square().sum(), parameters)
    expected = torch.autograd.grad(theirs[4:].square().sum(), parameters)
    for gradient, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-12)

"""Test layers of different widths, activations and layer-normalised critics against torch's own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rllib_hpo.algorithms.registry import find_settings
from rllib_hpo.errors import SettingsError
from rllib_hpo.networks.critics import Critics
from rllib_hpo.networks.mlp import ReluMLP, make_mlp
from rllib_hpo.networks.normalized_critics import LayerNormCritics, make_critics
from rllib_hpo.settings import SACSettings, parse_settings
from rllib_hpo.streams import torch_generator

OBS, ACTION, ROWS, WIDTHS = 4, 3, 7, [6, 5]
MODULES: dict[str, Any] = {"relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, OBS, generator=generator), torch.randn(ROWS, ACTION, generator=generator)


@pytest.mark.parametrize("activation", list(MODULES))
def test_a_network_is_its_layers(activation: Any) -> None:
    obs, _ = inputs()
    network = make_mlp(OBS, WIDTHS, 1, 2, torch_generator(0, "weights"), activation)
    first, second, last = [layer for layer in network if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in (first, second, last)] == [(6, 4), (5, 6), (2, 5)]
    own = MODULES[activation]()
    expected = last(own(second(own(first(obs)))))
    torch.testing.assert_close(network(obs), expected)
    weighted = torch.arange(1.0, 2 * ROWS + 1).view(ROWS, 2)
    found = torch.autograd.grad((network(obs, 3) * weighted).sum(), list(network.parameters()))
    wanted = torch.autograd.grad((expected[3:] * weighted[3:]).sum(), list(network.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert isinstance(network, ReluMLP) == (activation == "relu")


def normalised_reference(critics: LayerNormCritics, k: int) -> nn.Sequential:
    """Return network k as modules of torch."""
    layers: list[nn.Module] = []
    for i, (weight, bias) in enumerate(zip(critics.weights, critics.biases, strict=True)):
        layer = nn.Linear(weight.shape[2], weight.shape[1])
        layer.weight.data, layer.bias.data = weight[k].detach(), bias[k, 0].detach()
        layers.append(layer)
        if i < len(critics.gains):
            norm = nn.LayerNorm(weight.shape[1])
            norm.weight.data, norm.bias.data = (
                critics.gains[i][k, 0].detach(),
                critics.offsets[i][k, 0].detach(),
            )
            layers += [norm, nn.ReLU()]
    return nn.Sequential(*layers)


@pytest.fixture
def critics() -> LayerNormCritics:
    made = LayerNormCritics(OBS, ACTION, WIDTHS, 1, torch_generator(0, "critics"), num=3)
    for parameter in (*made.gains, *made.offsets):
        parameter.data += torch.linspace(-0.3, 0.4, parameter.numel()).view_as(parameter)
    return made


def test_normalised_critics_are_torchs_layers(critics: LayerNormCritics) -> None:
    obs, action = inputs()
    references = [normalised_reference(critics, k) for k in range(3)]
    expected = torch.stack([one(torch.cat([obs, action], 1)).squeeze(1) for one in references])
    torch.testing.assert_close(critics(obs, action), expected)
    torch.testing.assert_close(critics.minimum(obs, action), expected.amin(0))
    torch.testing.assert_close(critics.maximum(obs, action), expected.amax(0))
    torch.testing.assert_close(critics.first(obs, action), expected[0])
    part = critics.condition(obs).rows(slice(2, 5))
    torch.testing.assert_close(part.minimum(action[2:5]), expected.amin(0)[2:5])


@pytest.mark.parametrize("largest", [False, True])
def test_their_action_gradient_is_autograds(critics: LayerNormCritics, largest: bool) -> None:
    obs, action = inputs()
    references = [normalised_reference(critics, k) for k in range(3)]
    leaf = action.clone().requires_grad_()
    q = torch.stack([one(torch.cat([obs, leaf], 1)).squeeze(1) for one in references])
    value = q.amax(0) if largest else q.amin(0)
    (expected,) = torch.autograd.grad(value.sum(), leaf)
    conditioned = critics.condition(obs)
    with torch.no_grad():
        found = (
            conditioned.maximum_and_gradient(action) if largest else conditioned.minimum_and_gradient(action)
        )
    torch.testing.assert_close(found[0], value.detach())
    torch.testing.assert_close(found[1], expected)
    assert not found[1].requires_grad
    own = action.clone().requires_grad_()
    result = conditioned.maximum(own) if largest else conditioned.minimum(own)
    gradients = torch.autograd.grad(result.sum(), [own, *critics.parameters()], allow_unused=True)
    torch.testing.assert_close(gradients[0], expected)
    assert all(gradient is None for gradient in gradients[1:])


def test_critics_follow_the_settings() -> None:
    plain = make_critics(OBS, ACTION, SACSettings(hidden_units=[6, 5]), torch_generator(0, "critics"))
    assert type(plain) is Critics
    assert [tuple(weight.shape) for weight in plain.weights] == [(2, 6, 7), (2, 5, 6), (2, 1, 5)]
    normal = make_critics(
        OBS, ACTION, SACSettings(hidden_units=[6, 5], critic_layer_norm=True), torch_generator(0, "critics")
    )
    assert all(torch.equal(one, other) for one, other in zip(plain.weights, normal.weights, strict=True))


@pytest.mark.parametrize("algorithm", ["sac-hpo", "mcmc-po", "langevin-po"])
def test_layer_normalisation_is_refused_where_the_gradient_acts(algorithm: str) -> None:
    with pytest.raises(
        SettingsError, match="critic_layer_norm=true would make the policy's gradient inexact"
    ):
        parse_settings(find_settings(algorithm), {"critic_layer_norm": True})


@pytest.mark.parametrize(
    ("algorithm", "values", "message"),
    [
        ("sac", {"hidden_units": []}, "hidden_units"),
        ("sac", {"hidden_units": [8, 0]}, "hidden_units"),
        ("sac", {"hidden_units": [8] * 5}, "hidden_units"),
        ("sac", {"policy_activation": "sine"}, "policy_activation='sine'"),
        ("soft-q", {"policy_activation": "tanh"}, "policy_activation='tanh'"),
    ],
)
def test_impossible_networks_are_refused(algorithm: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_settings(find_settings(algorithm), values)

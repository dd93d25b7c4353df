"""Build linear layers and multilayer perceptrons, initialised from an explicit generator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rllib_hpo.kernels.relu_mlp import relu_mlp
from rllib_hpo.settings import Activation, layer_units


def uniform(
    shape: tuple[int, ...], fan_in: int, generator: torch.Generator | None, scale: float = 1.0
) -> Tensor:
    """Draw values in +-scale / sqrt(fan_in), the initial distribution of `nn.Linear`."""
    bound = scale / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def linear(in_units: int, out_units: int, generator: torch.Generator | None, scale: float = 1.0) -> nn.Linear:
    """Make a linear layer with weights from `generator`; the global generator is unused."""
    layer = nn.utils.skip_init(nn.Linear, in_units, out_units)
    layer.weight.data = uniform((out_units, in_units), in_units, generator, scale)
    layer.bias.data = uniform((out_units,), in_units, generator, scale)
    return layer


class MLP(nn.Sequential):
    """Apply linear layers with an activation between them.

    Args:
        in_units: Number of inputs.
        hidden_units: Units of each hidden layer; a sequence has one number per layer, and then `num_layers` is unused.
        num_layers: Number of hidden layers.
        out_units: Number of outputs of the last layer, which is linear.
        generator: Generator of the initial weights.
        activation: Class of the activation.
    """

    def __init__(
        self,
        in_units: int,
        hidden_units: int | Sequence[int],
        num_layers: int,
        out_units: int,
        generator: torch.Generator | None,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        units = [in_units, *layer_units(hidden_units, num_layers)]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(units):
            layers += [linear(before, after, generator), activation()]
        super().__init__(*layers, linear(units[-1], out_units, generator))

    def forward(self, inputs: Tensor, detached_rows: int = 0) -> Tensor:
        """Return outputs (B, out_units) for inputs (B, in_units).

        The first `detached_rows` rows carry no gradient.
        """
        outputs = inputs
        for layer in self:
            outputs = layer(outputs)
        if detached_rows == 0:
            return outputs
        return torch.cat([outputs[:detached_rows].detach(), outputs[detached_rows:]])


class ReluMLP(MLP):
    """Apply linear layers with ReLU between them, with a hand-written backward pass of matrix products; see `MLP`."""

    def forward(self, inputs: Tensor, detached_rows: int = 0) -> Tensor:
        """Return outputs (B, out_units) for inputs (B, in_units).

        The first `detached_rows` rows carry no gradient.
        """
        layers = [layer for layer in self if isinstance(layer, nn.Linear)]
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        return relu_mlp(inputs, weights, biases, detached_rows)


_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def make_mlp(
    in_units: int,
    hidden_units: int | Sequence[int],
    num_layers: int,
    out_units: int,
    generator: torch.Generator | None,
    activation: Activation = "relu",
) -> MLP:
    """Make a network with this activation; see `MLP`."""
    sizes = in_units, hidden_units, num_layers, out_units
    if activation == "relu":
        return ReluMLP(*sizes, generator)
    return MLP(*sizes, generator, _ACTIVATIONS[activation])

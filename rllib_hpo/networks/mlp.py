"""Build linear layers and ReLU networks, initialised from an explicit generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rllib_hpo.kernels.relu_mlp import relu_mlp


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


class ReluMLP(nn.Sequential):
    """Apply linear layers with ReLU between them, with a hand-written backward pass of matrix products.

    Args:
        in_units: Number of inputs.
        hidden_units: Units of each hidden layer.
        num_layers: Number of hidden layers.
        out_units: Number of outputs of the last layer, which is linear.
        generator: Generator of the initial weights.
    """

    def __init__(
        self,
        in_units: int,
        hidden_units: int,
        num_layers: int,
        out_units: int,
        generator: torch.Generator | None,
    ) -> None:
        layers: list[nn.Module] = []
        for k in range(num_layers):
            layers += [linear(in_units if k == 0 else hidden_units, hidden_units, generator), nn.ReLU()]
        super().__init__(*layers, linear(hidden_units, out_units, generator))

    def forward(self, inputs: Tensor, detached_rows: int = 0) -> Tensor:
        """Return outputs (B, out_units) for inputs (B, in_units).

        The first `detached_rows` rows carry no gradient.
        """
        layers = [layer for layer in self if isinstance(layer, nn.Linear)]
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        return relu_mlp(inputs, weights, biases, detached_rows)

"""Building blocks of policies and critics, initialised from a generator of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rllib_hpo.kernels.relu_mlp import relu_mlp


def uniform(
    shape: tuple[int, ...], fan_in: int, generator: torch.Generator | None, scale: float = 1.0
) -> Tensor:
    """Values in +-scale / sqrt(fan_in), the distribution `nn.Linear` starts from."""
    bound = scale / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def linear(in_units: int, out_units: int, generator: torch.Generator | None, scale: float = 1.0) -> nn.Linear:
    """A linear layer drawn from `generator` (the global one is left alone)."""
    layer = nn.utils.skip_init(nn.Linear, in_units, out_units)
    layer.weight.data = uniform((out_units, in_units), in_units, generator, scale)
    layer.bias.data = uniform((out_units,), in_units, generator, scale)
    return layer


class ReluMLP(nn.Sequential):
    """Linear layers with ReLU between them; the backward pass is written out as matrix products.

    Args:
        in_units: Inputs.
        hidden_units: Units of each hidden layer.
        num_layers: Hidden layers.
        out_units: Outputs of the last layer, which is linear.
        generator: Where the initial weights are drawn from.
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
        """Outputs (B, out_units) of inputs (B, in_units).

        No gradient comes from the first `detached_rows` rows.
        """
        layers = [layer for layer in self if isinstance(layer, nn.Linear)]
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        return relu_mlp(inputs, weights, biases, detached_rows)

"""Building blocks of policies and critics, initialised from a generator of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


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


def relu_mlp(
    in_units: int, hidden_units: int, num_layers: int, out_units: int, generator: torch.Generator | None
) -> nn.Sequential:
    """`num_layers` hidden ReLU layers and a linear output, (B, in_units) -> (B, out_units)."""
    layers: list[nn.Module] = []
    for k in range(num_layers):
        layers += [linear(in_units if k == 0 else hidden_units, hidden_units, generator), nn.ReLU()]
    return nn.Sequential(*layers, linear(hidden_units, out_units, generator))

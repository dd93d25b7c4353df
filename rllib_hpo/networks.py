"""Building blocks of policies and critics, initialised from a generator of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_hpo import products


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


def is_learning() -> bool:
    """Whether backward passes that are written out are wanted: gradients are, and nobody compiles or exports."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def layer_values(inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """The inputs (B, I), the hidden layers' values, each (B, H), and the output of a ReLU network.

    Networks may be evaluated N at a time, with N in front of every shape; see `products.linear`.
    """
    values = [inputs]
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        values.append(products.linear(values[-1], weight, bias, relu=k < len(weights)))
    return values


def parameter_gradients(
    values: Sequence[Tensor], weights: Sequence[Tensor], gradient: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of weights and biases, from the one of the output and the values of all layers before it."""
    of_weights, of_biases = [], []
    for k in reversed(range(len(weights))):
        of_weights.append(products.product(gradient.mT, values[k]))
        of_biases.append(gradient.sum(-2, keepdim=gradient.dim() == 3))
        if k > 0:
            gradient = products.through_relu(products.product(gradient, weights[k]), values[k])
    return of_weights[::-1], of_biases[::-1]


def input_gradient(hidden: Sequence[Tensor], weights: Sequence[Tensor], gradient: Tensor) -> Tensor:
    """The gradient of the inputs, from the one of the output and the hidden layers' values."""
    for weight, value in zip(weights[:0:-1], reversed(hidden), strict=True):
        gradient = products.through_relu(products.product(gradient, weight), value)
    return products.product(gradient, weights[0])


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
        if not is_learning():
            return layer_values(inputs, weights, biases)[-1]
        result: Tensor = _ReluMLP.apply(inputs, detached_rows, *weights, *biases)  # type: ignore[no-untyped-call]
        return result


class _ReluMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, detached_rows: int, *parameters: Tensor) -> Tensor:
        ctx.num_layers, ctx.detached_rows = len(parameters) // 2, detached_rows
        weights, biases = parameters[: ctx.num_layers], parameters[ctx.num_layers :]
        *values, output = layer_values(inputs, weights, biases)
        ctx.save_for_backward(*(value[detached_rows:] for value in values), *weights)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        values, weights = ctx.saved_tensors[: ctx.num_layers], ctx.saved_tensors[ctx.num_layers :]
        gradient = grad_outputs[0][ctx.detached_rows :]
        of_weights, of_biases = parameter_gradients(values, weights, gradient)
        of_inputs = None
        if ctx.needs_input_grad[0]:
            of_rows = input_gradient(values[1:], weights, gradient)
            of_inputs = F.pad(of_rows, (0, 0, ctx.detached_rows, 0))
        return of_inputs, None, *of_weights, *of_biases

"""Evaluate ReLU networks with a hand-written backward pass of matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_hpo.kernels import products, wants_gradients


def relu_mlp(
    inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], detached_rows: int = 0
) -> Tensor:
    """Evaluate linear layers with ReLU between them.

    Args:
        inputs: Inputs, (B, I).
        weights: Weights, (H, I), (H, H), ..., (O, H).
        biases: Biases, (H,), ..., (O,).
        detached_rows: Number of leading rows that carry no gradient; their backward pass is skipped.

    Returns:
        Outputs, (B, O).
    """
    if not wants_gradients():
        return layer_values(inputs, weights, biases)[-1]
    result: Tensor = _ReluMLP.apply(inputs, detached_rows, *weights, *biases)  # type: ignore[no-untyped-call]
    return result


def layer_values(inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """Return inputs (B, I), hidden layers' values, each (B, H), and the output of a ReLU network.

    N networks can be evaluated together, with N in front of every shape; see `products.linear`.
    """
    values = [inputs]
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        values.append(products.linear(values[-1], weight, bias, relu=k < len(weights)))
    return values


def parameter_gradients(
    values: Sequence[Tensor], weights: Sequence[Tensor], gradient: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of weights and biases, from the output's gradient and the values of all preceding layers."""
    of_weights, of_biases = [], []
    for k in reversed(range(len(weights))):
        of_weights.append(products.product(gradient.mT, values[k]))
        of_biases.append(gradient.sum(-2, keepdim=gradient.dim() == 3))
        if k > 0:
            gradient = products.through_relu(products.product(gradient, weights[k]), values[k])
    return of_weights[::-1], of_biases[::-1]


def input_gradient(hidden: Sequence[Tensor], weights: Sequence[Tensor], gradient: Tensor) -> Tensor:
    """Return the gradient of the inputs, from the output's gradient and the hidden layers' values."""
    for weight, value in zip(weights[:0:-1], reversed(hidden), strict=True):
        gradient = products.through_relu(products.product(gradient, weight), value)
    return products.product(gradient, weights[0])


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

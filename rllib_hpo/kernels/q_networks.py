"""N Q networks in one call: their values with parameter gradients, and their minimum with its gradient in the action.

On a CPU the networks are evaluated one by one, which is fastest there; elsewhere as one batched product per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rllib_hpo.kernels import products
from rllib_hpo.kernels.relu_mlp import input_gradient, layer_values, parameter_gradients

ROWS_WORTH_SPLITTING = 64
"""Rows from which, on a CPU, going back through the smaller of two critics alone beats masking the larger."""


class Layers(NamedTuple):
    """Parameters of one Q network, or of N with N in front of every shape."""

    weights: list[Tensor]
    """(H, S + A), (H, H), ..., (1, H)."""
    biases: list[Tensor]
    """(H,), ..., (1,); of N networks (N, 1, H), ..., (N, 1, 1)."""


class DifferentiableMinimum(Protocol):
    """A function of actions that knows its gradient."""

    def minimum_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Values (B,) at actions (B, A), and their gradient (B, A)."""


def separate(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Layers]:
    """What to evaluate: the networks one by one on a CPU, elsewhere all at a time.

    Args:
        weights: (N, H, S + A), ..., (N, 1, H).
        biases: (N, 1, H), ..., (N, 1, 1).
    """
    if weights[0].device.type == "cpu" and not torch.compiler.is_compiling():
        return [Layers([w[k] for w in weights], [b[k, 0] for b in biases]) for k in range(len(weights[0]))]
    return [Layers(list(weights), list(biases))]


def is_split(networks: Sequence[Layers]) -> bool:
    """Whether `separate` took the networks apart."""
    return networks[0].weights[0].dim() == 2


def join(parts: Sequence[Tensor], networks: Sequence[Layers]) -> Tensor:
    """(N, ...) of what was computed for each element of `networks`."""
    return torch.stack(list(parts)) if is_split(networks) else parts[0]


def inputs_of(network: Layers, inputs: Tensor) -> Tensor:
    """Inputs (B, I) as `network` takes them: (N, B, I) where it is N networks."""
    weight = network.weights[0]
    return inputs.expand(len(weight), -1, -1) if weight.dim() == 3 else inputs


def q_values(inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Q_1 to Q_N, (N, B), of [state, action] (B, S + A); differentiable in everything."""
    result: Tensor = _QValues.apply(inputs, *weights, *biases)  # type: ignore[no-untyped-call]
    return result


def minimum(critic: DifferentiableMinimum, action: Tensor) -> Tensor:
    """The critic's minimum (B,) at actions (B, A), differentiable in the action alone."""
    result: Tensor = _Minimum.apply(action, critic)  # type: ignore[no-untyped-call]
    return result


def minimum_gradient(
    networks: Sequence[Layers], hidden: Sequence[Sequence[Tensor]], q: Tensor, obs_dim: int
) -> Tensor:
    """The gradient in the action, (B, A), of the smallest Q.

    Args:
        networks: From `separate`.
        hidden: The hidden layers' values of each.
        q: Their outputs, (N, B).
        obs_dim: S, the first inputs, which are left out.
    """
    is_pair = len(q) == 2 and is_split(networks)
    if is_pair and q.shape[1] >= ROWS_WORTH_SPLITTING and not torch.compiler.is_compiling():
        return _gradient_of_rows(networks, hidden, q, obs_dim)
    smallest = _is_smallest(q).unsqueeze(-1)
    parts = smallest.unbind() if is_split(networks) else [smallest]
    gradients = [
        input_gradient(values, _from_action(network, obs_dim), part)
        for values, network, part in zip(hidden, networks, parts, strict=True)
    ]
    return join(gradients, networks).sum(0)


def _gradient_of_rows(
    networks: Sequence[Layers], hidden: Sequence[Sequence[Tensor]], q: Tensor, obs_dim: int
) -> Tensor:
    """The same of two, going back through each with those rows only where it is the smaller: half the work."""
    first_is_larger = q[0] > q[1]
    order = first_is_larger.to(torch.uint8).argsort(stable=True)  # the first network's rows come first
    num_first = len(order) - int(first_is_larger.sum())
    result = q.new_empty(len(order), networks[0].weights[0].shape[1] - obs_dim)
    for network, values, rows in zip(networks, hidden, (order[:num_first], order[num_first:]), strict=True):
        own = [value.index_select(0, rows) for value in values]
        gradient = input_gradient(own, _from_action(network, obs_dim), q.new_ones(len(rows), 1))
        result.index_copy_(0, rows, gradient)
    return result


def _from_action(network: Layers, obs_dim: int) -> list[Tensor]:
    """Weights of a network that sees the action alone."""
    return [network.weights[0][..., obs_dim:], *network.weights[1:]]


def _is_smallest(q: Tensor) -> Tensor:
    """1.0 where a Q is the smallest, else 0.0, (N, B), of (N, B); the first one where some are equal."""
    if len(q) == 1:
        return torch.ones_like(q)
    if len(q) > 2:
        return torch.zeros_like(q).scatter_(0, q.argmin(0, keepdim=True), 1.0)
    if torch.compiler.is_compiling():
        return torch.stack([q[0] <= q[1], q[0] > q[1]]).to(q.dtype)
    smaller = torch.empty_like(q)
    torch.le(q[0], q[1], out=smaller[0])
    torch.gt(q[0], q[1], out=smaller[1])
    return smaller


class _Minimum(torch.autograd.Function):
    """A minimum whose backward pass is the analytic gradient computed on the way forward."""

    @staticmethod
    def forward(ctx: Any, action: Tensor, critic: DifferentiableMinimum) -> Tensor:
        q, gradient = critic.minimum_and_gradient(action)
        ctx.save_for_backward(gradient)
        return q

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad_outputs[0].unsqueeze(-1) * gradient, None


class _QValues(torch.autograd.Function):
    """N Q networks, whose backward pass is matrix products, written out."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *parameters: Tensor) -> Tensor:
        networks = _networks(parameters)
        values = [layer_values(inputs_of(network, inputs), *network) for network in networks]
        # Kept in this way, since autograd need not know of what this function makes for itself.
        ctx.values = [before for *before, _ in values]
        ctx.save_for_backward(*parameters)
        return join([output for *_, output in values], networks).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        parameters, gradient = list(ctx.saved_tensors), grad_outputs[0].unsqueeze(-1)
        networks = _networks(parameters)
        parts = gradient.unbind() if is_split(networks) else [gradient]
        found = [
            (*of_weights, *of_biases)
            for of_weights, of_biases in (
                parameter_gradients(values, network.weights, part)
                for values, network, part in zip(ctx.values, networks, parts, strict=True)
            )
        ]
        joined = [
            join(part, networks).view_as(p)
            for part, p in zip(zip(*found, strict=True), parameters, strict=True)
        ]
        return _gradient_of_inputs(ctx, networks, parts), *joined


def _networks(parameters: Sequence[Tensor]) -> list[Layers]:
    num_layers = len(parameters) // 2
    return separate(list(parameters[:num_layers]), list(parameters[num_layers:]))


def _gradient_of_inputs(ctx: Any, networks: list[Layers], parts: Sequence[Tensor]) -> Tensor | None:
    if not ctx.needs_input_grad[0]:
        return None
    found = [
        input_gradient(values[1:], network.weights, part)
        for values, network, part in zip(ctx.values, networks, parts, strict=True)
    ]
    return join(found, networks).sum(0)


def first_layers(
    networks: Sequence[Layers], obs: Tensor, action: Tensor, state_parts: Sequence[Tensor] | None
) -> list[Tensor]:
    """The first hidden layer of each network, (B, H), at obs (B, S) and actions (B, A).

    `state_parts` are those of `state_parts_of`, if they are known.
    """
    if state_parts is None:
        inputs = torch.cat([obs, action], dim=-1)
        return [
            products.linear(inputs_of(network, inputs), network.weights[0], network.biases[0], relu=True)
            for network in networks
        ]
    obs_dim = obs.shape[-1]
    return [
        products.add_product(part, inputs_of(network, action), network.weights[0][..., obs_dim:]).relu_()
        for part, network in zip(state_parts, networks, strict=True)
    ]


def state_parts_of(networks: Sequence[Layers], obs: Tensor) -> list[Tensor]:
    """What the states obs (B, S) add to the first hidden layer of each network, (B, H), bias included."""
    obs_dim = obs.shape[-1]
    return [
        products.linear(inputs_of(network, obs), network.weights[0][..., :obs_dim], network.biases[0])
        for network in networks
    ]

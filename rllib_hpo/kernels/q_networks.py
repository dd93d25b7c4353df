"""Evaluate N Q networks: values with parameter gradients, or the minimum with its action gradient.

On a CPU the networks run one by one, which is fastest there; elsewhere each layer is one batched product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rllib_hpo.kernels import products
from rllib_hpo.kernels.relu_mlp import input_gradient, layer_values, parameter_gradients
from rllib_hpo.kernels.tracing import is_traced, opaque

ROWS_WORTH_SPLITTING = 64
"""Rows above which, on a CPU, backpropagating the smaller of two critics alone beats masking the larger."""


class Layers(NamedTuple):
    """Parameters of one Q network, or of N, with N in front of every shape."""

    weights: list[Tensor]
    """(H, S + A), (H, H), ..., (1, H)."""
    biases: list[Tensor]
    """(H,), ..., (1,); for N networks (N, 1, H), ..., (N, 1, 1)."""
    of_state: Tensor | None = None
    """The first weight's columns of the state, (H, S), where `split_inputs` has cut them out."""
    of_action: Tensor | None = None
    """The first weight's columns of the action, (H, A)."""


class DifferentiableMinimum(Protocol):
    """A function of actions with an analytic gradient."""

    def minimum_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (B,) at actions (B, A), and their gradient (B, A)."""


def separate(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Layers]:
    """Split stacked networks on a CPU, to evaluate them one by one; elsewhere keep them together.

    Args:
        weights: (N, H, S + A), ..., (N, 1, H).
        biases: (N, 1, H), ..., (N, 1, 1).
    """
    if weights[0].device.type == "cpu" and not torch.compiler.is_compiling():
        return [Layers([w[k] for w in weights], [b[k, 0] for b in biases]) for k in range(len(weights[0]))]
    return [Layers(list(weights), list(biases))]


def is_acting(parameter: Tensor) -> bool:
    """Return whether nothing records: neither autograd nor a tracer, on a CPU, where actions are computed at once."""
    return not (
        torch.is_grad_enabled()
        or parameter.device.type != "cpu"
        or torch.compiler.is_compiling()
        or is_traced()
    )


def split_inputs(network: Layers, obs_dim: int) -> Layers:
    """Return the network with its first weight cut into the columns of state and action."""
    first = network.weights[0]
    return network._replace(of_state=first[..., :obs_dim], of_action=first[..., obs_dim:])


def is_split(networks: Sequence[Layers]) -> bool:
    """Return whether `separate` split the networks."""
    return networks[0].weights[0].dim() == 2


def join(parts: Sequence[Tensor], networks: Sequence[Layers]) -> Tensor:
    """Stack the results of each element of `networks` into (N, ...)."""
    return torch.stack(list(parts)) if is_split(networks) else parts[0]


def inputs_of(network: Layers, inputs: Tensor) -> Tensor:
    """Return inputs (B, I) in the shape of `network`: (N, B, I) if it holds N networks."""
    weight = network.weights[0]
    return inputs.expand(len(weight), -1, -1) if weight.dim() == 3 else inputs


def q_values(inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Return Q_1 to Q_N, (N, B), for [state, action] (B, S + A); differentiable in everything."""
    result: Tensor = _QValues.apply(inputs, *weights, *biases)  # type: ignore[no-untyped-call]
    return result


def minimum(critic: DifferentiableMinimum, action: Tensor) -> Tensor:
    """Return the critic's minimum (B,) at actions (B, A), differentiable in the action alone."""
    result: Tensor = _Minimum.apply(action, critic)  # type: ignore[no-untyped-call]
    return result


def minimum_gradient(
    networks: Sequence[Layers], hidden: Sequence[Sequence[Tensor]], q: Tensor, obs_dim: int
) -> Tensor:
    """Return the action gradient, (B, A), of the smallest Q.

    Args:
        networks: Networks from `separate`.
        hidden: Values of the hidden layers of each network.
        q: Outputs of the networks, (N, B).
        obs_dim: Number S of leading inputs, for which no gradient is computed.
    """
    is_pair = len(q) == 2 and is_split(networks)
    if is_pair and q.shape[1] >= ROWS_WORTH_SPLITTING and not torch.compiler.is_compiling():
        of_rows = _opaque_gradient_of_rows if is_traced() else _gradient_of_rows
        first, second = (_from_action(network, obs_dim) for network in networks)
        result: Tensor = of_rows(first, second, list(hidden[0]), list(hidden[1]), q)
        return result
    smallest = _is_smallest(q).unsqueeze(-1)
    parts = smallest.unbind() if is_split(networks) else [smallest]
    gradients = [
        input_gradient(values, _from_action(network, obs_dim), part)
        for values, network, part in zip(hidden, networks, parts, strict=True)
    ]
    return join(gradients, networks).sum(0)


def minimum_of_one(
    networks: Sequence[Layers], values: Sequence[Sequence[Tensor]], obs_dim: int
) -> tuple[Tensor, Tensor]:
    """Return the smallest Q, (1,), and its action gradient, (1, A), at one state, where nothing records.

    Args:
        networks: Networks from `separate`, split.
        values: Values of the hidden layers and the output of each network.
        obs_dim: Number S of leading inputs, for which no gradient is computed.
    """
    outputs = [float(of_layers[-1]) for of_layers in values]
    smallest = outputs.index(min(outputs))
    *hidden, output = values[smallest]
    *weights, last = _from_action(networks[smallest], obs_dim)
    gradient = products.through_relu(last, hidden.pop())
    return output[0], input_gradient(hidden, weights, gradient)


def _gradient_of_rows(
    first_weights: list[Tensor],
    second_weights: list[Tensor],
    first_hidden: list[Tensor],
    second_hidden: list[Tensor],
    q: Tensor,
) -> Tensor:
    """Return `minimum_gradient` of two networks, with half the work.

    It backpropagates each network only for the rows where it is the smaller.
    """
    first_is_larger = q[0] > q[1]
    order = first_is_larger.to(torch.uint8).argsort(stable=True)  # rows of the first network come first
    num_first = len(order) - int(first_is_larger.sum())
    result = q.new_empty(len(order), first_weights[0].shape[1])
    for weights, hidden, rows in (
        (first_weights, first_hidden, order[:num_first]),
        (second_weights, second_hidden, order[num_first:]),
    ):
        own = [value.index_select(0, rows) for value in hidden]
        result.index_copy_(0, rows, input_gradient(own, weights, q.new_ones(len(rows), 1)))
    return result


_opaque_gradient_of_rows = opaque(
    "gradient_of_rows(Tensor[] first_weights, Tensor[] second_weights, Tensor[] first_hidden, "
    "Tensor[] second_hidden, Tensor q) -> Tensor",
    _gradient_of_rows,
    lambda first_weights, second_weights, first_hidden, second_hidden, q: q.new_empty(
        q.shape[1], first_weights[0].shape[1]
    ),
)
"""`_gradient_of_rows` as one operator: which rows it computes depends on values."""


def _from_action(network: Layers, obs_dim: int) -> list[Tensor]:
    """Return the weights of a network without their columns of the state."""
    return [_of_action(network, obs_dim), *network.weights[1:]]


def _of_action(network: Layers, obs_dim: int) -> Tensor:
    """Return the first weight's columns of the action, (..., H, A)."""
    return network.weights[0][..., obs_dim:] if network.of_action is None else network.of_action


def _is_smallest(q: Tensor) -> Tensor:
    """Return 1.0 where a Q is the smallest, else 0.0, (N, B), for q (N, B); ties go to the first."""
    if len(q) == 1:
        return torch.ones_like(q)
    if len(q) > 2:
        return torch.zeros_like(q).scatter_(0, q.argmin(0, keepdim=True), 1.0)
    if torch.compiler.is_compiling() or is_traced():
        return torch.stack([q[0] <= q[1], q[0] > q[1]]).to(q.dtype)
    smaller = torch.empty_like(q)
    torch.le(q[0], q[1], out=smaller[0])
    torch.gt(q[0], q[1], out=smaller[1])
    return smaller


class _Minimum(torch.autograd.Function):
    """Compute a minimum whose backward pass is the analytic gradient found in the forward pass."""

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
    """Evaluate N Q networks with a hand-written backward pass of matrix products."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *parameters: Tensor) -> Tensor:
        networks = _networks(parameters)
        values = [
            layer_values(inputs_of(network, inputs), network.weights, network.biases) for network in networks
        ]
        # Stored on ctx, not by save_for_backward: nothing writes to the hidden values, so autograd need not check
        # versions. The inputs among them are unguarded too: callers must not modify them before the backward pass.
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
    """Return the first hidden layer of each network, (B, H), at obs (B, S) and actions (B, A).

    Pass `state_parts`, the result of `state_parts_of`, if it is known.
    """
    if state_parts is None:
        inputs = torch.cat([obs, action], dim=-1)
        return [
            products.linear(inputs_of(network, inputs), network.weights[0], network.biases[0], relu=True)
            for network in networks
        ]
    obs_dim = obs.shape[-1]
    return [
        products.add_product(part, inputs_of(network, action), _of_action(network, obs_dim)).relu_()
        for part, network in zip(state_parts, networks, strict=True)
    ]


def state_parts_of(networks: Sequence[Layers], obs: Tensor) -> list[Tensor]:
    """Return the contribution of obs (B, S) and bias to each network's first hidden layer, (B, H)."""
    obs_dim = obs.shape[-1]
    return [
        products.linear(
            inputs_of(network, obs),
            network.weights[0][..., :obs_dim] if network.of_state is None else network.of_state,
            network.biases[0],
        )
        for network in networks
    ]

"""The twin critic: two Q networks as one batched network, with an analytic gradient in the action."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rllib_hpo import products
from rllib_hpo.networks import input_gradient, layer_values, parameter_gradients, uniform

ROWS_WORTH_SPLITTING = 64
"""Rows from which, on a CPU, going back through the smaller critic alone beats masking the larger."""


class Layers(NamedTuple):
    """Parameters of one critic, or of both with a 2 in front of every shape."""

    weights: list[Tensor]
    """(H, S + A), (H, H), ..., (1, H)."""
    biases: list[Tensor]
    """(H,), ..., (1,); for both (2, 1, H), ..., (2, 1, 1)."""


class TwinCritic(nn.Module):
    """Q_1 and Q_2: ReLU networks over [state, action], evaluated as one batched matrix product per layer.

    Args:
        obs_dim: Observation dimension S.
        action_dim: Action dimension A.
        hidden_units: Units of each hidden layer.
        num_layers: Hidden layers, at least 1.
        generator: Where the initial weights are drawn from.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_units: int = 256,
        num_layers: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.obs_dim = obs_dim
        units = [obs_dim + action_dim, *[hidden_units] * num_layers, 1]
        self.weights = nn.ParameterList(
            uniform((2, fan_out, fan_in), fan_in, generator) for fan_in, fan_out in itertools.pairwise(units)
        )
        self.biases = nn.ParameterList(
            uniform((2, 1, fan_out), fan_in, generator) for fan_in, fan_out in itertools.pairwise(units)
        )

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Q_1 and Q_2, (2, B), of obs (B, S) and action (B, A)."""
        inputs = torch.cat([obs, action], dim=-1)
        result: Tensor = _TwinQ.apply(inputs, *self.weights, *self.biases)  # type: ignore[no-untyped-call]
        return result

    def condition(self, obs: Tensor) -> ConditionedCritic:
        """The critics as functions of the action alone, for obs (B, S)."""
        return ConditionedCritic(self, obs)

    def minimum(self, obs: Tensor, action: Tensor) -> Tensor:
        """min(Q_1, Q_2), (B,). Gradients flow to `action` only: neither parameters nor obs receive any."""
        return ConditionedCritic(self, obs, reuse=False).minimum(action)


def _separate(weights: list[Tensor], biases: list[Tensor]) -> list[Layers]:
    """What to evaluate: the critics one by one on a CPU, where that is fastest, elsewhere both at a time."""
    if weights[0].device.type == "cpu" and not torch.compiler.is_compiling():
        return [Layers([w[k] for w in weights], [b[k, 0] for b in biases]) for k in (0, 1)]
    return [Layers(weights, biases)]


def _join(parts: list[Tensor]) -> Tensor:
    """(2, ...) of what `_separate` took apart."""
    return torch.stack(parts) if len(parts) == 2 else parts[0]


class ConditionedCritic:
    """min(Q_1, Q_2) at fixed states, for many actions each (`reuse`) or for one.

    With `reuse` the state's part of the first layer is computed once, when first needed. The gradient in the
    action is analytic. A ReLU network is piecewise linear, so its action-gradient is piecewise constant:
    treating it as a constant in a backward pass is what autograd's double backward would give, without
    computing it.
    """

    def __init__(self, critic: TwinCritic, obs: Tensor, *, reuse: bool = True) -> None:
        self._critic, self._obs, self._reuse = critic, obs, reuse
        # Lists, since slicing a ParameterList makes a new module.
        self._networks = _separate(list(critic.weights), list(critic.biases))
        self._state_parts: list[Tensor] | None = None

    def rows(self, rows: slice) -> ConditionedCritic:
        """The same critics at some of the states, for one action each."""
        part = ConditionedCritic(self._critic, self._obs[rows], reuse=False)
        if self._state_parts is not None:
            part._state_parts = [state_part[..., rows, :] for state_part in self._state_parts]
        return part

    def minimum(self, action: Tensor) -> Tensor:
        """min(Q_1, Q_2), (B,), at action (B, A); differentiable in the action alone."""
        if torch.is_grad_enabled() and action.requires_grad:
            result: Tensor = _MinimumQ.apply(action, self)  # type: ignore[no-untyped-call]
            return result
        with torch.no_grad():
            return self._twins(action)[0].amin(0)

    @torch.no_grad()
    def minimum_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """min(Q_1, Q_2), (B,), and its gradient in the action, (B, A); autograd sees neither."""
        q, hidden = self._twins(action)
        split = len(hidden) == 2 and len(action) >= ROWS_WORTH_SPLITTING and not torch.compiler.is_compiling()
        gradient = self._gradient_of_rows(hidden, q) if split else self._gradient_of_both(hidden, q)
        return q.amin(0), gradient

    def _twins(self, action: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
        """Q_1 and Q_2, (2, B), and the hidden layers' values of each network."""
        values = [
            layer_values(first, network.weights[1:], network.biases[1:])
            for first, network in zip(self._first_layers(action), self._networks, strict=True)
        ]
        return _join([output for *_, output in values]).squeeze(-1), [hidden for *hidden, _ in values]

    def _first_layers(self, action: Tensor) -> list[Tensor]:
        """The first hidden layer of each network, (B, H), the state's part from the cache if it is reused."""
        if self._state_parts is None and not self._reuse:
            inputs = torch.cat([self._obs, action], dim=-1)
            return [
                products.linear(_for(network, inputs), network.weights[0], network.biases[0], relu=True)
                for network in self._networks
            ]
        obs_dim = self._critic.obs_dim
        if self._state_parts is None:
            self._state_parts = [
                products.linear(
                    _for(network, self._obs), network.weights[0][..., :obs_dim], network.biases[0]
                )
                for network in self._networks
            ]
        return [
            products.add_product(part, _for(network, action), network.weights[0][..., obs_dim:]).relu_()
            for part, network in zip(self._state_parts, self._networks, strict=True)
        ]

    def _gradient_of_both(self, hidden: list[list[Tensor]], q: Tensor) -> Tensor:
        """dQ/da of the smaller Q, (B, A), from both networks with the larger masked out: shapes are static."""
        smaller = _is_smaller(q).unsqueeze(-1)
        parts = [smaller] if len(hidden) == 1 else smaller.unbind()
        return _join(
            [
                input_gradient(values, self._from_action(network), part)
                for values, network, part in zip(hidden, self._networks, parts, strict=True)
            ]
        ).sum(0)

    def _gradient_of_rows(self, hidden: list[list[Tensor]], q: Tensor) -> Tensor:
        """The same, going back through each network with those rows only where it is the smaller: half the work."""
        first_is_larger = q[0] > q[1]
        order = first_is_larger.to(torch.uint8).argsort(stable=True)  # the first network's rows come first
        num_first = len(order) - int(first_is_larger.sum())
        result = q.new_empty(len(order), self._networks[0].weights[0].shape[1] - self._critic.obs_dim)
        for network, values, rows in zip(
            self._networks, hidden, (order[:num_first], order[num_first:]), strict=True
        ):
            own = [value.index_select(0, rows) for value in values]
            gradient = input_gradient(own, self._from_action(network), q.new_ones(len(rows), 1))
            result.index_copy_(0, rows, gradient)
        return result

    def _from_action(self, network: Layers) -> list[Tensor]:
        """Weights of a network that sees the action alone."""
        return [network.weights[0][..., self._critic.obs_dim :], *network.weights[1:]]


def _is_smaller(q: Tensor) -> Tensor:
    """1.0 where a critic is the smaller one, else 0.0, (2, B), of (2, B); the first one where they are equal."""
    if torch.compiler.is_compiling():
        return torch.stack([q[0] <= q[1], q[0] > q[1]]).to(q.dtype)
    smaller = torch.empty_like(q)
    torch.le(q[0], q[1], out=smaller[0])
    torch.gt(q[0], q[1], out=smaller[1])
    return smaller


def _for(network: Layers, inputs: Tensor) -> Tensor:
    """Inputs (B, I) as a network takes them: (2, B, I) where it is both critics."""
    return inputs.expand(2, -1, -1) if network.weights[0].dim() == 3 else inputs


class _MinimumQ(torch.autograd.Function):
    """min(Q_1, Q_2) whose backward pass is the analytic gradient computed on the way forward."""

    @staticmethod
    def forward(ctx: Any, action: Tensor, critic: ConditionedCritic) -> Tensor:
        q, gradient = critic.minimum_and_gradient(action)
        ctx.save_for_backward(gradient)
        return q

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad_outputs[0].unsqueeze(-1) * gradient, None


class _TwinQ(torch.autograd.Function):
    """Q_1 and Q_2, whose backward pass is matrix products, written out."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *parameters: Tensor) -> Tensor:
        weights, biases = list(parameters[: len(parameters) // 2]), list(parameters[len(parameters) // 2 :])
        values = [layer_values(_for(network, inputs), *network) for network in _separate(weights, biases)]
        # Kept in this way, since autograd need not know of what this function makes for itself.
        ctx.values = [before for *before, _ in values]
        ctx.save_for_backward(*parameters)
        return _join([output for *_, output in values]).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        parameters, gradient = list(ctx.saved_tensors), grad_outputs[0].unsqueeze(-1)
        networks = _separate(parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :])
        parts = gradient.unbind() if len(networks) == 2 else [gradient]
        found = [
            (*of_weights, *of_biases)
            for of_weights, of_biases in (
                parameter_gradients(values, network.weights, part)
                for values, network, part in zip(ctx.values, networks, parts, strict=True)
            )
        ]
        joined = [
            _join(list(part)).view_as(p) for part, p in zip(zip(*found, strict=True), parameters, strict=True)
        ]
        return _gradient_of_inputs(ctx, networks, parts), *joined


def _gradient_of_inputs(ctx: Any, networks: list[Layers], parts: Sequence[Tensor]) -> Tensor | None:
    if not ctx.needs_input_grad[0]:
        return None
    found = [
        input_gradient(values[1:], network.weights, part)
        for values, network, part in zip(ctx.values, networks, parts, strict=True)
    ]
    return _join(found).sum(0)

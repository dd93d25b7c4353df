"""The twin critic: two Q networks as one batched network, with an analytic gradient in the action."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from rllib_hpo.networks import uniform

ROWS_WORTH_SPLITTING = 64
"""Rows from which, on a CPU, going back through the smaller critic alone beats masking the larger."""


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
        """Q_1 and Q_2, (2, B), of obs (B, S) and action (B, A); autograd reaches the parameters."""
        hidden = torch.cat([obs, action], dim=-1).expand(2, -1, -1)
        # Lists, since slicing a ParameterList makes a new module.
        weights, biases = list(self.weights), list(self.biases)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            hidden = torch.baddbmm(bias, hidden, weight.transpose(1, 2)).relu_()
        return self._output(hidden)

    def condition(self, obs: Tensor) -> ConditionedCritic:
        """The critics as functions of the action alone, for obs (B, S)."""
        return ConditionedCritic(self, obs)

    def minimum(self, obs: Tensor, action: Tensor) -> Tensor:
        """min(Q_1, Q_2), (B,). Gradients flow to `action` only: neither parameters nor obs receive any."""
        return ConditionedCritic(self, obs, reuse=False).minimum(action)

    def _output(self, hidden: Tensor) -> Tensor:
        # With one output unit a product and a sum are several times faster than a batched matrix product.
        return (hidden * self.weights[-1]).sum(-1) + self.biases[-1].squeeze(-1)


class ConditionedCritic:
    """min(Q_1, Q_2) at fixed states, for many actions each (`reuse`) or for one.

    With `reuse` the state's part of the first layer is computed once, when first needed. The gradient in the
    action is analytic. A ReLU network is piecewise linear, so its action-gradient is piecewise constant:
    treating it as a constant in a backward pass is what autograd's double backward would give, without
    computing it.
    """

    def __init__(self, critic: TwinCritic, obs: Tensor, *, reuse: bool = True) -> None:
        self._critic, self._obs, self._reuse = critic, obs, reuse
        self._state_part: Tensor | None = None

    def rows(self, rows: slice) -> ConditionedCritic:
        """The same critics at some of the states, for one action each."""
        part = ConditionedCritic(self._critic, self._obs[rows], reuse=False)
        part._state_part = None if self._state_part is None else self._state_part[:, rows]
        return part

    def minimum(self, action: Tensor) -> Tensor:
        """min(Q_1, Q_2), (B,), at action (B, A); differentiable in the action alone."""
        if torch.is_grad_enabled() and action.requires_grad:
            result: Tensor = _MinimumQ.apply(action, self)  # type: ignore[no-untyped-call]
            return result
        with torch.no_grad():
            return self._critic._output(self._hidden_layers(action)[-1]).amin(0)

    @torch.no_grad()
    def minimum_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """min(Q_1, Q_2), (B,), and its gradient in the action, (B, A); autograd sees neither."""
        hidden = self._hidden_layers(action)
        q = self._critic._output(hidden[-1])
        on_cpu = action.device.type == "cpu" and not torch.compiler.is_compiling()
        split = on_cpu and len(action) >= ROWS_WORTH_SPLITTING
        gradient = self._gradient_of_rows if split else self._gradient_of_both
        return q.amin(0), gradient(hidden, q)

    def _gradient_of_both(self, hidden: list[Tensor], q: Tensor) -> Tensor:
        """dQ/da of the smaller Q, (B, A), from both networks with the larger masked out: shapes are static."""
        obs_dim, weights = self._critic.obs_dim, list(self._critic.weights)
        smaller = torch.stack([q[0] <= q[1], q[0] > q[1]]).to(q.dtype)
        # dQ/dh of the last hidden layer is the output weight, where Q is the minimum; then back layer by layer.
        gradient = smaller.unsqueeze(-1) * weights[-1]
        for activation, weight in zip(hidden[:0:-1], weights[-2:0:-1], strict=True):
            gradient = torch.bmm(_through_relu(gradient, activation), weight)
        gradient = torch.bmm(_through_relu(gradient, hidden[0]), weights[0][:, :, obs_dim:])
        return gradient.sum(0)

    def _gradient_of_rows(self, hidden: list[Tensor], q: Tensor) -> Tensor:
        """The same, going back through each network with those rows only where it is the smaller: half the work."""
        obs_dim, weights = self._critic.obs_dim, list(self._critic.weights)
        first_is_smaller = q[0] <= q[1]
        gradient = q.new_empty(len(first_is_smaller), weights[0].shape[-1] - obs_dim)
        for k, chosen in enumerate((first_is_smaller, ~first_is_smaller)):
            rows = chosen.nonzero().squeeze(1)
            part = weights[-1][k].expand(len(rows), -1)
            for activation, weight in zip(hidden[:0:-1], weights[-2:0:-1], strict=True):
                part = _through_relu(part, activation[k].index_select(0, rows)) @ weight[k]
            part = _through_relu(part, hidden[0][k].index_select(0, rows))
            gradient.index_copy_(0, rows, part @ weights[0][k, :, obs_dim:])
        return gradient

    def _hidden_layers(self, action: Tensor) -> list[Tensor]:
        """Activations of every hidden layer, each (2, B, H)."""
        weights, biases = list(self._critic.weights), list(self._critic.biases)
        hidden = [self._first_layer(action).relu_()]
        for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
            hidden.append(torch.baddbmm(bias, hidden[-1], weight.transpose(1, 2)).relu_())
        return hidden

    def _first_layer(self, action: Tensor) -> Tensor:
        """[state, action] times the first weights, (2, B, H), the state's part from the cache if it is reused."""
        weight, bias = self._critic.weights[0].transpose(1, 2), self._critic.biases[0]
        if self._state_part is None and not self._reuse:
            return torch.baddbmm(bias, torch.cat([self._obs, action], dim=-1).expand(2, -1, -1), weight)
        state_weight, action_weight = weight.split([self._critic.obs_dim, action.shape[-1]], dim=1)
        if self._state_part is None:
            self._state_part = torch.baddbmm(bias, self._obs.expand(2, -1, -1), state_weight)
        return torch.baddbmm(self._state_part, action.expand(2, -1, -1), action_weight)


def _through_relu(gradient: Tensor, activation: Tensor) -> Tensor:
    # Several times faster than multiplying by a mask.
    return torch.ops.aten.threshold_backward(gradient, activation, 0)


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

"""Evaluate N Q networks as one batched network, with an analytic gradient in the action."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rllib_hpo.kernels import q_networks
from rllib_hpo.kernels.relu_mlp import layer_values
from rllib_hpo.networks.mlp import uniform
from rllib_hpo.settings import layer_units


class ActionValue(Protocol):
    """Define a value of actions at fixed states, whose gradient drives a force."""

    def minimum(self, action: Tensor) -> Tensor:
        """Return values (B,) at actions (B, A), differentiable in the action alone."""

    def minimum_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (B,) and their action gradient (B, A), both without a graph."""

    def rows(self, rows: slice) -> ActionValue:
        """Return the same function at some of the states."""


class Critics(nn.Module):
    """Evaluate Q_1 to Q_N, ReLU networks over [state, action], with one batched matrix product per layer.

    Args:
        obs_dim: Observation dimension S.
        action_dim: Action dimension A.
        hidden_units: Units of each hidden layer; a sequence has one number per layer, and then `num_layers` is unused.
        num_layers: Number of hidden layers, at least 1.
        generator: Generator of the initial weights.
        num: Number of networks N; 2 for the twin critics of SAC and TD3.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_units: int | Sequence[int] = 256,
        num_layers: int = 2,
        generator: torch.Generator | None = None,
        num: int = 2,
    ) -> None:
        super().__init__()
        self.obs_dim = obs_dim
        units = [obs_dim + action_dim, *layer_units(hidden_units, num_layers), 1]
        self.weights = nn.ParameterList(
            uniform((num, fan_out, fan_in), fan_in, generator)
            for fan_in, fan_out in itertools.pairwise(units)
        )
        self.biases = nn.ParameterList(
            uniform((num, 1, fan_out), fan_in, generator) for fan_in, fan_out in itertools.pairwise(units)
        )

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return Q_1 to Q_N, (N, B), for obs (B, S) and action (B, A)."""
        inputs = torch.cat([obs, action], dim=-1)
        return q_networks.q_values(inputs, list(self.weights), list(self.biases))

    def condition(self, obs: Tensor, num: int | None = None) -> ConditionedCritic:
        """Return the critics, or the first `num` of them, as functions of the action alone, for obs (B, S)."""
        return self._conditioned(obs, num=num)

    def minimum(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return min(Q_1, ..., Q_N), (B,). Gradients flow to `action` only: neither parameters nor obs receive any."""
        return self._conditioned(obs, reuse=False).minimum(action)

    def maximum(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return max(Q_1, ..., Q_N), (B,). Gradients flow to `action` only."""
        return self._conditioned(obs, reuse=False).maximum(action)

    def first(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return Q_1, (B,), without evaluating the others. Gradients flow to `action` only."""
        return self._conditioned(obs, reuse=False, num=1).minimum(action)

    def _conditioned(self, obs: Tensor, *, reuse: bool = True, num: int | None = None) -> ConditionedCritic:
        return ConditionedCritic(self, obs, reuse=reuse, num=num)


class ConditionedCritic:
    """Evaluate min(Q_1, ..., Q_N) at fixed states, for one action each or for many (`reuse`).

    With `reuse` the state's part of the first layer is computed once, on first use. The action gradient is analytic. A
    ReLU network is piecewise linear, so its action gradient is piecewise constant. Treating it as constant in a
    backward pass therefore equals autograd's double backward, without the cost.

    Args:
        critic: The networks.
        obs: States, (B, S).
        reuse: Whether to expect several actions per state.
        num: Number of leading networks to use; None for all.
    """

    def __init__(self, critic: Critics, obs: Tensor, *, reuse: bool = True, num: int | None = None) -> None:
        self._critic, self._obs, self._reuse, self._num = critic, obs, reuse, num
        self._networks = _separated(critic, num)
        self._state_parts: list[Tensor] | None = None

    def rows(self, rows: slice) -> ConditionedCritic:
        """Return the same critics at some of the states, for one action each."""
        part = self._critic._conditioned(self._obs[rows], reuse=False, num=self._num)
        if self._state_parts is not None:
            part._state_parts = [state_part[..., rows, :] for state_part in self._state_parts]
        return part

    def minimum(self, action: Tensor) -> Tensor:
        """Return min(Q_1, ..., Q_N), (B,), at action (B, A); differentiable in the action alone."""
        if torch.is_grad_enabled() and action.requires_grad:
            return q_networks.minimum(self, action)
        with torch.no_grad():
            return self._evaluate(action)[0].amin(0)

    def minimum_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return min(Q_1, ..., Q_N), (B,), and its action gradient, (B, A), both without a graph."""
        networks, obs_dim = self._networks, self._critic.obs_dim
        if q_networks.is_acting(action) and len(action) == 1 and q_networks.is_split(networks):
            return q_networks.minimum_of_one(networks, self._values_of_layers(action), obs_dim)
        with torch.no_grad():
            q, hidden = self._evaluate(action)
            return q.amin(0), q_networks.minimum_gradient(networks, hidden, q, obs_dim)

    def maximum(self, action: Tensor) -> Tensor:
        """Return max(Q_1, ..., Q_N), (B,), at action (B, A); differentiable in the action alone."""
        if torch.is_grad_enabled() and action.requires_grad:
            return q_networks.minimum(_Maximum(self), action)
        with torch.no_grad():
            return self._evaluate(action)[0].amax(0)

    @torch.no_grad()
    def maximum_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return max(Q_1, ..., Q_N), (B,), and its action gradient, (B, A), both without a graph."""
        q, hidden = self._evaluate(action)
        gradient = q_networks.minimum_gradient(self._networks, hidden, -q, self._critic.obs_dim)
        return q.amax(0), gradient

    def _evaluate(self, action: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
        """Return Q_1 to Q_N, (N, B), and the hidden layers' values of each network."""
        values = self._values_of_layers(action)
        q = q_networks.join([output for *_, output in values], self._networks).squeeze(-1)
        return q, [hidden for *hidden, _ in values]

    def _values_of_layers(self, action: Tensor) -> list[list[Tensor]]:
        """Return the values of the hidden layers and the output of each network."""
        if self._state_parts is None and self._reuse:
            self._state_parts = q_networks.state_parts_of(self._networks, self._obs)
        first_layers = q_networks.first_layers(self._networks, self._obs, action, self._state_parts)
        return [
            layer_values(first, network.weights[1:], network.biases[1:])
            for first, network in zip(first_layers, self._networks, strict=True)
        ]


def _separated(critic: Critics, num: int | None) -> list[q_networks.Layers]:
    """Return the first `num` networks, or all; for acting on a CPU what was made for an earlier action."""
    parameters = list(critic.parameters())
    keeps = q_networks.is_acting(parameters[0])
    addresses = [parameter.data_ptr() for parameter in parameters] if keeps else []
    if keeps and (known := _SEPARATED.get(critic)) is not None and known[:2] == (addresses, num):
        return known[2]
    # Lists, because slicing a ParameterList makes a new module.
    weights, biases = list(critic.weights), list(critic.biases)
    if num is not None:
        weights, biases = [w[:num] for w in weights], [b[:num] for b in biases]
    networks = q_networks.separate(weights, biases)
    if keeps:
        networks = [q_networks.split_inputs(network, critic.obs_dim) for network in networks]
        _SEPARATED[critic] = addresses, num, networks
    return networks


_SEPARATED: WeakKeyDictionary[Critics, tuple[list[int], int | None, list[q_networks.Layers]]] = (
    WeakKeyDictionary()
)
"""Views of critics' parameters by network; they hold the memory, so that its address is given to nothing else."""


class _Maximum:
    """Compute the largest of a critic's networks, for callers that expect a `DifferentiableMinimum`."""

    def __init__(self, critic: ConditionedCritic) -> None:
        self.minimum_and_gradient = critic.maximum_and_gradient


class SubtractedCritic:
    """Evaluate min Q - weight max Q_C at fixed states, with its gradient in the action.

    Args:
        critic: The reward critics Q.
        cost: The cost critics Q_C at the same states; their maximum counts, so that costs are not underestimated.
        weight: A scalar without gradient, such as a Lagrange multiplier.
    """

    def __init__(self, critic: ActionValue, cost: ConditionedCritic, weight: Tensor) -> None:
        self._critic, self._cost, self._weight = critic, cost, weight

    def minimum(self, action: Tensor) -> Tensor:
        """Return the difference, (B,), at action (B, A); differentiable in the action alone."""
        return self._critic.minimum(action) - self._weight * self._cost.maximum(action)

    def minimum_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the difference, (B,), and its action gradient, (B, A), both without a graph."""
        q, gradient = self._critic.minimum_and_gradient(action)
        cost, cost_gradient = self._cost.maximum_and_gradient(action)
        return q - self._weight * cost, gradient - self._weight * cost_gradient

    def rows(self, rows: slice) -> SubtractedCritic:
        """Return the same function at some of the states."""
        return SubtractedCritic(self._critic.rows(rows), self._cost.rows(rows), self._weight)

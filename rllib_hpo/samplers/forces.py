"""The force of the Hamiltonian policy, composed of independent choices: its scale and its gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_hpo.networks import linear, uniform

SMALL = 0.01
"""Scale of the gate networks' last layers: at first sigma is about 0.5 and T about 0."""


def unit_gradient(gradient: Tensor, eps: float = 1e-8) -> Tensor:
    """g = -grad Q / (|grad Q| + eps), (B, A), of grad Q (B, A) (arXiv 2103.12020, below eq. (13))."""
    return gradient / (-eps - torch.linalg.vector_norm(gradient, dim=-1, keepdim=True))


class GatedForce(nn.Module):
    """F(s, a) = sigma_h * g + (1 - sigma_h) * T_h, elementwise (arXiv 2103.12020, eq. (13)).

    T_h (tanh out) and sigma_h (sigmoid out) are two networks over [s, a, g] with one hidden ELU layer
    each, shared by all leapfrog steps. Their first layers are one matrix product, of which the
    state's part is computed once per chain.

    Args:
        obs_dim: Observation dimension S.
        action_dim: Action dimension A.
        hidden_units: h_n, per network.
        state_input: Whether the networks see the state.
        generator: Where the initial weights are drawn from.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_units: int,
        state_input: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        fan_in = 2 * action_dim + (obs_dim if state_input else 0)
        units = 2 * hidden_units
        self.bias = nn.Parameter(uniform((units,), fan_in, generator))
        self.action_weight = nn.Parameter(uniform((units, 2 * action_dim), fan_in, generator))
        self.state_weight = (
            nn.Parameter(uniform((units, obs_dim), fan_in, generator)) if state_input else None
        )
        self.transform = linear(hidden_units, action_dim, generator, scale=SMALL)
        self.gate = linear(hidden_units, action_dim, generator, scale=SMALL)

    def condition(self, obs: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The force at fixed states obs (B, S): (action, g) -> (force, gate), all (B, A)."""
        parameters = self.layers()
        state_part = self.bias if self.state_weight is None else F.linear(obs, self.state_weight, self.bias)

        def force(action: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
            inputs = torch.cat([action, direction], dim=-1)
            hidden = F.elu(torch.addmm(state_part, inputs, parameters.action_weight.mT))
            transform, gate = heads(hidden, parameters)
            return torch.lerp(transform, direction, gate), gate

        return force

    def layers(self) -> ForceLayers:
        """The parameters."""
        return ForceLayers(
            self.bias,
            self.action_weight,
            self.transform.weight,
            self.transform.bias,
            self.gate.weight,
            self.gate.bias,
            self.state_weight,
        )


class ForceLayers(NamedTuple):
    """Parameters of a `GatedForce` with U = h_n units in each of its two networks."""

    bias: Tensor
    """(2 U,)."""
    action_weight: Tensor
    """(2 U, 2 A), of action and direction."""
    transform_weight: Tensor
    """(A, U)."""
    transform_bias: Tensor
    gate_weight: Tensor
    """(A, U)."""
    gate_bias: Tensor
    state_weight: Tensor | None
    """(2 U, S)."""


def heads(hidden: Tensor, layers: ForceLayers) -> tuple[Tensor, Tensor]:
    """T_h and sigma_h, each (B, A), of the hidden layers (B, 2 U)."""
    for_transform, for_gate = hidden.chunk(2, dim=-1)
    transform = torch.addmm(layers.transform_bias, for_transform, layers.transform_weight.mT).tanh()
    return transform, torch.addmm(layers.gate_bias, for_gate, layers.gate_weight.mT).sigmoid()

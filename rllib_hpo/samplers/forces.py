"""Compose the force of the Hamiltonian policy from two independent choices: its scale and its gate."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_hpo.kernels.gated_force import ForceLayers, gated_force
from rllib_hpo.networks.mlp import linear, uniform

SMALL = 0.01
"""Scale of the gate networks' last layers, so that initially sigma is about 0.5 and T about 0."""


def unit_gradient(gradient: Tensor, eps: float = 1e-8) -> Tensor:
    """Return g = -grad Q / (|grad Q| + eps), (B, A), for grad Q (B, A) (arXiv 2103.12020, below eq. (13))."""
    return gradient / (-eps - torch.linalg.vector_norm(gradient, dim=-1, keepdim=True))


class GatedForce(nn.Module):
    """Hold the networks T_h and sigma_h of the gated force (arXiv 2103.12020, eq. (13)): `kernels.gated_force`.

    All leapfrog steps share the networks. One matrix product computes their first layers; the state's part of it is
    computed once per chain.

    Args:
        obs_dim: Observation dimension S.
        action_dim: Action dimension A.
        hidden_units: h_n, per network.
        state_input: Whether the networks see the state.
        generator: Generator of the initial weights.
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
        """Return the force at fixed states obs (B, S): (action, g) -> (force, gate), all (B, A)."""
        parameters = self.layers()
        state_part = self.bias if self.state_weight is None else F.linear(obs, self.state_weight, self.bias)

        def force(action: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
            values = gated_force(action, direction, state_part, parameters)
            return values.force, values.gate

        return force

    def layers(self) -> ForceLayers:
        """The parameters of both networks."""
        return ForceLayers(
            self.bias,
            self.action_weight,
            self.transform.weight,
            self.transform.bias,
            self.gate.weight,
            self.gate.bias,
            self.state_weight,
        )

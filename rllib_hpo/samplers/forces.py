"""The force of the Hamiltonian policy, composed of independent choices: its scale and its gate."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_hpo.kernels.gated_force import ForceLayers, gated_force
from rllib_hpo.networks.mlp import linear, uniform

SMALL = 0.01
"""Scale of the gate networks' last layers: at first sigma is about 0.5 and T about 0."""


def unit_gradient(gradient: Tensor, eps: float = 1e-8) -> Tensor:
    """g = -grad Q / (|grad Q| + eps), (B, A), of grad Q (B, A) (arXiv 2103.12020, below eq. (13))."""
    return gradient / (-eps - torch.linalg.vector_norm(gradient, dim=-1, keepdim=True))


class GatedForce(nn.Module):
    """The networks T_h and sigma_h of the gated force (arXiv 2103.12020, eq. (13)): `kernels.gated_force`.

    All leapfrog steps share them. Their first layers are one matrix product, of which the state's part is
    computed once per chain.

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
            values = gated_force(action, direction, state_part, parameters)
            return values.force, values.gate

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

"""Compute the gated force of the Hamiltonian policy, equation (13) of arXiv 2103.12020.

All other code calls this function for it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_hpo.kernels.tracing import is_traced


class ForceLayers(NamedTuple):
    """Parameters of the networks T_h and sigma_h, with U = h_n units in the hidden layer of each."""

    bias: Tensor
    """(2 U,)."""
    action_weight: Tensor
    """(2 U, 2 A), for action and direction."""
    transform_weight: Tensor
    """(A, U)."""
    transform_bias: Tensor
    gate_weight: Tensor
    """(A, U)."""
    gate_bias: Tensor
    state_weight: Tensor | None
    """(2 U, S)."""


class ForceValues(NamedTuple):
    """The force, and the values of both networks."""

    force: Tensor
    """F, (B, A)."""
    transform: Tensor
    """T_h, (B, A)."""
    gate: Tensor
    """sigma_h, (B, A)."""


class Buffers(NamedTuple):
    """Tensors to fill with what a backward pass reads."""

    inputs: Tensor
    """(B, 2 A)."""
    hidden: Tensor
    """(B, 2 U)."""


def gated_force(
    action: Tensor, direction: Tensor, state_part: Tensor, layers: ForceLayers, buffers: Buffers | None = None
) -> ForceValues:
    """Compute F = sigma_h * g + (1 - sigma_h) * T_h, elementwise, eq. (13).

    T_h (tanh output) and sigma_h (sigmoid output) each have one hidden ELU layer over [s, a, g].

    Args:
        action: a, (B, A).
        direction: g, (B, A).
        state_part: Contribution of state and bias to both hidden layers, (B, 2 U) or (2 U,).
        layers: Parameters of both networks.
        buffers: Buffers for inputs and hidden layers; with them autograd records nothing.
    """
    hidden = _hidden_layer(action, direction, state_part, layers, buffers)
    for_transform, for_gate = hidden.chunk(2, dim=-1)
    transform = F.linear(for_transform, layers.transform_weight, layers.transform_bias).tanh()
    gate = F.linear(for_gate, layers.gate_weight, layers.gate_bias).sigmoid()
    return ForceValues(torch.lerp(transform, direction, gate), transform, gate)


def _hidden_layer(
    action: Tensor, direction: Tensor, state_part: Tensor, layers: ForceLayers, buffers: Buffers | None
) -> Tensor:
    """Return the hidden layer, (B, 2 U); fill the buffers, if there are some, with it and its inputs."""
    if buffers is not None and not is_traced():
        torch.cat([action, direction], dim=-1, out=buffers.inputs)
        torch.addmm(state_part, buffers.inputs, layers.action_weight.mT, out=buffers.hidden)
        return F.elu(buffers.hidden, inplace=True)
    inputs = torch.cat([action, direction], dim=-1)
    hidden = F.elu(torch.addmm(state_part, inputs, layers.action_weight.mT))
    if buffers is not None:  # a compiler removes the copies
        buffers.inputs.copy_(inputs)
        buffers.hidden.copy_(hidden)
    return hidden

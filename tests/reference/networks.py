"""Evaluate multilayer perceptrons, lists of (weight, bias) with weight (out, in), and the force built on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Layers = list[tuple[Tensor, Tensor]]


def mlp(layers: Layers, inputs: Tensor, activation: Callable[[Tensor], Tensor] = torch.relu) -> Tensor:
    """Apply affine layers with an activation between them and none at the end."""
    for weight, bias in layers[:-1]:
        inputs = activation(inputs @ weight.T + bias)
    weight, bias = layers[-1]
    return inputs @ weight.T + bias


def q_value(critic: Layers, obs: Tensor, action: Tensor) -> Tensor:
    """Return Q(s, a) of one critic, shape (B,)."""
    return mlp(critic, torch.cat([obs, action], -1))[:, 0]


def min_q(critics: list[Layers], obs: Tensor, action: Tensor) -> Tensor:
    """Return the smaller of two critics, shape (B,)."""
    return torch.min(q_value(critics[0], obs, action), q_value(critics[1], obs, action))


def action_gradient(critics: list[Layers], obs: Tensor, action: Tensor) -> Tensor:
    """Return grad_a of the smaller critic by autograd, shape (B, A), itself differentiable in the action."""
    if not action.requires_grad:
        action = action.detach().requires_grad_()
    q = min_q(critics, obs, action)
    return torch.autograd.grad(q.sum(), action, create_graph=True)[0]


def gated_force(transform: Layers, gate: Layers, inputs: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bracket of equation (13), sigma_h * g + (1 - sigma_h) * T_h, and sigma_h itself."""
    elu = torch.nn.functional.elu
    sigma = torch.sigmoid(mlp(gate, inputs, elu))
    return sigma * g + (1 - sigma) * torch.tanh(mlp(transform, inputs, elu)), sigma


def unit_gradient(gradient: Tensor) -> Tensor:
    """Return g of equation (13): -grad_a Q / |grad_a Q|, with 1e-8 added to the norm."""
    return -gradient / (gradient.pow(2).sum(-1, keepdim=True).sqrt() + 1e-8)

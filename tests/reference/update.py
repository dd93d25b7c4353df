"""Make one update of SAC, SAC-NF or SAC-HPO from the equations, with autograd through everything.

The critics are separate. Gradients of Q inside the chain come from autograd with `create_graph`, so derivatives of the
objective go through them a second time ("double backward"). The package instead treats the unit gradient as a constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.reference import densities, leapfrog
from tests.reference.networks import Layers, action_gradient, gated_force, min_q, mlp, q_value, unit_gradient


@dataclass
class Networks:
    """Everything that one update changes, as leaf tensors."""

    policy: Layers
    critics: list[Layers]
    targets: list[Layers]
    log_alpha: Tensor
    flow: tuple[Tensor, Tensor, Tensor] | None = None
    transform: Layers = field(default_factory=list)
    gate: Layers = field(default_factory=list)
    raw_step_size: Tensor | None = None


Batch = dict[str, Tensor]
Noise = dict[str, Tensor]


def sample(net: Networks, cfg: Any, obs: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """Draw by the training sampler: action, log pi(a_0 | s) and rho_K. For SAC-HPO, Algorithm 2 of the paper."""
    mean, log_std = mlp(net.policy, obs, getattr(torch.nn.functional, cfg.policy_activation)).chunk(2, -1)
    std = torch.exp(log_std.clamp(-20, 2))
    u = mean + std * noise["base"]
    log_prob = densities.normal_log_prob(u, mean, std)
    if net.flow is not None:
        u, log_det = densities.radial_flow(u, *net.flow)
        log_prob = log_prob - log_det
    action, log_prob = torch.tanh(u), log_prob - densities.tanh_log_det(u)
    if cfg.sampler != "hamiltonian" or cfg.train_sampler != "hamiltonian":
        return action, log_prob, torch.zeros_like(action)

    def force(a: Tensor) -> Tensor:
        gradient = action_gradient(net.targets, obs, a)
        g = unit_gradient(gradient) if cfg.force_scale == "unit" else -gradient / net.log_alpha.exp().detach()
        inputs = torch.cat(([obs] if cfg.leapfrog_state_input else []) + [a, g], -1)
        return gated_force(net.transform, net.gate, inputs, g)[0] if cfg.force_gate == "gated" else g

    std_0, steps = cfg.momentum_std_train, cfg.leapfrog_steps
    momentum = std_0 * noise["momentum"] if cfg.momentum_noise else torch.zeros_like(action)
    step_size = torch.as_tensor(cfg.step_size, dtype=action.dtype)
    if net.raw_step_size is not None:
        step_size = torch.nn.functional.softplus(net.raw_step_size)
    inverse_mass = 1 / std_0**2 if cfg.mass_matrix == "consistent" else 1.0
    scales = leapfrog.tempering_scales(1 / std_0**2, steps) if cfg.tempering else None
    end, momentum = leapfrog.leapfrog(action, momentum, force, step_size, steps, inverse_mass, scales)
    clipped = end.clamp(-1, 1)
    if cfg.clip_gradient == "straight_through":
        clipped = end + (clipped - end).detach()
    return clipped, log_prob, momentum


def policy_objective(net: Networks, cfg: Any, obs: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Return equation (12), to be maximised, and log pi(a_0 | s)."""
    action, log_prob, momentum = sample(net, cfg, obs, noise)
    alpha = net.log_alpha.exp().detach()
    q = min_q(net.critics if cfg.objective_critic == "online" else net.targets, obs, action)
    objective = q - alpha * log_prob
    if cfg.sampler == "hamiltonian" and cfg.momentum_penalty:
        objective = objective - alpha / (2 * cfg.momentum_std_train**2) * momentum.pow(2).sum(-1)
    return objective.mean(), log_prob


def bellman_error(net: Networks, cfg: Any, batch: Batch, noise: Noise) -> Tensor:
    """Return the sum over two critics of the mean squared error to r + gamma (1 - terminated) V(s')."""
    next_action, next_log_prob, _ = sample(net, cfg, batch["next_obs"], noise)
    value = min_q(net.targets, batch["next_obs"], next_action) - net.log_alpha.exp() * next_log_prob
    target = (batch["reward"] + cfg.gamma * (1 - batch["terminated"]) * value).detach()
    return sum(((q_value(c, batch["obs"], batch["action"]) - target) ** 2).mean() for c in net.critics)


def step(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take one step along the gradient of `loss` in the optimizer's parameters only."""
    parameters = optimizer.param_groups[0]["params"]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def update(net: Networks, cfg: Any, optimizers: dict, batch: Batch, next_noise: Noise, noise: Noise) -> None:
    """Run Algorithm 1 in place: critics; policy with leapfrog networks; temperature; targets."""
    step(bellman_error(net, cfg, batch, next_noise), optimizers["critic"])
    objective, log_prob = policy_objective(net, cfg, batch["obs"], noise)
    step(-objective, optimizers["policy"])
    if cfg.alpha == "auto":
        entropy = (
            -math.prod(batch["action"].shape[1:]) if cfg.target_entropy == "auto" else cfg.target_entropy
        )
        step(-net.log_alpha.exp() * (log_prob + entropy).detach().mean(), optimizers["temperature"])
    with torch.no_grad():
        for critic, target in zip(net.critics, net.targets, strict=True):
            for online, slow in zip(sum(critic, ()), sum(target, ()), strict=True):
                slow.copy_((1 - cfg.tau) * slow + cfg.tau * online)

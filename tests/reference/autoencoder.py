"""Make one update of SAC-AE or SAC-AE-HPO as the authors' code does, with autograd through everything.

Every network is a list of plain tensors. One loss after the other goes backward, and its optimizers step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference import densities, leapfrog
from tests.reference.networks import Layers, action_gradient, gated_force, min_q, mlp, q_value, unit_gradient


@dataclass
class Networks:
    """Everything that one update changes, as leaf tensors; a head is (weight, bias, gain, offset)."""

    convolutions: Layers
    policy_head: list[Tensor]
    policy: Layers
    critic_head: list[Tensor]
    critics: list[Layers]
    target_convolutions: Layers
    target_head: list[Tensor]
    targets: list[Layers]
    decoder_linear: Layers
    decoder_convolutions: Layers
    log_alpha: Tensor
    transform: Layers = field(default_factory=list)
    gate: Layers = field(default_factory=list)


Batch = dict[str, Tensor]
Noise = dict[str, Tensor]


def convolve(layers: Layers, images: Tensor) -> Tensor:
    """Return features (B, F) of images (B, C, H, W) of bytes."""
    values = images / 255.0
    for k, (weight, bias) in enumerate(layers):
        values = torch.relu(F.conv2d(values, weight, bias, stride=2 if k == 0 else 1))
    return values.flatten(1)


def latent(head: list[Tensor], features: Tensor) -> Tensor:
    """Return latent vectors (B, L)."""
    weight, bias, gain, offset = head
    return torch.tanh(F.layer_norm(features @ weight.T + bias, bias.shape, gain, offset))


def decode(net: Networks, latents: Tensor, shape: tuple[int, ...], size: int) -> Tensor:
    """Return images (B, C, H, W) of latent vectors."""
    values = torch.relu(mlp(net.decoder_linear, latents)).reshape(-1, *shape)
    *inner, (weight, bias) = net.decoder_convolutions
    for inner_weight, inner_bias in inner:
        values = torch.relu(F.conv_transpose2d(values, inner_weight, inner_bias))
    lacking = size - (2 * (values.shape[-1] - 1) + 3)
    return F.conv_transpose2d(values, weight, bias, stride=2, output_padding=lacking)


def sample(net: Networks, cfg: Any, images: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Return the action and log pi(a_0 | s); the policy's loss stops at the convolutions."""
    state = latent(net.policy_head, convolve(net.convolutions, images).detach())
    mean, raw = mlp(net.policy, state).chunk(2, -1)
    std = torch.exp(-10 + 0.5 * (2 - -10) * (torch.tanh(raw) + 1))
    u = mean + std * noise["base"]
    log_prob = densities.normal_log_prob(u, mean, std) - densities.tanh_log_det(u)
    action = torch.tanh(u)
    if cfg.sampler != "hamiltonian":
        return action, log_prob
    target = latent(net.target_head, convolve(net.target_convolutions, images)).detach()

    def force(a: Tensor) -> Tensor:
        g = unit_gradient(action_gradient(net.targets, target, a))
        return gated_force(net.transform, net.gate, torch.cat([state, a, g], -1), g)[0]

    momentum = cfg.momentum_std_train * noise["momentum"]
    end, _ = leapfrog.leapfrog(action, momentum, force, cfg.step_size, cfg.leapfrog_steps)
    return end.clamp(-1, 1), log_prob


def step(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """Take one step of each optimizer along the loss."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    gradients = torch.autograd.grad(
        loss, [p for each in optimizers for group in each.param_groups for p in group["params"]]
    )
    parameters = [p for each in optimizers for group in each.param_groups for p in group["params"]]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for optimizer in optimizers:
        optimizer.step()


def update(
    net: Networks, cfg: Any, optimizers: dict, batch: Batch, next_noise: Noise, noise: Noise, number: int
) -> dict[str, float]:
    """Make update `number`: critics; policy, temperature and targets; autoencoder. Returns the losses."""
    alpha = net.log_alpha.exp().detach()
    next_action, next_log_prob = sample(net, cfg, batch["next_obs"], next_noise)
    z = latent(net.target_head, convolve(net.target_convolutions, batch["next_obs"]))
    value = min_q(net.targets, z, next_action) - alpha * next_log_prob
    target = (batch["reward"] + cfg.gamma * (1 - batch["terminated"]) * value).detach()
    z = latent(net.critic_head, convolve(net.convolutions, batch["obs"]))
    loss = sum(((q_value(critic, z, batch["action"]) - target) ** 2).mean() for critic in net.critics)
    losses = {"critic_loss": loss.item()}
    step(loss, optimizers["critic"])

    if number % cfg.policy_delay == 0:
        action, log_prob = sample(net, cfg, batch["obs"], noise)
        z = latent(net.critic_head, convolve(net.convolutions, batch["obs"])).detach()
        loss = (alpha * log_prob - min_q(net.critics, z, action)).mean()
        losses["policy_loss"] = loss.item()
        step(loss, optimizers["policy"])
        entropy = -batch["action"].shape[1]
        step(-(net.log_alpha.exp() * (log_prob + entropy).detach()).mean(), optimizers["temperature"])
        with torch.no_grad():
            for critic, slow in zip(net.critics, net.targets, strict=True):
                follow(sum(critic, ()), sum(slow, ()), cfg.tau)
            follow(sum(net.convolutions, ()), sum(net.target_convolutions, ()), cfg.encoder_tau)
            follow(net.critic_head, net.target_head, cfg.encoder_tau)

    if number % cfg.decoder_every == 0:
        features = convolve(net.convolutions, batch["obs"])
        z = latent(net.critic_head, features)
        size = batch["obs"].shape[-1]
        height = round((features.shape[1] / len(net.convolutions[-1][1])) ** 0.5)
        shape = len(net.convolutions[-1][1]), height, height
        bins = torch.floor(batch["obs"] / 8) / 32 + noise["dither"] / 32 - 0.5
        error = ((decode(net, z, shape, size) - bins) ** 2).mean()
        losses["reconstruction_loss"] = error.item()
        loss = error + cfg.latent_penalty * (0.5 * z.pow(2).sum(1)).mean()
        step(loss, optimizers["encoder"], optimizers["decoder"])
    return losses


def follow(online: Any, slow: Any, tau: float) -> None:
    """Move `slow` towards `online`."""
    for new, old in zip(online, slow, strict=True):
        old.copy_(tau * new + (1 - tau) * old)

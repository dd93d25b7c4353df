"""Draw reparametrised Gaussians and bound them by tanh, with log-densities and hand-written backward passes."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


def mean_and_log_std(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log-std, clamped to [-20, 2], each (B, A), for a network's outputs (B, 2 A)."""
    mean, log_std = outputs.chunk(2, dim=-1)
    return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


def gaussian_draw(outputs: Tensor, noise: Tensor, detached_rows: int = 0) -> tuple[Tensor, Tensor]:
    """Return u = mean + std * noise, (B, A), and its log-density, (B,), for outputs (B, 2 A) and noise (B, A).

    The first `detached_rows` rows carry no gradient.
    """
    drawn: tuple[Tensor, Tensor] = _Draw.apply(outputs, noise, detached_rows)  # type: ignore[no-untyped-call]
    return drawn


def tanh_squash(pre_tanh: Tensor, log_density: Tensor, detached_rows: int = 0) -> tuple[Tensor, Tensor]:
    """Return tanh(u), (B, A), and its log-density, (B,), for u (B, A) and its log-density (B,).

    log |d tanh(u) / du| is computed as -2 log cosh(u). The first `detached_rows` rows carry no gradient.
    """
    squashed: tuple[Tensor, Tensor] = _Squash.apply(pre_tanh, log_density, detached_rows)  # type: ignore[no-untyped-call]
    return squashed


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, noise: Tensor, detached_rows: int) -> tuple[Tensor, Tensor]:
        mean, log_std = mean_and_log_std(outputs)
        offset = log_std.exp() * noise
        constant = log_std.shape[-1] * 0.5 * math.log(2 * math.pi)
        log_density = -constant - torch.addcmul(log_std, noise, noise, value=0.5).sum(-1)
        is_inside = log_std == outputs[:, log_std.shape[-1] :]
        ctx.save_for_backward(offset[detached_rows:], is_inside[detached_rows:])
        ctx.detached_rows = detached_rows
        return mean + offset, log_density

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        offset, is_inside = ctx.saved_tensors
        of_drawn, of_log_density = (grad[ctx.detached_rows :] for grad in grad_outputs)
        of_log_std = torch.addcmul(-of_log_density.unsqueeze(-1), of_drawn, offset).mul_(is_inside)
        return F.pad(torch.cat([of_drawn, of_log_std], -1), (0, 0, ctx.detached_rows, 0)), None, None


class _Squash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_tanh: Tensor, log_density: Tensor, detached_rows: int) -> tuple[Tensor, Tensor]:
        action = torch.tanh(pre_tanh)
        log_cosh = torch.logaddexp(pre_tanh, -pre_tanh).sum(-1) - pre_tanh.shape[-1] * math.log(2)
        ctx.save_for_backward(action[detached_rows:])
        ctx.detached_rows = detached_rows
        return action, torch.add(log_density, log_cosh, alpha=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (action,) = ctx.saved_tensors
        of_action, of_log_density = (grad[ctx.detached_rows :] for grad in grad_outputs)
        # The derivative of log cosh is tanh.
        of_pre_tanh = torch.ops.aten.tanh_backward(of_action, action)
        of_pre_tanh.addcmul_(action, of_log_density.unsqueeze(-1), value=2)
        return F.pad(of_pre_tanh, (0, 0, ctx.detached_rows, 0)), grad_outputs[1], None

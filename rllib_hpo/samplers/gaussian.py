"""The tanh-Gaussian policy of SAC (Haarnoja et al. 2018, arXiv 1801.01290)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rllib_hpo.critics import ConditionedCritic
from rllib_hpo.networks import ReluMLP, is_learning
from rllib_hpo.samplers.base import Mode, Noise, Sample, Sampler
from rllib_hpo.settings import ActorCriticSettings

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


class GaussianPolicy(nn.Module):
    """Mean and log standard deviation of a diagonal Gaussian, (B, S) -> (B, A), (B, A)."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_units: int,
        num_layers: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.network = ReluMLP(obs_dim, hidden_units, num_layers, 2 * action_dim, generator)

    def forward(self, obs: Tensor, detached_rows: int = 0) -> tuple[Tensor, Tensor]:
        """Mean and log-std (clamped to [-20, 2]); the first `detached_rows` rows carry no gradient."""
        return _mean_and_log_std(self.network(obs, detached_rows))

    def draw(self, obs: Tensor, noise: Tensor, detached_rows: int = 0) -> tuple[Tensor, Tensor]:
        """u = mean + std * noise, (B, A), and its log-density, (B,), of obs (B, S) and noise (B, A)."""
        outputs = self.network(obs, detached_rows)
        if not is_learning():
            mean, log_std = _mean_and_log_std(outputs)
            return mean + log_std.exp() * noise, gaussian_log_prob(noise, log_std)
        drawn: tuple[Tensor, Tensor] = _Draw.apply(outputs, noise, detached_rows)  # type: ignore[no-untyped-call]
        return drawn


def _mean_and_log_std(outputs: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_std = outputs.chunk(2, dim=-1)
    return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


def gaussian_log_prob(noise: Tensor, log_std: Tensor) -> Tensor:
    """log N(mean + std * noise; mean, std^2), (B,), of noise and log_std (B, A)."""
    return (-0.5 * (noise * noise + math.log(2 * math.pi)) - log_std).sum(-1)


def tanh_log_det(pre_tanh: Tensor) -> Tensor:
    """log |d tanh(u) / du|, (B,), of u (B, A): log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), exactly."""
    return (2 * (math.log(2) - pre_tanh - F.softplus(-2 * pre_tanh))).sum(-1)


def tanh_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Action tanh(mean + std * noise), (B, A), and its log-density, (B,)."""
    return squash(mean + log_std.exp() * noise, gaussian_log_prob(noise, log_std))


def squash(pre_tanh: Tensor, log_density: Tensor, detached_rows: int = 0) -> tuple[Tensor, Tensor]:
    """tanh(u), (B, A), and its log-density, (B,), of u (B, A) and that of u; some rows without a gradient."""
    if not is_learning():
        return torch.tanh(pre_tanh), log_density - tanh_log_det(pre_tanh)
    squashed: tuple[Tensor, Tensor] = _Squash.apply(pre_tanh, log_density, detached_rows)  # type: ignore[no-untyped-call]
    return squashed


class _Draw(torch.autograd.Function):
    """`GaussianPolicy.draw` of a network's outputs (B, 2 A)."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, noise: Tensor, detached_rows: int) -> tuple[Tensor, Tensor]:
        mean, log_std = _mean_and_log_std(outputs)
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
    """`squash`, with log |d tanh(u) / du| as -2 log cosh(u)."""

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


class GaussianSampler(Sampler):
    """SAC's sampler: a = tanh(u), u ~ N(mean(s), std(s)^2)."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        settings: ActorCriticSettings,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.noise_shapes = {"base": (action_dim,)}
        self.policy = GaussianPolicy(
            obs_dim, action_dim, settings.hidden_units, settings.policy_layers, generator
        )

    def forward(
        self,
        obs: Tensor,
        noise: Noise,
        *,
        mode: Mode,
        critic: ConditionedCritic,
        alpha: Tensor,
        detached_rows: int = 0,
    ) -> Sample:
        """Draws one action per state; see `Sampler.forward`."""
        return Sample(*squash(*self.policy.draw(obs, noise["base"], detached_rows), detached_rows))

"""The tanh-Gaussian policy of SAC (Haarnoja et al. 2018, arXiv 1801.01290)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rllib_hpo.critics import ConditionedCritic
from rllib_hpo.networks import ReluMLP
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
        """What `tanh_gaussian` makes of mean, log-std and noise (B, A), with few operations for the gradient."""
        outputs = self.network(obs, detached_rows)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return tanh_gaussian(*_mean_and_log_std(outputs), noise)
        drawn: tuple[Tensor, Tensor] = _TanhGaussian.apply(outputs, noise, detached_rows)  # type: ignore[no-untyped-call]
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
    pre_tanh = mean + log_std.exp() * noise
    return torch.tanh(pre_tanh), gaussian_log_prob(noise, log_std) - tanh_log_det(pre_tanh)


class _TanhGaussian(torch.autograd.Function):
    """`tanh_gaussian` of a network's outputs (B, 2 A), with log |d tanh(u) / du| as -2 log cosh(u)."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, noise: Tensor, detached_rows: int) -> tuple[Tensor, Tensor]:
        mean, log_std = _mean_and_log_std(outputs)
        offset = log_std.exp() * noise
        pre_tanh = mean + offset
        action = torch.tanh(pre_tanh)
        # -log pi, but for what is constant: (n^2 + log 2 pi) / 2 + log std - 2 log cosh(u), summed.
        terms = torch.sub(log_std, torch.logaddexp(pre_tanh, -pre_tanh), alpha=2)
        constant = outputs.shape[-1] // 2 * (0.5 * math.log(2 * math.pi) + 2 * math.log(2))
        log_prob = -constant - torch.addcmul(terms, noise, noise, value=0.5).sum(-1)
        is_inside = log_std == outputs[:, log_std.shape[-1] :]
        ctx.detached_rows = detached_rows
        ctx.save_for_backward(*(value[detached_rows:] for value in (action, offset, is_inside)))
        ctx.set_materialize_grads(False)
        return action, log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor, None, None]:
        action, offset, is_inside = ctx.saved_tensors
        of_action, of_log_prob = (None if g is None else g[ctx.detached_rows :] for g in grad_outputs)
        dim = action.shape[-1]
        of_outputs = action.new_empty(len(action), 2 * dim)
        of_mean, of_log_std = of_outputs[:, :dim], of_outputs[:, dim:]
        if of_action is None:
            of_mean.zero_()
        else:
            torch.ops.aten.tanh_backward.grad_input(of_action, action, grad_input=of_mean)
        if of_log_prob is not None:  # d log cosh(u) / du = tanh(u)
            of_mean.addcmul_(action, of_log_prob.unsqueeze(-1), value=2)
        torch.mul(of_mean, offset, out=of_log_std)
        if of_log_prob is not None:
            of_log_std.sub_(of_log_prob.unsqueeze(-1))
        of_log_std.mul_(is_inside)
        return F.pad(of_outputs, (0, 0, ctx.detached_rows, 0)), None, None


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
        return Sample(*self.policy.draw(obs, noise["base"], detached_rows))

"""Draw actions from the tanh-Gaussian policy of SAC (Haarnoja et al. 2018, arXiv 1801.01290)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from rllib_hpo.kernels import wants_gradients
from rllib_hpo.kernels.squash import gaussian_draw, mean_and_log_std, tanh_squash
from rllib_hpo.networks.critics import ActionValue
from rllib_hpo.networks.mlp import make_mlp
from rllib_hpo.samplers.base import Given, Mode, Noise, Sample, Sampler
from rllib_hpo.settings import Activation, ActorCriticSettings


class GaussianPolicy(nn.Module):
    """Predict mean and log standard deviation of a diagonal Gaussian, (B, S) -> (B, A), (B, A)."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_units: int | Sequence[int],
        num_layers: int,
        generator: torch.Generator | None = None,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        sizes = obs_dim, hidden_units, num_layers, 2 * action_dim
        self.network: nn.Module = make_mlp(*sizes, generator, activation)

    def forward(self, obs: Tensor, detached_rows: int = 0) -> tuple[Tensor, Tensor]:
        """Return mean and log-std (clamped to [-20, 2]); the first `detached_rows` rows carry no gradient."""
        return mean_and_log_std(self.network(obs, detached_rows))

    def draw(self, obs: Tensor, noise: Tensor, detached_rows: int = 0) -> tuple[Tensor, Tensor]:
        """Return u = mean + std * noise, (B, A), and its log-density, (B,), for obs (B, S) and noise (B, A)."""
        outputs = self.network(obs, detached_rows)
        if not wants_gradients():
            mean, log_std = mean_and_log_std(outputs)
            return mean + log_std.exp() * noise, gaussian_log_prob(noise, log_std)
        return gaussian_draw(outputs, noise, detached_rows)

    def draw_alone(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Return u of `draw`, (B, A), without its log-density."""
        mean, log_std = mean_and_log_std(self.network(obs))
        return mean + log_std.exp() * noise


def gaussian_log_prob(noise: Tensor, log_std: Tensor) -> Tensor:
    """Return log N(mean + std * noise; mean, std^2), (B,), for noise and log_std (B, A)."""
    return (-0.5 * (noise * noise + math.log(2 * math.pi)) - log_std).sum(-1)


def tanh_log_det(pre_tanh: Tensor) -> Tensor:
    """Return log |d tanh(u) / du|, (B,), for u (B, A): log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), exactly."""
    return (2 * (math.log(2) - pre_tanh - F.softplus(-2 * pre_tanh))).sum(-1)


def tanh_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the action tanh(mean + std * noise), (B, A), and its log-density, (B,)."""
    return squash(mean + log_std.exp() * noise, gaussian_log_prob(noise, log_std))


def squash(pre_tanh: Tensor, log_density: Tensor, detached_rows: int = 0) -> tuple[Tensor, Tensor]:
    """Return tanh(u), (B, A), and its log-density, (B,), for u (B, A) and its log-density.

    The first `detached_rows` rows carry no gradient.
    """
    if not wants_gradients():
        return torch.tanh(pre_tanh), log_density - tanh_log_det(pre_tanh)
    return tanh_squash(pre_tanh, log_density, detached_rows)


class GaussianSampler(Sampler):
    """Draw SAC's actions: a = tanh(u), u ~ N(mean(s), std(s)^2)."""

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
            obs_dim,
            action_dim,
            settings.hidden_units,
            settings.policy_layers,
            generator,
            settings.policy_activation,
        )

    def forward(
        self,
        obs: Tensor,
        noise: Noise,
        *,
        mode: Mode,
        critic: ActionValue,
        alpha: Tensor,
        detached_rows: int = 0,
    ) -> Sample:
        """Draw one action per state; see `Sampler.forward`."""
        return Sample(*squash(*self.policy.draw(obs, noise["base"], detached_rows), detached_rows))

    @override
    def action(self, obs: Tensor, noise: Noise, *, mode: Mode, given: Given) -> Tensor:
        return torch.tanh(self.policy.draw_alone(obs, noise["base"]))

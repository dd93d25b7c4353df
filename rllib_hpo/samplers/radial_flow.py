"""Draw SAC-NF's actions: radial flows between the Gaussian and the tanh (Mazoure et al. 2019, arXiv 1905.06893)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from rllib_hpo.kernels.radial_flow import radial_flow
from rllib_hpo.networks.critics import ActionValue
from rllib_hpo.samplers.base import Given, Mode, Noise, Sample, Sampler
from rllib_hpo.samplers.gaussian import GaussianPolicy, squash
from rllib_hpo.settings import SACNFSettings

CENTER_STD = 0.1
"""Std of the initial centers; with equal centers all layers would stay equal."""


class RadialFlow(nn.Module):
    """Apply radial flows z' = z + beta h (z - z0), h = 1 / (a + r), r = |z - z0|.

    Rezende & Mohamed 2015 (arXiv 1505.05770), eq. (14) and A.2: a = softplus(raw_a) > 0 and
    beta = -a + softplus(raw_b) > -a make every layer invertible. The parameters do not depend on the state. The
    stack is initially the identity (softplus(raw_b) = a).

    Args:
        dim: Dimension D of z.
        num_flows: Number of layers.
        generator: Generator of the initial centers.
    """

    def __init__(self, dim: int, num_flows: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        raw_one = math.log(math.e - 1)  # softplus(raw_one) = 1
        self.center = nn.Parameter(CENTER_STD * torch.randn((num_flows, dim), generator=generator))
        self.raw_a = nn.Parameter(torch.full((num_flows,), raw_one))
        self.raw_b = nn.Parameter(torch.full((num_flows,), raw_one))

    def forward(self, z: Tensor, detached_rows: int = 0) -> tuple[Tensor, Tensor]:
        """Return z' (B, D) and sum log |det dz'/dz| (B,) for z (B, D).

        The first `detached_rows` rows carry no gradient.
        """
        return radial_flow(z, self.center, *self._a_and_beta(), detached_rows)

    def inverse(self, z: Tensor) -> Tensor:
        """Return the z (B, D) that `forward` maps to the given one: per layer the positive root of a quadratic in r."""
        layers = list(zip(self.center, *self._a_and_beta(), strict=True))
        for center, a, beta in reversed(layers):
            offset = z - center
            stretched = torch.linalg.vector_norm(offset, dim=-1)
            b = a + beta - stretched
            root = torch.sqrt(b * b + 4 * a * stretched)
            # This form of the root avoids cancellation for either sign of b.
            r = torch.where(b > 0, 2 * a * stretched / (b + root), 0.5 * (root - b))
            z = center + offset / (1 + beta / (a + r)).unsqueeze(-1)
        return z

    def _a_and_beta(self) -> tuple[Tensor, Tensor]:
        a = F.softplus(self.raw_a)
        return a, F.softplus(self.raw_b) - a


class RadialFlowSampler(Sampler):
    """Draw a = tanh(flow(z)), z ~ N(mean(s), std(s)^2); the noise-free action is that of the mean."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        settings: SACNFSettings,
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
        self.flow = RadialFlow(action_dim, settings.num_flows, generator)

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
        z, log_density = self.policy.draw(obs, noise["base"], detached_rows)
        pre_tanh, log_det = self.flow(z, detached_rows)
        return Sample(*squash(pre_tanh, log_density - log_det, detached_rows))

    @override
    def action(self, obs: Tensor, noise: Noise, *, mode: Mode, given: Given) -> Tensor:
        return torch.tanh(self.flow(self.policy.draw_alone(obs, noise["base"]))[0])

"""SAC-NF's sampler: radial flows between the Gaussian and the tanh (Mazoure et al. 2019, arXiv 1905.06893)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_hpo.critics import ConditionedCritic
from rllib_hpo.samplers.base import Mode, Noise, Sample, Sampler
from rllib_hpo.samplers.gaussian import GaussianPolicy, squash
from rllib_hpo.settings import SACNFSettings

CENTER_STD = 0.1
"""Std of the initial centers: with equal centers the layers would stay copies of each other."""
SMALL = 1e-20
"""Radii below it count as this one where they divide: a center has no direction, and needs no NaN."""


class RadialFlow(nn.Module):
    """A stack of radial flows z' = z + beta h (z - z0), h = 1 / (a + r), r = |z - z0|.

    Rezende & Mohamed 2015 (arXiv 1505.05770), eq. (14) and A.2: a = softplus(raw_a) > 0 and
    beta = -a + softplus(raw_b) > -a make every layer invertible. The parameters are global, not
    functions of the state. The stack starts as the identity (softplus(raw_b) = a).

    Args:
        dim: Dimension D of z.
        num_flows: Layers.
        generator: Where the initial centers are drawn from.
    """

    def __init__(self, dim: int, num_flows: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        raw_one = math.log(math.e - 1)  # softplus(raw_one) = 1
        self.center = nn.Parameter(CENTER_STD * torch.randn((num_flows, dim), generator=generator))
        self.raw_a = nn.Parameter(torch.full((num_flows,), raw_one))
        self.raw_b = nn.Parameter(torch.full((num_flows,), raw_one))

    def forward(self, z: Tensor, detached_rows: int = 0) -> tuple[Tensor, Tensor]:
        """z' (B, D) and sum log |det dz'/dz| (B,) of z (B, D); the first `detached_rows` rows carry no gradient."""
        a, beta = self._a_and_beta()
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return _flow(z, self.center, a, beta)[:2]
        result: tuple[Tensor, Tensor] = _RadialFlow.apply(z, detached_rows, self.center, a, beta)  # type: ignore[no-untyped-call]
        return result

    def inverse(self, z: Tensor) -> Tensor:
        """The z (B, D) that `forward` maps to the given one: per layer the positive root of a quadratic in r."""
        layers = list(zip(self.center, *self._a_and_beta(), strict=True))
        for center, a, beta in reversed(layers):
            offset = z - center
            stretched = torch.linalg.vector_norm(offset, dim=-1)
            b = a + beta - stretched
            root = torch.sqrt(b * b + 4 * a * stretched)
            # The form of the root that does not cancel, for either sign of b.
            r = torch.where(b > 0, 2 * a * stretched / (b + root), 0.5 * (root - b))
            z = center + offset / (1 + beta / (a + r)).unsqueeze(-1)
        return z

    def _a_and_beta(self) -> tuple[Tensor, Tensor]:
        a = F.softplus(self.raw_a)
        return a, F.softplus(self.raw_b) - a


class _Layers(NamedTuple):
    """What the derivatives of L layers need."""

    offsets: list[Tensor]
    """z - z0, L times (B, D)."""
    radius: Tensor
    """r, (B, L)."""
    h: Tensor
    """1 / (a + r), (B, L)."""
    stretch: Tensor
    """beta h, (B, L)."""


def _flow(z: Tensor, centers: Tensor, a: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, _Layers]:
    """z' (B, D), sum log |det dz'/dz| (B,), and the layers' values."""
    offsets, radii, hs, stretches = [], [], [], []
    for center, a_k, beta_k in zip(centers, a, beta, strict=True):
        offset = z - center
        radius = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
        h = 1 / (a_k + radius)
        stretch = beta_k * h
        z = torch.addcmul(z, stretch, offset)
        offsets.append(offset)
        radii.append(radius)
        hs.append(h)
        stretches.append(stretch)
    layers = _Layers(offsets, torch.cat(radii, -1), torch.cat(hs, -1), torch.cat(stretches, -1))
    # 1 + beta h + beta h' r = 1 + beta h (1 - h r) = 1 + beta a h^2.
    log_dets = (z.shape[-1] - 1) * torch.log1p(layers.stretch) + torch.log1p(layers.stretch * a * layers.h)
    return z, log_dets.sum(-1), layers


class _RadialFlow(torch.autograd.Function):
    """`_flow` with its derivatives written out: autograd's would take four times as many small operations."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, detached_rows: int, centers: Tensor, a: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor]:
        moved, log_det, layers = _flow(z, centers, a, beta)
        offsets, rest = layers.offsets, (layers.radius, layers.h, layers.stretch)
        ctx.detached_rows = detached_rows
        ctx.save_for_backward(a, beta, *(value[detached_rows:] for value in (*rest, *offsets)))
        return moved, log_det

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        a, beta, radius, h, stretch, *offsets = ctx.saved_tensors
        of_z, of_log_det = grad_outputs[0][ctx.detached_rows :], grad_outputs[1][ctx.detached_rows :, None]
        # Of all determinants at once: D - 1 times log(1 + stretch), and log(1 + stretch a h).
        last = of_log_det / (1 + stretch * a * h)
        of_h, of_a = last * stretch * a, last * stretch * h
        of_stretch = (of_z.shape[-1] - 1) * of_log_det / (1 + stretch) + last * a * h
        per_layer = [
            each.split(1, -1) for each in (of_stretch, of_h, -h * h, radius.clamp_min(SMALL), stretch)
        ]
        of_stretches, of_radii, of_offsets = [], [], []
        for k, (of_stretch_k, of_h_k, minus_h2, radius_k, stretch_k) in reversed(
            list(enumerate(zip(*per_layer, strict=True)))
        ):
            of_stretches.append(of_stretch_k + (of_z * offsets[k]).sum(-1, keepdim=True))
            of_radii.append(torch.addcmul(of_h_k, beta[k], of_stretches[-1]) * minus_h2)
            of_offsets.append(torch.addcmul(of_z * stretch_k, of_radii[-1] / radius_k, offsets[k]))
            of_z = of_z + of_offsets[-1]
        of_beta = (torch.cat(of_stretches[::-1], -1) * h).sum(0)
        of_a = (of_a + torch.cat(of_radii[::-1], -1)).sum(0)
        of_centers = -torch.stack(of_offsets[::-1]).sum(1)
        return F.pad(of_z, (0, 0, ctx.detached_rows, 0)), None, of_centers, of_a, of_beta


class RadialFlowSampler(Sampler):
    """a = tanh(flow(z)), z ~ N(mean(s), std(s)^2); noise-free it is the mean through the flow."""

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
            obs_dim, action_dim, settings.hidden_units, settings.policy_layers, generator
        )
        self.flow = RadialFlow(action_dim, settings.num_flows, generator)

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
        z, log_density = self.policy.draw(obs, noise["base"], detached_rows)
        pre_tanh, log_det = self.flow(z, detached_rows)
        return Sample(*squash(pre_tanh, log_density - log_det, detached_rows))

"""Compute radial flow layers with hand-written derivatives; autograd would run four times as many small operations."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_hpo.kernels import wants_gradients

SMALL = 1e-20
"""Lower bound on radii in divisions; it avoids NaN at a center, which has no direction."""


def radial_flow(
    z: Tensor, centers: Tensor, a: Tensor, beta: Tensor, detached_rows: int = 0
) -> tuple[Tensor, Tensor]:
    """Transform z by L layers z' = z + beta h (z - z0), h = 1 / (a + |z - z0|).

    Args:
        z: Inputs, (B, D).
        centers: Centers z0, (L, D).
        a: Parameters a, (L,), positive.
        beta: Parameters beta, (L,), above -a.
        detached_rows: Number of leading rows that carry no gradient.

    Returns:
        z' (B, D), and sum log |det dz'/dz| (B,).
    """
    if not wants_gradients():
        return _flow(z, centers, a, beta)[:2]
    result: tuple[Tensor, Tensor] = _RadialFlow.apply(z, detached_rows, centers, a, beta)  # type: ignore[no-untyped-call]
    return result


class _Layers(NamedTuple):
    """Values of L layers that their derivatives need."""

    offsets: list[Tensor]
    """z - z0, L times (B, D)."""
    radius: Tensor
    """r, (B, L)."""
    h: Tensor
    """1 / (a + r), (B, L)."""
    stretch: Tensor
    """beta h, (B, L)."""


def _flow(z: Tensor, centers: Tensor, a: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, _Layers]:
    """Return z' (B, D), sum log |det dz'/dz| (B,), and the layers' values."""
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
        # All determinants at once: D - 1 times log(1 + stretch), and log(1 + stretch a h).
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

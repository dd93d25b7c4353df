"""Compute log-densities of the base policies by the change of variables, with explicit determinants."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normal_log_prob(x: Tensor, mean: Tensor | float = 0.0, std: Tensor | float = 1.0) -> Tensor:
    """Return log N(x | mean, std^2 I), summed over the last dimension."""
    std = torch.as_tensor(std, dtype=x.dtype)
    return (-((x - mean) ** 2) / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)).sum(-1)


def tanh_log_det(u: Tensor) -> Tensor:
    """Return log |d tanh(u) / d u|, summed: sum log(1 - tanh(u)^2), from cosh, for moderate u."""
    return -2 * torch.log(torch.cosh(u)).sum(-1)


def radial_layer(z: Tensor, center: Tensor, a: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Apply one radial flow layer of Rezende & Mohamed (2015), equation (14); return its log-determinant too."""
    dim = z.shape[-1]
    r = (z - center).pow(2).sum(-1).sqrt()
    h, h_prime = 1 / (a + r), -1 / (a + r) ** 2
    det = (1 + beta * h) ** (dim - 1) * (1 + beta * h + beta * h_prime * r)
    return z + beta * h[..., None] * (z - center), torch.log(det)


def radial_flow(z: Tensor, center: Tensor, raw_a: Tensor, raw_b: Tensor) -> tuple[Tensor, Tensor]:
    """Apply radial layers with a = softplus(raw_a) > 0 and beta = -a + softplus(raw_b) > -a."""
    log_det = torch.zeros(z.shape[:-1], dtype=z.dtype)
    for layer in range(center.shape[0]):
        a = torch.log(1 + torch.exp(raw_a[layer]))
        beta = -a + torch.log(1 + torch.exp(raw_b[layer]))
        z, layer_log_det = radial_layer(z, center[layer], a, beta)
        log_det = log_det + layer_log_det
    return z, log_det

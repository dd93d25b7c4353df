"""Add exploration noise to actions: independent at each step, or an Ornstein-Uhlenbeck process."""

from __future__ import annotations

import torch
from torch import Tensor


def explored(
    action: Tensor,
    generator: torch.Generator,
    std: float,
    theta: float = 1.0,
    memory: dict[str, Tensor] | None = None,
) -> Tensor:
    """Return actions with noise, (B, A), clipped to [-1, 1].

    Args:
        action: Actions without noise, (B, A).
        generator: Generator of standard normals.
        std: Standard deviation of the noise of one step.
        theta: Rate at which an Ornstein-Uhlenbeck process returns to 0, per step.
        memory: If it holds "noise" (B, A), that is the process x <- (1 - theta) x + std xi, and is updated in place.
    """
    drawn = torch.randn(action.shape, generator=generator, device=generator.device).to(action.device)
    noise = std * drawn
    if memory is not None and "noise" in memory:
        noise = memory["noise"] = (1 - theta) * memory["noise"] + noise
    return (action + noise).clamp(-1, 1)

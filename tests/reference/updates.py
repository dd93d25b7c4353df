"""Write what every float64 transcription of an update does to its parameters, which it holds by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


@torch.no_grad()
def track(parameters: Mapping[str, Tensor], target: str, online: str, tau: float) -> None:
    """Move all parameters below `target` by tau towards those below `online`."""
    for name, value in parameters.items():
        if name.startswith(f"{target}."):
            value.mul_(1 - tau).add_(tau * parameters[online + name.removeprefix(target)])


def step(
    parameters: Mapping[str, Tensor], online: Iterable[str], optimizer: torch.optim.Optimizer, loss: Tensor
) -> None:
    """Take a gradient step, with gradients of this loss alone in all `online` parameters."""
    for name in online:
        parameters[name].grad = None
    loss.backward()
    optimizer.step()

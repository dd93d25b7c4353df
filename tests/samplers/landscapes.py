"""Define values of actions in closed form, as critics without networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Value = Callable[[Tensor], Tensor]
"""Function from actions (B, A) to values (B,)."""


class Landscape(nn.Module):
    """Replace `Critics` by Q(s, a) = value(a) for any state, with its gradient by autograd."""

    def __init__(self, value: Value) -> None:
        super().__init__()
        self.value = value

    def condition(self, obs: Tensor, num: int | None = None) -> Landscape:
        """Return the same at states (B, S)."""
        return self

    def minimum(self, *arguments: Tensor) -> Tensor:
        """Return values (B,) at actions (B, A), with or without states in front."""
        return self.value(arguments[-1])

    first = minimum

    def minimum_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (B,) and gradient (B, A), both without a graph."""
        with torch.enable_grad():
            action = action.detach().requires_grad_()
            value = self.value(action)
            (gradient,) = torch.autograd.grad(value.sum(), action)
        return value.detach(), gradient


def hill_and_bump(action: Tensor) -> Tensor:
    """Return a quadratic with a smooth bump beside its top, (B,) for actions (B, 2)."""
    center, bump = action.new_tensor([0.3, -0.2]), action.new_tensor([-0.5, 0.5])
    quadratic = 1 - ((action - center) ** 2).sum(-1)
    return quadratic + torch.exp(-((action - bump) ** 2).sum(-1) / 0.1)

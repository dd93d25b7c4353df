"""What happens when a loss is not finite: an error at once, or, on a device that must not wait, at the next look."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rllib_hpo.errors import NonFiniteError

LOSSES = ("critic loss", "policy loss", "temperature loss")
"""In the order in which an update takes its steps."""


class Guard:
    """Looks at every loss before the step that follows from it, and raises at once."""

    def begin(self) -> None:
        """Is told that an update begins."""

    def check(self, loss: Tensor, name: str) -> Tensor | None:
        """Whether the step is to be skipped, as a float32 scalar of 0 or 1; None for never.

        Raises:
            NonFiniteError: If the loss is not finite.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteError(f"The {name} is {value}")
        return None

    @property
    def frozen(self) -> Tensor | None:
        """Whether all further steps are skipped; None for never."""
        return None


class DeviceGuard(Guard):
    """Freezes on the device: from the first loss on that is not finite, no step changes anything.

    The host looks when it wants to (`raise_if_frozen`). Everything is a tensor that keeps its place, so the
    checks may be captured in a CUDA graph.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._frozen = torch.zeros((), dtype=torch.float32, device=device)
        self._updates = torch.zeros((), dtype=torch.int64, device=device)
        self._passed = torch.zeros((), dtype=torch.int64, device=device)

    def restart(self, num_updates: int) -> None:
        """Begins anew, after `num_updates` updates."""
        self._frozen.zero_()
        self._updates.fill_(num_updates)

    def begin(self) -> None:
        """Counts the update, unless frozen."""
        frozen = self._frozen.long()
        self._updates.add_(1 - frozen)
        self._passed.mul_(frozen)

    def check(self, loss: Tensor, name: str) -> Tensor:
        """Counts a loss that is finite; freezes at one that is not. `name` follows from how many were counted."""
        loss = loss.detach()
        self._frozen.logical_or_(
            loss - loss != 0
        )  # a number minus itself is 0, unless it is infinite or none
        self._passed.add_(1 - self._frozen.long())
        return self._frozen

    @property
    def frozen(self) -> Tensor:
        """1.0 once a loss was not finite, else 0.0; a float32 scalar on the device."""
        return self._frozen

    def raise_if_frozen(self) -> None:
        """Waits for the device.

        Raises:
            NonFiniteError: If a loss was not finite, naming it and its update.
        """
        if self._frozen.item():
            name = LOSSES[int(self._passed.item())]
            raise NonFiniteError(f"The {name} is not finite at update {int(self._updates.item())}")

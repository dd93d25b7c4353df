"""What happens when a loss is not finite: an error at once, or, on a device that must not wait, at the next look."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rllib_hpo.errors import NonFiniteError


class Guard:
    """Looks at every loss before the step that follows from it, and raises at once."""

    def begin(self, kind: str) -> None:
        """Begins an update of that kind."""

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

    The host looks when it wants to (`raise_if_frozen`), and finds the first such loss by counting back the checks that
    found the device frozen: updates of different kinds check different losses. All on the device are tensors that
    keep their place, so the checks may be captured in a CUDA graph.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._frozen = torch.zeros((), dtype=torch.float32, device=device)
        self._num_found_frozen = torch.zeros((), dtype=torch.float64, device=device)
        self._checked: dict[str, list[str]] = {}
        self._checked_now: list[str] = []

    def restart(self) -> None:
        """Thaws, and counts from here."""
        self._frozen.zero_()
        self._num_found_frozen.zero_()

    def begin(self, kind: str) -> None:
        """Notes anew which losses an update of that kind checks; a captured one checks those of its capture."""
        self._checked_now = self._checked[kind] = []

    def check(self, loss: Tensor, name: str) -> Tensor:
        """Freezes at a loss that is not finite."""
        self._checked_now.append(name)
        loss = loss.detach()
        # A number minus itself is 0, unless it is infinite or none.
        self._frozen.logical_or_(loss - loss)
        self._num_found_frozen.add_(self._frozen)
        return self._frozen

    @property
    def frozen(self) -> Tensor:
        """1.0 once a loss was not finite, else 0.0; a float32 scalar on the device."""
        return self._frozen

    def raise_if_frozen(self, num_updates: int, kind: Callable[[int], str]) -> None:
        """Waits for the device, after `num_updates` updates.

        Args:
            num_updates: Made so far.
            kind: Of an update, by its number from 1.

        Raises:
            NonFiniteError: If a loss was not finite, naming it and its update.
        """
        num_found, update = int(self._num_found_frozen.item()), num_updates
        if not num_found:
            return
        while num_found > len(checked := self._checked[kind(update)]):
            num_found -= len(checked)
            update -= 1
        raise NonFiniteError(f"The {checked[-num_found]} is not finite at update {update}")

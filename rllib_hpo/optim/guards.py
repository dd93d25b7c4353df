"""Handle non-finite losses: raise at once, or freeze the device's steps and raise at the next check."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rllib_hpo.errors import NonFiniteError


class Guard:
    """Check every loss before its step, and raise at once."""

    def begin(self, kind: str) -> None:
        """Begin an update of that kind."""

    def check(self, loss: Tensor, name: str) -> Tensor | None:
        """Return whether to skip the step, as a float32 scalar of 0 or 1; None for never.

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
    """Freeze all steps on the device from the first non-finite loss on.

    `raise_if_frozen` synchronizes once and finds the first such loss from the number of checks made since: updates of
    different kinds check different losses. All state is in tensors at fixed addresses, so that checks can be captured
    in a CUDA graph.

    Args:
        device: Device of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self._frozen = torch.zeros((), dtype=torch.float32, device=device)
        self._checks_since_failure = torch.zeros((), dtype=torch.float64, device=device)
        self._checked: dict[str, list[str]] = {}
        self._checked_now: list[str] = []

    def tensors(self) -> list[Tensor]:
        """Return the tensors that hold the state."""
        return [self._frozen, self._checks_since_failure]

    def restart(self) -> None:
        """Unfreeze, and restart the count."""
        self._frozen.zero_()
        self._checks_since_failure.zero_()

    def begin(self, kind: str) -> None:
        """Reset the list of losses that an update of this kind checks; a captured one checks those of its capture."""
        self._checked_now = self._checked[kind] = []

    def check(self, loss: Tensor, name: str) -> Tensor:
        """Freeze if a loss is not finite."""
        self._checked_now.append(name)
        loss = loss.detach()
        # x - x is 0 for a finite x and NaN otherwise.
        self._frozen.logical_or_(loss - loss)
        self._checks_since_failure.add_(self._frozen)
        return self._frozen

    @property
    def frozen(self) -> Tensor:
        """1.0 once a loss was not finite, else 0.0; a float32 scalar on the device."""
        return self._frozen

    def raise_if_frozen(self, num_updates: int, kind: Callable[[int], str]) -> None:
        """Wait for the device, and raise if a loss was not finite.

        Args:
            num_updates: Number of updates so far.
            kind: Function from the number of an update (from 1) to its kind.

        Raises:
            NonFiniteError: If a loss was not finite, naming it and its update.
        """
        num_found, update = int(self._checks_since_failure.item()), num_updates
        if not num_found:
            return
        while num_found > len(checked := self._checked[kind(update)]):
            num_found -= len(checked)
            update -= 1
        raise NonFiniteError(f"The {checked[-num_found]} is not finite at update {update}")

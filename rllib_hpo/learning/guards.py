"""What happens when a loss is not finite: an error at once, or, on a device that must not wait, at the next look."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rllib_hpo.errors import NonFiniteError


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

    The host looks when it wants to (`raise_if_frozen`), and reckons from the number of checks that found it frozen
    which loss was the first. All on the device are tensors that keep their place, so the checks may be captured
    in a CUDA graph.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._frozen = torch.zeros((), dtype=torch.float32, device=device)
        self._num_found_frozen = torch.zeros((), dtype=torch.float64, device=device)
        self._checked: list[str] = []
        self._began_at = 0

    def restart(self, num_updates: int) -> None:
        """Begins anew, after `num_updates` updates."""
        self._frozen.zero_()
        self._num_found_frozen.zero_()
        self._began_at = num_updates

    def begin(self) -> None:
        """Forgets which losses the update before looked at: a captured one looks at those of its capture."""
        self._checked = []

    def check(self, loss: Tensor, name: str) -> Tensor:
        """Freezes at a loss that is not finite."""
        self._checked.append(name)
        loss = loss.detach()
        # A number minus itself is 0, unless it is infinite or none.
        self._frozen.logical_or_(loss - loss)
        self._num_found_frozen.add_(self._frozen)
        return self._frozen

    @property
    def frozen(self) -> Tensor:
        """1.0 once a loss was not finite, else 0.0; a float32 scalar on the device."""
        return self._frozen

    def raise_if_frozen(self, num_updates: int) -> None:
        """Waits for the device, after `num_updates` updates.

        Raises:
            NonFiniteError: If a loss was not finite, naming it and its update.
        """
        if num_found := int(self._num_found_frozen.item()):
            num_checks = (num_updates - self._began_at) * len(self._checked)
            update, which = divmod(num_checks - num_found, len(self._checked))
            raise NonFiniteError(
                f"The {self._checked[which]} is not finite at update {self._began_at + update + 1}"
            )

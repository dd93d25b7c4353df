"""Updates of one model: their random streams, their number, and what they report, summed where they are made."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rllib_hpo.algorithms.base import Method, Metrics, Noise
from rllib_hpo.errors import NonFiniteError
from rllib_hpo.optim.adam import addresses
from rllib_hpo.optim.guards import DeviceGuard
from rllib_hpo.optim.replicas import ALONE, Replica
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch, RowLayout
from rllib_hpo.settings import Settings
from rllib_hpo.streams import TorchStreams

Latest = Callable[[], tuple[Batch, Noise]]
"""Returns batch and noise of the update made last."""


class Updates:
    """Makes updates of a model, one at a time, and sums what they report.

    Args:
        method: What an update is.
        model: Changed in place.
        optimizers: Of the model's parameters, by the loss that drives them.
        seed: The run's seed; the noise of updates has streams of its own.
        replica: Which of the processes that train equal models together; the first draws what one alone would.
    """

    def __init__(
        self,
        method: Method[Any, Any],
        model: Any,
        optimizers: Mapping[str, torch.optim.Optimizer],
        seed: int,
        replica: Replica = ALONE,
    ) -> None:
        self.method, self.model, self.optimizers, self.replica = method, model, dict(optimizers), replica
        self.settings: Settings = method.settings
        self.device: torch.device = model.device
        self.layout = RowLayout(model.obs_dim, model.action_dim, method.columns)
        """Of a transition."""
        self.draws = dict(method.draws(model))
        self.num_updates = 0
        self.reseed(seed)
        self.guard_with(None)
        self._tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
        self._reported: dict[str, list[str]] = {}
        self._sums: dict[str, Tensor] = {}
        self._num_summed: Counter[str] = Counter()
        self._diagnostics: Metrics = {}
        self._latest_diagnostics: Metrics = {}

    def guard_with(self, guard: DeviceGuard | None) -> None:
        """Freezes the model after a loss that is not finite; without a guard such a loss raises at once."""
        self.guard = guard
        """Freezes updates on the device after a loss that is not finite; None raises at once, which waits for it."""
        self._steps = Steps(self.optimizers, self.replica, guard)

    def reseed(self, seed: int, joined_at: int = 0) -> None:
        """Draws from streams of `seed` from here on; those of one that joins later repeat none of its beginning."""
        self._seed, self._joined_at = seed, joined_at
        joined = (joined_at,) if joined_at else ()
        owner = ("learner", *joined, *self.replica.owner)
        # Indices are drawn where the host can count with them.
        self.streams = TorchStreams(seed, *owner, device=self.device, on_host=("replay",))

    def kinds(self, num_updates: int) -> list[str]:
        """Kinds of the next updates."""
        first = self.num_updates + 1
        return [self.method.kind(update) for update in range(first, first + num_updates)]

    def update(self, batch: Batch, noise: Noise, kind: str) -> Metrics:
        """Makes one update on the device, and adds up what it reports; `count` must follow.

        Raises:
            NonFiniteError: If a loss is not finite, naming it and the update; a `DeviceGuard` raises none here.
        """
        if self.guard is not None:
            self.guard.begin(kind)
        try:
            metrics = self.method.update(self.model, batch, noise, self._steps, kind)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} at update {self.num_updates + 1}") from None
        known = [name for name in metrics if name in self._sums]
        if known:
            torch._foreach_add_([self._sums[name] for name in known], [metrics[name] for name in known])
        self._sums |= {name: value.clone() for name, value in metrics.items() if name not in self._sums}
        self._reported[kind] = list(metrics)
        return metrics

    @property
    def updates_until_diagnosis(self) -> int:
        """Updates until the model is to be described again, at least 1."""
        interval = self.settings.diagnostics_interval
        return interval - self.num_updates % interval

    def count(self, kinds: Sequence[str], latest: Latest) -> None:
        """Counts updates, at most `updates_until_diagnosis`, and describes the model on the last one's batch."""
        self.num_updates += len(kinds)
        for kind, number in Counter(kinds).items():
            for name in self._reported[kind]:
                self._num_summed[name] += number
        if self.num_updates % self.settings.diagnostics_interval == 0:
            self._diagnostics = self._latest_diagnostics = self.method.diagnose(self.model, *latest())

    def signature(self) -> object:
        """What a captured update holds good for: settings, learning rates, and where in memory everything is."""
        optimizers = self.optimizers.values()
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        places = [tensor.data_ptr() for tensor in (*self._tensors, *self._sums.values())]
        return self.settings, rates, places, [addresses(optimizer) for optimizer in optimizers]

    def _raise_if_frozen(self) -> None:
        if self.guard is not None:
            self.guard.raise_if_frozen(self.num_updates, self.method.kind)

    def latest_diagnostics(self) -> dict[str, float]:
        """The newest diagnostics there are, flushed before or not; waits for the device.

        Raises:
            NonFiniteError: If a loss was not finite: an evaluation would be of weights that stopped before.
        """
        self._raise_if_frozen()
        return finite(self._latest_diagnostics)

    def flush_metrics(self) -> dict[str, float]:
        """Means over the updates since the last flush that reported each, and the latest diagnostics.

        Waits for the device.

        Raises:
            NonFiniteError: If a loss was not finite, naming it and the update, or one of the means is not.
        """
        self._raise_if_frozen()
        summed = {name: total for name, total in self._sums.items() if self._num_summed[name]}
        means = {name: (total / self._num_summed[name]).item() for name, total in summed.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"The mean of {name} is {value} at update {self.num_updates}")
        diagnostics = finite(self._diagnostics)
        self._forget_metrics()
        return {
            **means,
            **diagnostics,
            "num_updates": float(self.num_updates),
        }

    def _forget_metrics(self) -> None:
        """In place, since a captured update adds to these very tensors."""
        for total in self._sums.values():
            total.zero_()
        self._num_summed.clear()
        self._diagnostics = {}


def finite(scalars: Metrics) -> dict[str, float]:
    """Scalars as numbers, without those that do not apply (NaN)."""
    values = {name: value.item() for name, value in scalars.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}

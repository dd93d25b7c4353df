"""Make updates of one model: draw their noise, count them, and sum their metrics on the device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rllib_hpo.algorithms.base import Method, Metrics, Noise
from rllib_hpo.errors import NonFiniteError
from rllib_hpo.optim.guards import DeviceGuard
from rllib_hpo.optim.replicas import ALONE, Replica
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch
from rllib_hpo.settings import Settings
from rllib_hpo.streams import TorchStreams

Latest = Callable[[], tuple[Batch, Noise]]
"""Returns batch and noise of the last update."""


UPDATES_AT_A_TIME = 32
"""Number of updates whose indices and noise are drawn together."""
BYTES_AT_A_TIME = 2**28
"""Greatest size in bytes of their batches and noise where observations are images; a single update may have more."""
_UPDATES_OF_EVERY_KIND = 10_000
"""Number of consecutive updates that has each kind at least once."""


class Updates:
    """Make updates of a model one at a time, and sum their metrics.

    Args:
        method: The method whose updates are made.
        model: The model, updated in place.
        optimizers: Optimizers by the name of their loss.
        seed: The run's seed; the noise of updates has streams of its own.
        replica: This process in data-parallel training; the first draws the same as a single process.
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
        self.layout = method.layout(model.obs_dim, model.action_dim)
        """Columns of a transition."""
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

    @property
    def updates_at_a_time(self) -> int:
        """Number of updates whose noise is drawn together: 32, and fewer where images need much memory."""
        if not self.method.takes_images:
            return UPDATES_AT_A_TIME
        batch_size = self.settings.train_batch_size_per_learner
        noise = sum(4 * draw.rows * batch_size * math.prod(draw.shape) for draw in self.draws.values())
        batch = batch_size * sum(part.num_bytes for part in self.layout.parts)
        return max(1, min(UPDATES_AT_A_TIME, BYTES_AT_A_TIME // (noise + batch)))

    def guard_with(self, guard: DeviceGuard | None) -> None:
        """Freeze the model after a non-finite loss; without a guard such a loss raises at once."""
        self.guard = guard
        """Freezes updates on the device after a non-finite loss; None raises at once, which waits for the device."""
        self._steps = Steps(self.optimizers, self.replica, guard)

    def reseed(self, seed: int, joined_at: int = 0) -> None:
        """Replace the noise streams by those of `seed`; one that joins at step `joined_at` repeats no earlier draws."""
        self._seed, self._joined_at = seed, joined_at
        joined = (joined_at,) if joined_at else ()
        owner = ("learner", *joined, *self.replica.owner)
        # Indices are drawn where the host can count with them.
        self.streams = TorchStreams(seed, *owner, device=self.device, on_host=("replay",))

    def kinds(self, num_updates: int) -> list[str]:
        """Kinds of the next `num_updates` updates."""
        first = self.num_updates + 1
        return [self.method.kind(update) for update in range(first, first + num_updates)]

    def all_kinds(self) -> list[str]:
        """Kinds of updates, each once, in the order of their first use."""
        return list(dict.fromkeys(self.kinds(_UPDATES_OF_EVERY_KIND)))

    def update(self, batch: Batch, noise: Noise, kind: str) -> Metrics:
        """Make one update on the device and add its metrics to the sums; `count` must follow.

        Raises:
            NonFiniteError: If a loss is not finite, naming it and the update; a `DeviceGuard` raises none here.
        """
        if self.guard is not None:
            self.guard.begin(kind)
        try:
            normalized = self.method.normalized(self.model, batch)
            metrics = self.method.update(self.model, normalized, noise, self._steps, kind)
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
        """Number of updates until the next diagnosis, at least 1."""
        interval = self.settings.diagnostics_interval
        return interval - self.num_updates % interval

    def count(self, kinds: Sequence[str], latest: Latest) -> None:
        """Count updates, at most `updates_until_diagnosis`, and diagnose the model on the last batch if that is due."""
        self.num_updates += len(kinds)
        for kind, number in Counter(kinds).items():
            for name in self._reported[kind]:
                self._num_summed[name] += number
        if self.num_updates % self.settings.diagnostics_interval == 0:
            batch, noise = latest()
            normalized = self.method.normalized(self.model, batch)
            self._diagnostics = self._latest_diagnostics = self.method.diagnose(self.model, normalized, noise)

    def tensors(self) -> list[Tensor]:
        """All tensors that an update reads or changes, batch and noise apart; some are made on first use, as zeros."""
        states = [
            value
            for optimizer in self.optimizers.values()
            for state in optimizer.state.values()
            for value in state.values()
        ]
        guarded = [] if self.guard is None else self.guard.tensors()
        return [*self._tensors, *self._sums.values(), *states, *guarded]

    def signature(self) -> object:
        """All that a captured update depends on: settings, learning rates, and addresses of tensors."""
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        rates = [group["lr"] for group in groups]
        return self.settings, rates, [tensor.data_ptr() for tensor in self.tensors()]

    def _raise_if_frozen(self) -> None:
        if self.guard is not None:
            self.guard.raise_if_frozen(self.num_updates, self.method.kind)

    def latest_diagnostics(self) -> dict[str, float]:
        """The latest diagnostics, flushed or not; waits for the device.

        Raises:
            NonFiniteError: If a loss was not finite: an evaluation would be of weights that stopped before.
        """
        self._raise_if_frozen()
        return finite(self._latest_diagnostics)

    def flush_metrics(self) -> dict[str, float]:
        """Mean of each metric over the updates since the last flush that reported it, and the latest diagnostics.

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
        """Clear the sums in place, since captured updates add to these tensors."""
        for total in self._sums.values():
            total.zero_()
        self._num_summed.clear()
        self._diagnostics = {}


def finite(scalars: Metrics) -> dict[str, float]:
    """Scalars as numbers, without NaN, which marks metrics that do not apply."""
    values = {name: value.item() for name, value in scalars.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}

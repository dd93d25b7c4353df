"""Train one model: updates one by one or in bulk, and their state for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rllib_hpo.algorithms.base import Episode, Method, Metrics
from rllib_hpo.errors import NonFiniteError
from rllib_hpo.learning.bulk import BulkUpdates
from rllib_hpo.learning.compiling import compiles
from rllib_hpo.learning.graph import Capture, make_capture
from rllib_hpo.learning.updates import Updates, finite
from rllib_hpo.optim.guards import DeviceGuard
from rllib_hpo.optim.replicas import ALONE, Replica
from rllib_hpo.replay.frames import Transitions, numbers_of
from rllib_hpo.replay.layout import Batch
from rllib_hpo.streams import draw_all


class Trainer(Updates):
    """Make updates of a model with given batches, on a GPU in bulk.

    Args:
        method: See `Updates`.
        model: See `Updates`.
        optimizers: See `Updates`; by default the method's own.
        seed: See `Updates`.
        replica: See `Updates`.
    """

    def __init__(
        self,
        method: Method[Any, Any],
        model: Any,
        optimizers: Mapping[str, torch.optim.Optimizer] | None = None,
        seed: int = 0,
        replica: Replica = ALONE,
    ) -> None:
        own = method.make_optimizers(model) if optimizers is None else optimizers
        super().__init__(method, model, own, seed, replica)
        self.bulk: BulkUpdates | None = None
        """Makes the updates as captured functions; None makes them one by one."""
        compiled = compiles(self.settings, replica.world_size)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if self.settings.tf32 else "highest")
            capture = make_capture(self.settings, self.device, replica.world_size)
            self.update_in_bulk(capture, compiled=compiled)
        elif compiled:
            self.update_in_bulk(None, compiled=True)

    def update_in_bulk(self, capture: Capture | None, *, compiled: bool = False) -> None:
        """Make updates in bulk from now on: functions of tensors at fixed addresses, without waiting for the device.

        Args:
            capture: How such a function is captured; None for not at all.
            compiled: Whether such a function is compiled.
        """
        self.guard_with(DeviceGuard(self.device))
        self.bulk = BulkUpdates(self, capture, compiled=compiled)

    def join(self, joined_at: int) -> None:
        """Use the streams of a learner that joins the run at step `joined_at`."""
        self.reseed(self._seed, joined_at)

    def apply_settings(self) -> None:
        """Apply this run's settings after a checkpoint has restored its own."""
        self.method.restored(self.model)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.method.learning_rate(name)

    def learn(self, batch: Batch) -> Metrics:
        """Make one update; returns its metrics as scalar tensors.

        Raises:
            NonFiniteError: If a loss is not finite, naming the update and the loss; on a GPU not before
                `flush_metrics` or `check_finite`, and until then no further update changes anything.
        """
        if self.bulk is not None:
            return self.bulk.on_batch(batch)
        drawn = draw_all(self.draws, len(batch.reward), self.streams)
        noise = {name: value.to(self.device) for name, value in drawn.items()}
        (kind,) = kinds = self.kinds(1)
        metrics = self.update(batch, noise, kind)
        self.count(kinds, lambda: (batch, noise))
        return metrics

    def observe(self, rows: Transitions | None, episodes: Sequence[Episode]) -> None:
        """Show the method new transitions, without frames if they have any, and the episodes that ended in them."""
        if rows is not None and self.method.watches_rows:
            self.method.rows_arrived(self.model, numbers_of(rows))
        if whole := [episode for episode in episodes if not episode.failed]:
            self.method.episodes_ended(self.model, whole)

    def check_finite(self) -> None:
        """Raise NonFiniteError if a loss or a parameter is not finite, since no checkpoint may hold such a state."""
        self._raise_if_frozen()
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteError(f"The parameter {name} is not finite after update {self.num_updates}")

    def get_state(self) -> dict[str, Any]:
        """Streams and counters; their owners save parameters and optimizers."""
        return {
            "streams": self.streams.get_state(),
            "seed": self._seed,
            "joined_at": self._joined_at,
            "num_updates": self.num_updates,
            "diagnostics": finite(self._latest_diagnostics),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a result of `get_state`."""
        self.reseed(state.get("seed", self._seed), state.get("joined_at", 0))
        self.streams.set_state(state["streams"])
        self.num_updates = state["num_updates"]
        if self.guard is not None:
            self.guard.restart()
        self._forget_metrics()  # of updates that the restored run has not made, perhaps NaN
        diagnostics = state.get("diagnostics", {})
        self._latest_diagnostics = {
            name: torch.tensor(value, dtype=torch.float64) for name, value in diagnostics.items()
        }

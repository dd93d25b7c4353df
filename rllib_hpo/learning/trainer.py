"""The updates of one model: counted, with noise of their own, and averaged for those who watch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rllib_hpo.errors import NonFiniteError
from rllib_hpo.learning.actor_critic import ActorCritic
from rllib_hpo.learning.adam import addresses
from rllib_hpo.learning.bulk import BulkUpdates
from rllib_hpo.learning.graph import Capture, make_capture
from rllib_hpo.learning.guards import DeviceGuard
from rllib_hpo.learning.parallel import ALONE, Replica
from rllib_hpo.learning.replay import Batch
from rllib_hpo.learning.update import Optimizers, update
from rllib_hpo.samplers.base import Noise, draw_noise
from rllib_hpo.settings import ActorCriticSettings
from rllib_hpo.streams import TorchStreams


class Trainer:
    """Makes updates of a model with batches that others draw.

    Args:
        model: What is trained, in place.
        optimizers: Of its parameters.
        settings: Hyperparameters.
        seed: The run's seed; the noise of updates has streams of its own.
        replica: Which of the processes that train equal models together; the first draws what one alone would.
    """

    def __init__(
        self,
        model: ActorCritic,
        optimizers: Optimizers,
        settings: ActorCriticSettings,
        seed: int,
        replica: Replica = ALONE,
    ) -> None:
        self.model, self.optimizers, self.settings, self.replica = model, optimizers, settings, replica
        self.device = model.log_alpha.device
        self._tensors = [*model.parameters(), *model.buffers()]
        self.reseed(seed)
        self.num_updates = 0
        self.guard: DeviceGuard | None = None
        """Freezes updates on the device after a loss that is not finite; None raises at once, which waits for it."""
        self.bulk: BulkUpdates | None = None
        """Makes the updates as one captured function; None makes them one by one."""
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
            self.update_in_bulk(make_capture(settings, self.device, replica.world_size))
        self._sums: dict[str, Tensor] = {}
        self._num_summed = 0
        self._diagnostics: dict[str, Tensor] = {}
        self._latest_diagnostics: dict[str, Tensor] = {}

    def update_in_bulk(self, capture: Capture | None) -> None:
        """From here on never waits for the device: updates are one function on tensors that keep their place.

        Args:
            capture: How that function is captured; None for not at all.
        """
        self.guard = DeviceGuard(self.device)
        self.guard.restart(self.num_updates)
        self.bulk = BulkUpdates(self, capture)

    def reseed(self, seed: int, joined_at: int = 0) -> None:
        """Draws from streams of `seed` from here on; those of one that joins later repeat none of its beginning."""
        self._seed, self._joined_at = seed, joined_at
        joined = (joined_at,) if joined_at else ()
        owner = ("learner", *joined, *self.replica.owner)
        # Indices are drawn where the host can count with them.
        self.streams = TorchStreams(seed, *owner, device=self.device, on_host=("replay",))

    def join(self, joined_at: int) -> None:
        """Draws from streams of its own from here on, as one that joins the run at step `joined_at`."""
        self.reseed(self._seed, joined_at)

    def apply_settings(self) -> None:
        """Makes the settings hold again where a checkpoint brought those it was saved with."""
        self.model.fix_alpha()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] = self.settings.lr

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """Makes one update; what it reports, as scalar tensors.

        Raises:
            NonFiniteError: If a loss is not finite, naming the update and the loss; on a GPU not before
                `flush_metrics` or `check_finite`, and until then no further update changes anything.
        """
        if self.bulk is not None:
            return self.bulk.on_batch(batch)
        noise = draw_noise(self.model.sampler, 2 * len(batch.reward), self.streams, self.device)
        metrics = self.update(batch, noise)
        self.count(1, lambda: (batch, noise))
        return metrics

    def update(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """The work of one update on the device, and of averaging what it reports; `count` must follow.

        Raises:
            NonFiniteError: See `learn`.
        """
        try:
            metrics = update(
                self.model, self.optimizers, batch, noise, self.settings, self.replica, self.guard
            )
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} at update {self.num_updates + 1}") from None
        if self._sums:
            torch._foreach_add_([self._sums[name] for name in metrics], list(metrics.values()))
        else:
            self._sums = {name: value.clone() for name, value in metrics.items()}
        return metrics

    @property
    def updates_until_diagnosis(self) -> int:
        """Updates until the sampler is to be described again, at least 1."""
        interval = self.settings.diagnostics_interval
        return interval - self.num_updates % interval

    def count(self, num_updates: int, latest: Callable[[], tuple[Batch, Noise]]) -> None:
        """Counts updates, at most `updates_until_diagnosis`, and describes the sampler on the last one's batch."""
        self.num_updates += num_updates
        self._num_summed += num_updates
        if self.num_updates % self.settings.diagnostics_interval == 0:
            self._diagnose(*latest())

    def signature(self) -> object:
        """What a captured update holds good for: settings, learning rates, and where in memory everything is."""
        optimizers = [optimizer for optimizer in self.optimizers if optimizer is not None]
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        places = [tensor.data_ptr() for tensor in (*self._tensors, *self._sums.values())]
        return self.settings, rates, places, [addresses(optimizer) for optimizer in optimizers]

    def _diagnose(self, batch: Batch, noise: Noise) -> None:
        own_noise = {name: value[len(batch.reward) :] for name, value in noise.items()}
        critic = self.model.target_critics.condition(batch.obs)
        self._diagnostics = self.model.sampler.diagnose(
            batch.obs, own_noise, mode="train", critic=critic, alpha=self.model.alpha
        )
        self._latest_diagnostics = self._diagnostics

    def latest_diagnostics(self) -> dict[str, float]:
        """The newest diagnostics there are, flushed before or not; waits for the device.

        Raises:
            NonFiniteError: If a loss was not finite: an evaluation would be of weights that stopped before.
        """
        self._raise_if_frozen()
        return _finite(self._latest_diagnostics)

    def flush_metrics(self) -> dict[str, float]:
        """Means over the updates since the last flush and the latest diagnostics; waits for the device.

        Raises:
            NonFiniteError: If a loss was not finite, naming it and the update, or one of the means is not.
        """
        self._raise_if_frozen()
        summed = self._sums if self._num_summed else {}
        means = {name: (total / self._num_summed).item() for name, total in summed.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"The mean of {name} is {value} at update {self.num_updates}")
        diagnostics = _finite(self._diagnostics)
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
        self._num_summed, self._diagnostics = 0, {}

    def check_finite(self) -> None:
        """Raises NonFiniteError if a loss or a parameter is not; a checkpoint must never hold such a state."""
        self._raise_if_frozen()
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteError(f"The parameter {name} is not finite after update {self.num_updates}")

    def _raise_if_frozen(self) -> None:
        if self.guard is not None:
            self.guard.raise_if_frozen(self.num_updates)

    def get_state(self) -> dict[str, Any]:
        """Streams and counters; parameters and optimizers are saved by those who hold them."""
        return {
            "streams": self.streams.get_state(),
            "seed": self._seed,
            "joined_at": self._joined_at,
            "num_updates": self.num_updates,
            "diagnostics": _finite(self._latest_diagnostics),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called."""
        self.reseed(state.get("seed", self._seed), state.get("joined_at", 0))
        self.streams.set_state(state["streams"])
        self.num_updates = state["num_updates"]
        if self.guard is not None:
            self.guard.restart(self.num_updates)
        self._forget_metrics()  # of updates that the restored run has not made, perhaps NaN
        diagnostics = state.get("diagnostics", {})
        self._latest_diagnostics = {
            name: torch.tensor(value, dtype=torch.float64) for name, value in diagnostics.items()
        }


def _finite(scalars: dict[str, Tensor]) -> dict[str, float]:
    """Scalars as numbers, without those that do not apply (NaN)."""
    values = {name: value.item() for name, value in scalars.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}

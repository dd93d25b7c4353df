"""The updates of one model: counted, with noise of their own, and averaged for those who watch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rllib_hpo.errors import NonFiniteError
from rllib_hpo.learning.actor_critic import ActorCritic
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
        self.reseed(seed)
        self.num_updates = 0
        self._sums: dict[str, Tensor] = {}
        self._num_summed = 0
        self._diagnostics: dict[str, Tensor] = {}
        self._latest_diagnostics: dict[str, Tensor] = {}

    def reseed(self, seed: int, joined_at: int = 0) -> None:
        """Draws from streams of `seed` from here on; those of one that joins later repeat none of its beginning."""
        self._seed, self._joined_at = seed, joined_at
        joined = (joined_at,) if joined_at else ()
        self.streams = TorchStreams(seed, "learner", *joined, *self.replica.owner, device=self.device)

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
            NonFiniteError: If a loss is not finite, naming the update and the loss.
        """
        batch_size = len(batch.reward)
        noise = draw_noise(self.model.sampler, 2 * batch_size, self.streams, self.device)
        try:
            metrics = update(self.model, self.optimizers, batch, noise, self.settings, self.replica)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} at update {self.num_updates + 1}") from None
        self.num_updates += 1
        self._accumulate(metrics)
        if self.num_updates % self.settings.diagnostics_interval == 0:
            self._diagnose(batch, {name: value[batch_size:] for name, value in noise.items()})
        return metrics

    def _diagnose(self, batch: Batch, noise: Noise) -> None:
        critic = self.model.target_critics.condition(batch.obs)
        self._diagnostics = self.model.sampler.diagnose(
            batch.obs, noise, mode="train", critic=critic, alpha=self.model.alpha
        )
        self._latest_diagnostics = self._diagnostics

    def latest_diagnostics(self) -> dict[str, float]:
        """The newest diagnostics there are, flushed before or not; waits for the device."""
        return _finite(self._latest_diagnostics)

    def _accumulate(self, metrics: dict[str, Tensor]) -> None:
        self._num_summed += 1
        if self._sums:
            torch._foreach_add_([self._sums[name] for name in metrics], list(metrics.values()))
        else:
            self._sums = {name: value.clone() for name, value in metrics.items()}

    def flush_metrics(self) -> dict[str, float]:
        """Means over the updates since the last flush and the latest diagnostics; waits for the device.

        Raises:
            NonFiniteError: If one of the means is not finite.
        """
        means = {name: (total / self._num_summed).item() for name, total in self._sums.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"The mean of {name} is {value} at update {self.num_updates}")
        diagnostics = _finite(self._diagnostics)
        self._sums, self._num_summed, self._diagnostics = {}, 0, {}
        return {
            **means,
            **diagnostics,
            "num_updates": float(self.num_updates),
        }

    def check_finite(self) -> None:
        """Raises NonFiniteError if any parameter is not finite; a checkpoint must never hold such a state."""
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteError(f"The parameter {name} is not finite after update {self.num_updates}")

    def get_state(self) -> dict[str, Any]:
        """Streams and counters; parameters and optimizers are saved by those who hold them."""
        return {
            "streams": self.streams.get_state(),
            "seed": self._seed,
            "joined_at": self._joined_at,
            "num_updates": self.num_updates,
            "diagnostics": self.latest_diagnostics(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called."""
        self.reseed(state.get("seed", self._seed), state.get("joined_at", 0))
        self.streams.set_state(state["streams"])
        self.num_updates = state["num_updates"]
        diagnostics = state.get("diagnostics", {})
        self._latest_diagnostics = {
            name: torch.tensor(value, dtype=torch.float64) for name, value in diagnostics.items()
        }


def _finite(scalars: dict[str, Tensor]) -> dict[str, float]:
    """Scalars as numbers, without those that do not apply (NaN)."""
    values = {name: value.item() for name, value in scalars.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}

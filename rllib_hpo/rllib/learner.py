"""The learner: it owns the networks, their optimizers and the replay, and draws its own batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.annotations import override

from rllib_hpo.errors import NonFiniteError
from rllib_hpo.learning.actor_critic import ActorCritic
from rllib_hpo.learning.replay import Replay, RowLayout
from rllib_hpo.learning.segments import SegmentList, load_segments, save_new_segment
from rllib_hpo.learning.update import Optimizers, make_optimizers, update
from rllib_hpo.samplers.base import draw_noise
from rllib_hpo.streams import TorchStreams

_PROGRESS = "progress"


class ActorCriticLearner(TorchLearner):
    """Learns from its own replay.

    `Learner.update(batch=...)` is replaced: transitions arrive once, with `add_transitions`, and every
    batch is drawn here with `update_from_replay`. One update then costs no connector, no episode and no
    copy between processes.
    """

    @override(TorchLearner)
    def build(self) -> None:
        torch.set_num_threads(self.config.num_torch_threads)
        self.settings = self.config.settings()
        super().build()
        self.model: ActorCritic = self.module[DEFAULT_MODULE_ID].unwrapped().model
        layout = RowLayout(self.model.obs_dim, self.model.action_dim)
        self.replay = Replay(layout, self.settings.replay_capacity, self.device)
        self.segments: SegmentList = []
        self._segments_dir = ""
        self.streams = TorchStreams(self.config.seed, "learner", device=self.device)
        self.num_updates = 0
        self._sums: dict[str, torch.Tensor] = {}
        self._num_summed = 0
        self._diagnostics: dict[str, torch.Tensor] = {}

    @override(TorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Registers one fused Adam for critics, policy and temperature each, so that RLlib saves them."""
        model = self.module[module_id].unwrapped().model
        self.optimizers: Optimizers = make_optimizers(model, self.settings)
        for name, optimizer in self.optimizers._asdict().items():
            if optimizer is not None:
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                self.register_optimizer(
                    module_id=module_id, optimizer_name=name, optimizer=optimizer, params=parameters
                )

    @override(Learner)
    def compute_loss_for_module(self, **kwargs: Any) -> Any:
        raise TypeError("ActorCriticLearner draws its own batches: call update_from_replay().")

    def add_transitions(self, rows: npt.NDArray[np.float32]) -> None:
        """Appends rows (N, width) of `RowLayout` to the replay."""
        self.replay.add(rows)

    def update_from_replay(self, num_updates: int) -> None:
        """Makes updates, each with a batch and noise of its own, drawn from their own streams.

        Raises:
            NonFiniteError: If a loss is not finite, naming the update and the loss.
        """
        batch_size = self.settings.train_batch_size_per_learner
        for _ in range(num_updates):
            batch = self.replay.gather(self.replay.draw_indices(batch_size, self.streams["replay"]))
            noise = draw_noise(self.model.sampler, 2 * batch_size, self.streams, self.device)
            try:
                metrics = update(self.model, self.optimizers, batch, noise, self.settings)
            except NonFiniteError as error:
                raise NonFiniteError(f"{error} at update {self.num_updates + 1}") from None
            self.num_updates += 1
            self._accumulate(metrics)
            if self.num_updates % self.settings.diagnostics_interval == 0:
                half = {name: value[batch_size:] for name, value in noise.items()}
                self._diagnostics = self.model.sampler.diagnose(
                    batch.obs,
                    half,
                    mode="train",
                    critic=self.model.target_critics.condition(batch.obs),
                    alpha=self.model.alpha,
                )

    def train_on(self, blocks: Sequence[npt.NDArray[np.float32]], updates: Sequence[int]) -> None:
        """Adds blocks of rows one by one, each followed by its number of updates (for remote learners)."""
        for rows, num_updates in zip(blocks, updates, strict=True):
            self.add_transitions(rows)
            self.update_from_replay(num_updates)

    def flush_metrics(self) -> dict[str, float]:
        """Means over the updates since the last flush, the latest diagnostics, and sizes; waits for the device.

        Raises:
            NonFiniteError: If one of the means is not finite.
        """
        means = {name: (total / self._num_summed).item() for name, total in self._sums.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"The mean of {name} is {value} at update {self.num_updates}")
        diagnostics = {name: value.item() for name, value in self._diagnostics.items()}
        self._sums, self._num_summed, self._diagnostics = {}, 0, {}
        return {
            **means,
            **{name: value for name, value in diagnostics.items() if math.isfinite(value)},
            "replay_rows": float(self.replay.num_rows),
            "num_updates": float(self.num_updates),
        }

    def _accumulate(self, metrics: dict[str, torch.Tensor]) -> None:
        self._num_summed += 1
        if self._sums:
            torch._foreach_add_([self._sums[name] for name in metrics], list(metrics.values()))
        else:
            self._sums = {name: value.clone() for name, value in metrics.items()}

    def acting_state(self) -> dict[str, npt.NDArray[Any]]:
        """What runners need: sampler, target critics and temperature; neither critics nor optimizers."""
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        state: dict[str, npt.NDArray[Any]] = module.get_state(inference_only=True)
        return state

    def device_name(self) -> str:
        """The device that trains, in words."""
        if self.device.type == "cuda":
            return str(torch.cuda.get_device_name(self.device))
        return str(self.device)

    def check_finite(self) -> None:
        """Raises NonFiniteError if any parameter is not finite; a checkpoint must never hold such a state."""
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteError(f"The parameter {name} is not finite after update {self.num_updates}")

    def save_replay(self, directory: str) -> SegmentList:
        """Writes rows that no segment holds yet to `directory`, and lists the segments of all rows."""
        known = self.segments if directory == self._segments_dir else []
        self.segments = save_new_segment(self.replay, known, Path(directory))
        self._segments_dir = directory
        return self.segments

    def load_replay(self, directory: str, segments: SegmentList, total_rows: int) -> None:
        """Fills the replay from segments in `directory`.

        Raises:
            CheckpointError: If a segment is missing or damaged.
        """
        load_segments(self.replay, segments, total_rows, Path(directory))
        self.segments, self._segments_dir = list(segments), directory

    @override(Learner)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Adds streams and counters. The replay is not part of it: it is saved in segments."""
        state: dict[str, Any] = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(_PROGRESS, components, not_components):
            state[_PROGRESS] = {"streams": self.streams.get_state(), "num_updates": self.num_updates}
        return state

    @override(Learner)
    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if _PROGRESS in state:
            self.streams.set_state(state[_PROGRESS]["streams"])
            self.num_updates = state[_PROGRESS]["num_updates"]

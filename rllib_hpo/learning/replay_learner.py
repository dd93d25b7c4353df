"""Learning from a replay: rows arrive once, batches are drawn here, and the rows are saved in segments."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rllib_hpo.learning.replay import Batch, Replay, RowLayout
from rllib_hpo.learning.segments import SegmentList, load_segments, save_new_segment
from rllib_hpo.learning.trainer import Trainer


class ReplayLearner:
    """A trainer with the replay that its batches come from, on the trainer's device.

    Args:
        trainer: What makes the updates.
        learn: Called with every batch; the trainer's own method unless something stands between.
    """

    def __init__(self, trainer: Trainer, learn: Callable[[Batch], Any] | None = None) -> None:
        self.trainer, self._learn = trainer, learn
        layout = RowLayout(trainer.model.obs_dim, trainer.model.action_dim)
        self.replay = Replay(layout, trainer.settings.replay_capacity, trainer.device)
        self._segments: SegmentList = []
        self._segments_dir = ""

    def add_transitions(self, rows: npt.NDArray[np.float32]) -> None:
        """Appends rows (N, width) of `RowLayout` to the replay."""
        self.replay.add(rows)

    def update_from_replay(self, num_updates: int) -> None:
        """Makes updates, each with a batch of its own.

        Raises:
            NonFiniteError: If a loss is not finite; see `Trainer.learn`.
        """
        if self.trainer.bulk is not None and self._learn is None:
            self.trainer.bulk.from_replay(self.replay, num_updates)
            return
        learn, batch_size = (
            self._learn or self.trainer.learn,
            self.trainer.settings.train_batch_size_per_learner,
        )
        for _ in range(num_updates):
            indices = self.replay.draw_indices(batch_size, self.trainer.streams["replay"])
            learn(self.replay.gather(indices))

    def train_on(self, blocks: Sequence[npt.NDArray[np.float32]], updates: Sequence[int]) -> None:
        """Adds blocks of rows one by one, each followed by its number of updates."""
        for rows, num_updates in zip(blocks, updates, strict=True):
            self.add_transitions(rows)
            self.update_from_replay(num_updates)

    def flush_metrics(self) -> dict[str, float]:
        """As `Trainer.flush_metrics`, and the size of the replay."""
        return {**self.trainer.flush_metrics(), "replay_rows": float(self.replay.num_rows)}

    def latest_diagnostics(self) -> dict[str, float]:
        """As `Trainer.latest_diagnostics`."""
        return self.trainer.latest_diagnostics()

    def check_finite(self) -> None:
        """As `Trainer.check_finite`."""
        self.trainer.check_finite()

    def device_name(self) -> str:
        """The device that trains, in words."""
        device = self.trainer.device
        return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else str(device)

    def gpu_memory(self) -> int | None:
        """The most bytes that torch has held at a time on the device that trains; None if that is no GPU."""
        device = self.trainer.device
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None

    def apply_settings(self) -> None:
        """As `Trainer.apply_settings`."""
        self.trainer.apply_settings()

    def reseed(self, seed: int, joined_at: int) -> None:
        """As `Trainer.reseed`."""
        self.trainer.reseed(seed, joined_at)

    def take_over(self, other: ReplayLearner) -> None:
        """Becomes equal to `other`: networks, optimizers, replay, counters and random streams."""
        mine, theirs = self.trainer, other.trainer
        mine.model.load_state_dict(theirs.model.state_dict())
        for optimizer, source in zip(mine.optimizers, theirs.optimizers, strict=True):
            if optimizer is not None and source is not None:
                optimizer.load_state_dict(copy.deepcopy(source.state_dict()))
        mine.set_state(theirs.get_state())
        self.replay.clear(other.replay.total_rows - other.replay.num_rows)
        for rows in other.replay.read(self.replay.total_rows, other.replay.total_rows):
            self.replay.add(rows)

    def save_replay(self, directory: str) -> SegmentList:
        """Writes rows that no segment holds yet to `directory`, and lists the segments of all rows.

        Raises:
            StorageError: If a segment could not be written.
        """
        known = self._segments if directory == self._segments_dir else []
        self._segments = save_new_segment(self.replay, known, Path(directory))
        self._segments_dir = directory
        return self._segments

    def load_replay(self, directory: str, segments: SegmentList, total_rows: int) -> None:
        """Fills the replay from segments in `directory`.

        Raises:
            CheckpointError: If a segment is missing or damaged.
        """
        load_segments(self.replay, segments, total_rows, Path(directory))
        self._segments, self._segments_dir = list(segments), directory

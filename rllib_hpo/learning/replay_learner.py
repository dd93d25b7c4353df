"""Learn from a replay: add rows, draw batches, make updates, and save the rows in segments."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rllib_hpo.algorithms.base import Episode
from rllib_hpo.learning.memory import explain_out_of_memory
from rllib_hpo.learning.trainer import Trainer
from rllib_hpo.optim.replicas import GPU_MEMORY, Replica
from rllib_hpo.replay.frames import Transitions, make_replay
from rllib_hpo.replay.layout import Batch
from rllib_hpo.replay.segments import SegmentList, save_new_segment
from rllib_hpo.replay.shards import in_shard, load_resharded, load_shard, shard_folder


class ReplayLearner:
    """A trainer and the replay of its batches, on the trainer's device.

    Args:
        trainer: What makes the updates. Where it is one of several replicas, the replay is its shard: what falls
            to it of the capacity, and rows that no other has.
        learn: Called with every batch; the trainer's own method unless something stands between.
    """

    def __init__(self, trainer: Trainer, learn: Callable[[Batch], Any] | None = None) -> None:
        self.trainer, self._learn = trainer, learn
        capacity = trainer.replica.share(trainer.settings.replay_capacity)
        self.replay: Any = make_replay(trainer.layout, capacity, trainer.device)
        self.together: Callable[[int], None] | None = None
        """Makes the updates in place of this learner, together with those of other seeds; see `SharedUpdates`."""
        self._segments: SegmentList = []
        self._segments_dir = ""

    def add_transitions(
        self,
        rows: Transitions | None,
        episodes: Sequence[Episode] = (),
        *,
        keep: bool = True,
        num_relabelled: int = 0,
    ) -> None:
        """Add transitions to the replay, and show them and ended episodes to the method.

        Args:
            rows: Those of the method's layout; None where another learner has them and the method need not see them.
            episodes: That ended in these rows.
            keep: Whether the replay here gets the rows; else they are for the method to see.
            num_relabelled: Relabelled transitions at the end of the rows, which the method does not see: they did not
                happen.
        """
        if rows is not None and keep:
            self.replay.add(rows)
        if rows is not None and num_relabelled:
            rows = rows[: len(rows) - num_relabelled]
        self.trainer.observe(rows, episodes)

    def total_rows(self) -> int:
        """Number of rows ever added to the replay, overwritten ones included."""
        return self.replay.total_rows

    @property
    def updates_at_a_time(self) -> int:
        """Number of updates to request at a time for the least overhead."""
        return self.trainer.updates_at_a_time if self.trainer.device.type == "cuda" else 1

    def update_from_replay(self, num_updates: int) -> None:
        """Make updates, each with a batch of its own: alone, or together with other seeds.

        Raises:
            NonFiniteError: If a loss is not finite; see `Trainer.learn`.
            UserError: If a GPU's memory does not suffice.
        """
        (self.together or self.update_alone)(num_updates)

    def update_alone(self, num_updates: int) -> None:
        """Make updates, as `update_from_replay` does by default."""
        with explain_out_of_memory():
            self._update_from_replay(num_updates)

    def _update_from_replay(self, num_updates: int) -> None:
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

    def flush_metrics(self) -> dict[str, float]:
        """Metrics of `Trainer.flush_metrics`, the number of rows and, on a GPU, the peak of torch's memory in bytes."""
        metrics = {**self.trainer.flush_metrics(), "replay_rows": float(self.replay.num_rows)}
        if self.trainer.device.type == "cuda":
            metrics[GPU_MEMORY] = float(torch.cuda.max_memory_allocated(self.trainer.device))
        return metrics

    def latest_diagnostics(self) -> dict[str, float]:
        """See `Trainer.latest_diagnostics`."""
        return self.trainer.latest_diagnostics()

    def check_finite(self) -> None:
        """See `Trainer.check_finite`."""
        self.trainer.check_finite()

    def device_name(self) -> str:
        """Name of the device."""
        device = self.trainer.device
        return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else str(device)

    def apply_settings(self) -> None:
        """See `Trainer.apply_settings`."""
        self.trainer.apply_settings()

    def reseed(self, seed: int, joined_at: int) -> None:
        """See `Trainer.reseed`."""
        self.trainer.reseed(seed, joined_at)

    def take_over(self, other: ReplayLearner) -> None:
        """Copy networks, optimizers, replay, counters and random streams of `other`."""
        mine, theirs = self.trainer, other.trainer
        mine.model.load_state_dict(theirs.model.state_dict())
        for name, optimizer in mine.optimizers.items():
            optimizer.load_state_dict(copy.deepcopy(theirs.optimizers[name].state_dict()))
        mine.set_state(theirs.get_state())
        self.replay.copy_from(other.replay)

    def get_progress(self) -> dict[str, Any]:
        """See `Trainer.get_state`."""
        return self.trainer.get_state()

    def set_progress(self, state: dict[str, Any] | None, env_steps: int) -> None:
        """See `Trainer.set_state`; without a state, join a run at step `env_steps`."""
        if state is None:
            self.trainer.join(env_steps)
        else:
            self.trainer.set_state(state)

    def save_replay(self, directory: str) -> SegmentList:
        """Write new rows as a segment to `directory`; returns the segments of all rows.

        A shard's are in a folder of its own there, which their names include.

        Raises:
            StorageError: If a segment could not be written.
        """
        known = self._segments if directory == self._segments_dir else []
        folder = shard_folder(self.trainer.replica)
        self._segments = save_new_segment(self.replay, known, Path(directory) / folder)
        self._segments_dir = directory
        return in_shard(self._segments, folder)

    def load_replay(
        self, directory: str, segments: SegmentList, total_rows: int, num_shards: int = 1
    ) -> None:
        """Fill the replay from segments in `directory`; rows of another number of shards are resharded.

        Args:
            directory: What the names of the segments are relative to.
            segments: Those of all shards.
            total_rows: Rows ever added to all shards.
            num_shards: Shards that the segments are of.

        Raises:
            CheckpointError: If a segment is missing or damaged.
        """
        replica, place = self.trainer.replica, Path(directory)
        self._segments, self._segments_dir = [], directory
        if num_shards == replica.world_size:
            self._segments = load_shard(self.replay, replica, segments, total_rows, place)
        else:  # the next checkpoint writes all rows again
            shares = [Replica(rank, num_shards) for rank in range(num_shards)]
            capacities = [share.share(self.trainer.settings.replay_capacity) for share in shares]
            load_resharded(self.replay, replica, segments, total_rows, capacities, place)

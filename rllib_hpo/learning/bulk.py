"""Many updates for one call of the host, which never waits for the device: what a GPU is kept busy with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from rllib_hpo.learning.feed import Feed, IndexFeed, RowFeed
from rllib_hpo.learning.graph import Capture, Repeated
from rllib_hpo.learning.replay import Batch, Replay, RowLayout

if TYPE_CHECKING:
    from rllib_hpo.learning.trainer import Trainer

UPDATES_AT_A_TIME = 32
"""Updates whose indices and noise are drawn together."""


class BulkUpdates:
    """Updates of a trainer, as one function of tensors that stay where they are.

    Args:
        trainer: Whose updates.
        capture: How they are captured; None for not at all.
    """

    def __init__(self, trainer: Trainer, capture: Capture | None) -> None:
        self._trainer, self._capture = trainer, capture
        self._feed: Feed | None = None
        self._updates: Repeated | None = None
        self._metrics: dict[str, Tensor] = {}

    @property
    def num_captures(self) -> int:
        """Captures made by the function in use."""
        return 0 if self._updates is None else self._updates.num_captures

    def from_replay(self, replay: Replay, num_updates: int) -> None:
        """Makes updates with batches that are drawn from a replay, on this device or on the host."""
        trainer, batch_size = self._trainer, self._trainer.settings.train_batch_size_per_learner
        kind = IndexFeed if replay.device == trainer.device else RowFeed
        while num_updates > 0:
            feed = self._feed
            if not isinstance(feed, kind) or feed.capacity != UPDATES_AT_A_TIME:
                feed = kind(
                    replay.layout, trainer.model.sampler, batch_size, UPDATES_AT_A_TIME, trainer.device
                )
            num = min(num_updates, feed.capacity, trainer.updates_until_diagnosis)
            feed.draw(replay, num, trainer.streams)
            self._run(feed, num)
            num_updates -= num

    def on_batch(self, batch: Batch) -> dict[str, Tensor]:
        """Makes one update with a given batch; what it reports, in tensors that the next update overwrites."""
        trainer, batch_size = self._trainer, len(batch.reward)
        feed = self._feed
        if not isinstance(feed, RowFeed) or feed.capacity != 1 or feed.batch_size != batch_size:
            layout = RowLayout(trainer.model.obs_dim, trainer.model.action_dim)
            feed = RowFeed(layout, trainer.model.sampler, batch_size, 1, trainer.device)
        feed.put(batch, trainer.streams)
        self._run(feed, 1)
        return self._metrics

    def _run(self, feed: Feed, num_updates: int) -> None:
        if self._updates is None or feed is not self._feed:
            self._feed, self._updates = feed, self._updates_of(feed)
        self._updates.run(num_updates)
        self._trainer.count(num_updates, feed.last)

    def _updates_of(self, feed: Feed) -> Repeated:
        trainer = self._trainer

        def one() -> None:
            self._metrics = trainer.update(*feed.next())

        def signature() -> object:
            return trainer.signature(), [(tensor.data_ptr(), tensor.shape) for tensor in feed.tensors()]

        return Repeated(one, signature, self._capture)

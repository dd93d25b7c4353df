"""Make many updates in one call without waiting for the device, which keeps a GPU busy."""

from __future__ import annotations

from rllib_hpo.algorithms.base import Metrics
from rllib_hpo.learning.compiling import CompiledUpdate
from rllib_hpo.learning.graph import Capture, GraphedFunction
from rllib_hpo.learning.updates import Updates
from rllib_hpo.replay.feed import Feed, IndexFeed, RowFeed
from rllib_hpo.replay.frames import FrameReplay
from rllib_hpo.replay.layout import Batch
from rllib_hpo.replay.ring import Replay


class BulkUpdates:
    """Make updates as functions of tensors at fixed addresses, one function for each kind.

    Args:
        updates: What makes them.
        capture: How they are captured; None for not at all.
        compiled: Whether they are compiled.
    """

    def __init__(self, updates: Updates, capture: Capture | None, *, compiled: bool = False) -> None:
        self._updates, self._capture, self._compiled = updates, capture, compiled
        self._feed: Feed | None = None
        self._repeated: GraphedFunction | None = None
        self._metrics: dict[str, Metrics] = {}

    @property
    def num_captures(self) -> int:
        """Number of captures of the functions in use."""
        return 0 if self._repeated is None else self._repeated.num_captures

    def from_replay(self, replay: Replay | FrameReplay, num_updates: int) -> None:
        """Make updates with batches drawn from a replay, on this device or on the host."""
        updates, batch_size = self._updates, self._updates.settings.train_batch_size_per_learner
        at_a_time = updates.updates_at_a_time
        kind = IndexFeed if replay.device == updates.device else RowFeed
        while num_updates > 0:
            feed = self._feed
            if not isinstance(feed, kind) or feed.capacity != at_a_time:
                feed = kind(replay.layout, updates.draws, batch_size, at_a_time, updates.device)
            num = min(num_updates, feed.capacity, updates.updates_until_diagnosis)
            feed.draw(replay, num, updates.streams)
            self._run(feed, num)
            num_updates -= num

    def on_batch(self, batch: Batch) -> Metrics:
        """Make one update with a given batch; returns its metrics in tensors that later updates overwrite."""
        updates, batch_size = self._updates, len(batch.reward)
        feed = self._feed
        if not isinstance(feed, RowFeed) or feed.capacity != 1 or feed.batch_size != batch_size:
            feed = RowFeed(updates.layout, updates.draws, batch_size, 1, updates.device)
        feed.put(batch, updates.streams)
        return self._metrics[self._run(feed, 1)]

    def _run(self, feed: Feed, num_updates: int) -> str:
        """Make updates with the batches of `feed`; returns the kind of the last."""
        if self._repeated is None or feed is not self._feed:
            self._feed, self._repeated = feed, self._repeat(feed)
        kinds = self._updates.kinds(num_updates)
        self._repeated.run(kinds)
        self._updates.count(kinds, feed.last)
        return kinds[-1]

    def _repeat(self, feed: Feed) -> GraphedFunction:
        updates = self._updates

        update = updates.update
        if self._compiled:
            update = CompiledUpdate(update, updates.signature, updates.tensors, updates.all_kinds).__call__

        def one(kind: str) -> None:
            self._metrics[kind] = update(*feed.next(), kind)

        def signature() -> object:
            return updates.signature(), [(tensor.data_ptr(), tensor.shape) for tensor in feed.tensors()]

        return GraphedFunction(one, signature, self._capture)

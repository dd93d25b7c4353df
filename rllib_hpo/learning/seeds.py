"""Make the updates of several seeds of one algorithm together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from rllib_hpo.algorithms.base import Noise
from rllib_hpo.errors import NonFiniteError
from rllib_hpo.learning.compiling import Function, bind, compile_trace, compiles, rehearsal, trace_update
from rllib_hpo.learning.graph import Capture, GraphedFunction, make_capture
from rllib_hpo.learning.memory import explain_out_of_memory
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.learning.stacking import Stacked, stack_graph
from rllib_hpo.learning.updates import Updates
from rllib_hpo.replay.feed import Feed, IndexFeed, RowFeed, StackedFeed
from rllib_hpo.replay.frames import random_batch, random_parts
from rllib_hpo.replay.layout import Batch
from rllib_hpo.replay.ring import Replay

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class SeedGroup:
    """Make the updates of several seeds, on a GPU as one function of stacked tensors.

    Each seed keeps its `ReplayLearner` with its replay, streams, counters and metrics: checkpoints and weights are read
    from there as if it trained alone. Once the group has made updates on a GPU, the tensors of these learners are
    slices of the stacked ones. On a CPU, where larger batches gain nothing, the learners take turns.

    Args:
        learners: Learners of equal settings, sizes and numbers of updates, each with its own seed.

    Raises:
        ValueError: If their settings or sizes differ.
    """

    def __init__(self, learners: Sequence[ReplayLearner]) -> None:
        _check_equal("settings", [learner.trainer.settings for learner in learners])
        _check_equal("sizes", [learner.trainer.layout for learner in learners])
        self.learners = tuple(learners)
        self.failures: dict[int, NonFiniteError] = {}
        """Errors by the index of the seed whose loss was not finite. It makes no more updates; the others go on."""
        self._stacked: StackedUpdates | None = None
        trainer = self.learners[0].trainer
        if trainer.device.type == "cuda":
            capture = make_capture(trainer.settings, trainer.device)
            self.stack(capture, compiled=compiles(trainer.settings))

    def stack(self, capture: Capture | None, *, compiled: bool = False) -> None:
        """Make the updates of all seeds as one function from now on; if that fails, log it, and take turns.

        Args:
            capture: How that function is captured; None for not at all.
            compiled: Whether it is compiled.
        """
        trainers = [learner.trainer for learner in self.learners]
        for trainer in trainers:
            if trainer.guard is None:
                trainer.update_in_bulk(capture, compiled=compiled)
        self._stacked = StackedUpdates(trainers, capture, compiled=compiled)

    def update_from_replay(self, num_updates: int) -> None:
        """Make updates of every seed, each with a batch from its own replay.

        Raises:
            ValueError: If the seeds have not made the same number of updates.
            UserError: If a GPU's memory does not suffice.
        """
        if self._stacked is not None:
            _check_equal("numbers of updates", [learner.trainer.num_updates for learner in self.learners])
            with explain_out_of_memory():
                if self._can_stack(self._stacked):
                    self._stacked.from_replays([learner.replay for learner in self.learners], num_updates)
                    return
        for seed in self._remaining():
            self._guarded(seed, lambda learner: learner.update_alone(num_updates))

    def _can_stack(self, stacked: StackedUpdates) -> bool:
        try:
            stacked.prepare()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001  (an error of the update itself comes again when seeds take turns)
            _logger.warning("The seeds take turns: their updates cannot be stacked (%s).", error)
            self._stacked = None
        return self._stacked is not None

    def flush_metrics(self) -> dict[int, dict[str, float]]:
        """Return the metrics of each seed that goes on; see `ReplayLearner.flush_metrics`."""
        found = {seed: self._guarded(seed, ReplayLearner.flush_metrics) for seed in self._remaining()}
        return {seed: metrics for seed, metrics in found.items() if metrics is not None}

    def _remaining(self) -> list[int]:
        return [seed for seed in range(len(self.learners)) if seed not in self.failures]

    def _guarded(self, seed: int, call: Callable[[ReplayLearner], Result]) -> Result | None:
        try:
            return call(self.learners[seed])
        except NonFiniteError as error:
            self.failures[seed] = error
            return None


class StackedUpdates:
    """Make the updates of several seeds as one function of their stacked tensors.

    Args:
        seeds: What makes the updates of each seed; all have a `DeviceGuard`.
        capture: How that function is captured; None for not at all.
        compiled: Whether it is compiled.
    """

    def __init__(self, seeds: Sequence[Updates], capture: Capture | None, *, compiled: bool = False) -> None:
        self._seeds, self._capture, self._compiled = seeds, capture, compiled
        self._updates: dict[str, Function] = {}
        self._prepared_for: object = None
        self._feed: StackedFeed | None = None
        self._repeated: GraphedFunction | None = None

    @property
    def num_captures(self) -> int:
        """Number of captures so far."""
        return 0 if self._repeated is None else self._repeated.num_captures

    def prepare(self) -> None:
        """Stack the tensors of all seeds, and trace one update of each kind, unless that is done.

        It changes the values of no tensor and draws from no stream. Tensors that were replaced since, as an optimizer's
        state when it is loaded, are stacked again.
        """
        if self._signature() == self._prepared_for:
            return
        inputs = [_example(updates) for updates in self._seeds]
        for updates, (batch, noise) in zip(self._seeds, inputs, strict=True):
            with rehearsal(updates.tensors):  # make what is made on first use
                for kind in updates.all_kinds():
                    updates.update(batch, noise, kind)
        stacks = _stack_tensors([updates.tensors() for updates in self._seeds])
        self._updates = {kind: self._trace(*inputs[0], kind, stacks) for kind in self._seeds[0].all_kinds()}
        self._prepared_for = self._signature()

    def from_replays(self, replays: Sequence[Replay], num_updates: int) -> None:
        """Make updates of all seeds with batches drawn from their replays; `prepare` comes first."""
        feed, first = self._feed_from(replays), self._seeds[0]
        while num_updates > 0:
            num = min(num_updates, first.updates_at_a_time, first.updates_until_diagnosis)
            for own, replay, updates in zip(feed.feeds, replays, self._seeds, strict=True):
                own.draw(replay, num, updates.streams)
            kinds = first.kinds(num)
            assert self._repeated is not None
            self._repeated.run(kinds)
            for own, updates in zip(feed.feeds, self._seeds, strict=True):
                updates.count(kinds, own.last)
            num_updates -= num

    def _signature(self) -> object:
        return [updates.signature() for updates in self._seeds]

    def _feed_from(self, replays: Sequence[Replay]) -> StackedFeed:
        """Return the feed, a new one if a replay has moved between the device and the host."""
        device = self._seeds[0].device
        classes = [IndexFeed if replay.device == device else RowFeed for replay in replays]
        if self._feed is None or [type(own) for own in self._feed.feeds] != classes:
            feeds = [self._make_feed(*pair) for pair in zip(classes, self._seeds, strict=True)]
            self._feed = feed = StackedFeed(feeds)

            def one(kind: str) -> None:
                self._updates[kind](*feed.next(), kind)

            def signature() -> object:
                return self._signature(), [(tensor.data_ptr(), tensor.shape) for tensor in feed.tensors()]

            self._repeated = GraphedFunction(one, signature, self._capture)
        return self._feed

    @staticmethod
    def _make_feed(kind: type[Feed], updates: Updates) -> Feed:
        batch_size = updates.settings.train_batch_size_per_learner
        return kind(updates.layout, updates.draws, batch_size, updates.updates_at_a_time, updates.device)

    def _trace(self, batch: Batch, noise: Noise, kind: str, stacks: Sequence[Tensor]) -> Function:
        """Trace an update of the first seed, and return the same of all."""
        first, num_seeds = self._seeds[0], len(self._seeds)
        with rehearsal(first.tensors):
            graph, arguments, names = trace_update(first.update, batch, noise, kind, compiled=self._compiled)
        size = first.settings.train_batch_size_per_learner
        parts = [torch.stack([part] * num_seeds) for part in random_parts(first.layout, size, first.device)]
        # Columns are views of rows, as in `StackedFeed`: what is compiled expects their strides.
        columns = first.layout.unpack_parts(parts).tensors()
        num_given = len(columns) + len(noise)
        draws = [torch.stack([tensor] * num_seeds) for tensor in arguments[len(columns) : num_given]]
        given = [Stacked(tensor) for tensor in (*columns, *draws)]
        held = [_among(stacks, tensor) for tensor in arguments[num_given:]]
        tensors = [value.tensor if isinstance(value, Stacked) else value for value in (*given, *held)]
        with rehearsal(lambda: stacks):
            together = stack_graph(graph, [*given, *held], num_seeds)
            return (
                compile_trace(together, tensors, names) if self._compiled else bind(together, tensors, names)
            )


def _example(updates: Updates) -> tuple[Batch, Noise]:
    """Return a batch and noise of the right shapes."""
    size, device = updates.settings.train_batch_size_per_learner, updates.device
    noise = {
        name: torch.full((draw.rows * size, *draw.shape), 0.5, device=device)
        for name, draw in updates.draws.items()
    }
    return random_batch(updates.layout, size, device), noise


@torch.no_grad()
def _stack_tensors(seeds: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Stack the tensors of each place, and make those of every seed slices of the result."""
    stacks = []
    for tensors in zip(*seeds, strict=True):
        stacks.append(torch.stack([tensor.detach() for tensor in tensors]))
        for tensor, value in zip(tensors, stacks[-1], strict=True):
            tensor.data = value
    return stacks


def _among(stacks: Sequence[Tensor], tensor: Tensor) -> Tensor | Stacked:
    """Return the stack whose first slice is `tensor`, or `tensor` itself, which then is a constant.

    Raises:
        ValueError: If it is another part of a stack.
    """
    for stack in stacks:
        if tensor.untyped_storage().data_ptr() == stack.untyped_storage().data_ptr():
            if tensor.data_ptr() == stack.data_ptr() and tensor.shape == stack.shape[1:]:
                return Stacked(stack)
            raise ValueError("an update reads a part of a tensor that is neither a parameter nor a buffer")
    return tensor


def _check_equal(what: str, values: Sequence[object]) -> None:
    """Check that all seeds have the same.

    Raises:
        ValueError: If they differ.
    """
    if any(value != values[0] for value in values):
        raise ValueError(f"the {what} of the seeds differ")

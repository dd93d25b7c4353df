"""Feed blocks of transitions to the learner in this process, or to remote learners."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.rllib.utils.annotations import override

from rllib_hpo.rllib.new_stack.learners import Learners, Trained
from rllib_hpo.rllib.new_stack.messages import Block, Weights, pickled_bytes

MAX_TRAIN_CALLS = 2
"""Blocks that remote learners hold at a time: the one they learn from, and the next."""
POLL_INTERVAL_S = 0.005
"""Seconds of updates in this process between two polls of the runners."""


class Feeding(ABC):
    """Feed blocks to a learner in order, with the updates each makes due, and provide the newest weights.

    Args:
        read_weights: Function that returns the learner's `ActorCriticLearner.acting_state`.
    """

    def __init__(self, read_weights: Callable[[], dict[str, Any]]) -> None:
        self._read_weights = read_weights
        self._weights: Weights | None = None
        self.waited_s = 0.0
        """Seconds that the learner was idle since this was last set to 0."""

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """Whether the learner accepts another block now."""

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Number of steps that were fed and whose updates are not all made yet.

        It is 0 for a learner in this process on a GPU, which runs the updates in order while this process continues.
        """

    @abstractmethod
    def feed(self, block: Block, num_updates: int) -> None:
        """Add the rows of `block` to the replay, then make `num_updates` updates."""

    @abstractmethod
    def weights(self) -> Weights:
        """The newest weights that are available without waiting for updates."""

    def _put_weights(self, number: int) -> Weights:
        """Put the learner's weights after update `number` into the object store."""
        state = self._read_weights()
        return Weights(number, ray.put(state), pickled_bytes(state))

    @abstractmethod
    def poll(self) -> None:
        """Receive the results of finished blocks without waiting.

        Raises:
            WorkerDiedError: If the learner is gone.
        """

    def refs(self) -> list[ray.ObjectRef]:
        """References to pass to `ray.wait`."""
        return []

    @abstractmethod
    def idled(self, seconds: float) -> None:
        """Count seconds in which this process has waited for samples."""

    def forget(self) -> None:
        """Drop cached weights after the learner's state was replaced."""
        self._weights = None


class LocalFeeding(Feeding):
    """Feed the learner in this process.

    Args:
        core: The learner's `ReplayLearner`.
        read_weights: See `Feeding`.
        meanwhile: Function to call between updates, every few milliseconds.
    """

    def __init__(
        self, core: Any, read_weights: Callable[[], dict[str, Any]], meanwhile: Callable[[], None]
    ) -> None:
        super().__init__(read_weights)
        self._core, self._meanwhile, self._num_steps = core, meanwhile, 0

    @property
    @override(Feeding)
    def has_room(self) -> bool:
        return True

    @property
    @override(Feeding)
    def num_steps(self) -> int:
        return self._num_steps

    @override(Feeding)
    def feed(self, block: Block, num_updates: int) -> None:
        """See `Feeding`.

        Raises:
            NonFiniteError: If a loss is not finite.
        """
        self._num_steps = block.num_steps
        if self._core.trainer.method.watches_rows:  # the weights hold statistics of rows
            self.forget()
        self._core.add_transitions(
            block.rows[block.place], block.episodes, num_relabelled=block.num_relabelled
        )
        looked_at, at_a_time = time.monotonic(), self._core.updates_at_a_time
        for made in range(0, num_updates, at_a_time):
            self._core.update_from_replay(min(at_a_time, num_updates - made))
            if time.monotonic() - looked_at > POLL_INTERVAL_S:
                self._meanwhile()
                looked_at = time.monotonic()
        self._num_steps = 0

    @override(Feeding)
    def weights(self) -> Weights:
        number = self._core.trainer.num_updates
        if self._weights is None or self._weights.number != number:
            self._weights = self._put_weights(number)
        return self._weights

    @override(Feeding)
    def idled(self, seconds: float) -> None:
        self.waited_s += seconds

    @override(Feeding)
    def poll(self) -> None:
        """Do nothing: `feed` returns when the block is finished."""


@dataclass
class _FedBlock:
    """A block that the remote learners have not finished."""

    num_steps: int
    updates_made: int
    """Updates of the whole run once it is finished."""
    trained: Trained
    waiting: list[ray.ObjectRef]
    """Replies that have not arrived, one for each learner."""
    waited_s: float = 0.0
    """Seconds that the learners which have replied were idle before, summed."""
    weights_bytes: int = 0
    """Size of the new weights, which one learner returns."""


class RemoteFeeding(Feeding):
    """Feed remote learners with references to rows; one of them returns weights with every block.

    Args:
        learners: The remote learners.
        updates_due: Function that returns the number of updates due for all steps fed so far.
    """

    def __init__(self, learners: Learners, updates_due: Callable[[], int]) -> None:
        super().__init__(learners.acting_state)
        self._learners, self._updates_due = learners, updates_due
        self._fed: list[_FedBlock] = []

    @property
    @override(Feeding)
    def has_room(self) -> bool:
        return len(self._fed) < MAX_TRAIN_CALLS

    @property
    @override(Feeding)
    def num_steps(self) -> int:
        return sum(fed.num_steps for fed in self._fed)

    def _updates_made(self) -> int:
        return self._updates_due() - self._learners.num_waiting

    @override(Feeding)
    def feed(self, block: Block, num_updates: int) -> None:
        trained = self._learners.train(
            block.rows, block.place, num_updates, block.episodes, block.num_relabelled
        )
        self._fed.append(_FedBlock(block.num_steps, self._updates_made(), trained, list(trained.learned)))

    @override(Feeding)
    def poll(self) -> None:
        """See `Feeding`.

        Raises:
            NonFiniteError: If a loss is not finite, of whichever learner.
        """
        self._drain_replies()
        while self._fed and not self._fed[0].waiting:
            fed = self._fed.pop(0)
            self.waited_s += fed.waited_s / len(fed.trained.learned)
            if fed.weights_bytes:
                self._weights = Weights(fed.updates_made, fed.trained.weights, fed.weights_bytes)

    def _drain_replies(self) -> None:
        """Receive all replies that are ready. After a death the oldest block may stay incomplete."""
        if not (refs := self.refs()):
            return
        ready, waiting = ray.wait(refs, num_returns=len(refs), timeout=0)
        over = set(ready)
        for fed in self._fed:
            for ref in [ref for ref in fed.waiting if ref in over]:
                learned = self._learners.answer(ref, waiting)
                fed.waited_s += learned.waited_s
                fed.weights_bytes += learned.weights_bytes
                fed.waiting.remove(ref)

    @override(Feeding)
    def refs(self) -> list[ray.ObjectRef]:
        return [ref for fed in self._fed for ref in fed.waiting]

    @override(Feeding)
    def weights(self) -> Weights:
        if self._weights is None:  # no block has returned any yet
            self._weights = self._put_weights(self._updates_made())
        return self._weights

    @override(Feeding)
    def forget(self) -> None:
        super().forget()
        self._fed.clear()

    @override(Feeding)
    def idled(self, seconds: float) -> None:
        """Do nothing: remote learners measure their idle time."""

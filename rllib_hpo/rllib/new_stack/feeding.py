"""What blocks of transitions are fed to: the learner in this process, or remote ones."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.rllib.utils.annotations import override

from rllib_hpo.rllib.new_stack.learners import Learners, Trained
from rllib_hpo.rllib.new_stack.sampling import Block
from rllib_hpo.rllib.remote import Weights, pickled_bytes

MAX_TRAIN_CALLS = 2
"""Blocks at a time with remote learners: one that they are at work on, and the next."""
SECONDS_BETWEEN_LOOKS = 0.005
"""How long the learner in this process may make updates before runners are looked after."""


class Feeding(ABC):
    """Takes blocks in order, each with the updates that it makes due, and has the newest weights.

    Args:
        read_weights: Reads `ActorCriticLearner.acting_state` from the learner.
    """

    def __init__(self, read_weights: Callable[[], dict[str, Any]]) -> None:
        self._read_weights = read_weights
        self._weights: Weights | None = None
        self.waited_s = 0.0
        """How long the learner has had nothing to do since this was last set to 0."""

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """Whether another block can be fed now."""

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Steps that were fed and whose updates are not all made yet.

        Of a learner in this process on a GPU none: its updates are made there, in order, while this process goes on.
        """

    @abstractmethod
    def feed(self, block: Block, num_updates: int) -> None:
        """Adds the rows of `block` to the replay, and then makes `num_updates`."""

    @abstractmethod
    def weights(self) -> Weights:
        """The newest that are to be had without waiting for updates under way."""

    def _put_weights(self, number: int) -> Weights:
        """Reads the learner's, behind which there are `number` updates, to where runners can fetch them."""
        state = self._read_weights()
        return Weights(number, ray.put(state), pickled_bytes(state))

    @abstractmethod
    def look_after(self) -> None:
        """Notes what has been finished.

        Raises:
            WorkerDiedError: If the learner is gone.
        """

    def refs(self) -> list[ray.ObjectRef]:
        """What can be waited for with `ray.wait`."""
        return []

    @abstractmethod
    def idled(self, seconds: float) -> None:
        """Is told that this process has waited for samples."""

    def forget(self) -> None:
        """The learner was put into another state: weights read before are not its own any more."""
        self._weights = None


class FeedingHere(Feeding):
    """The learner in this process.

    Args:
        core: What learns.
        read_weights: See `Feeding`.
        meanwhile: Called between updates, every few milliseconds.
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
        self._core.add_transitions(block.rows[block.start : block.end], block.episodes)
        looked_at, at_a_time = time.monotonic(), self._core.updates_at_a_time
        for made in range(0, num_updates, at_a_time):
            self._core.update_from_replay(min(at_a_time, num_updates - made))
            if time.monotonic() - looked_at > SECONDS_BETWEEN_LOOKS:
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
    def look_after(self) -> None:
        """Nothing: it is finished when it is fed."""


@dataclass
class _Fed:
    """A block that the remote learners have not finished yet."""

    num_steps: int
    updates_made: int
    """In the whole run when it is finished."""
    trained: Trained
    waiting: list[ray.ObjectRef]
    """Of learners that are not done with it."""
    waited_s: float = 0.0
    """How long those that are done had nothing to do before, all together."""
    weights_bytes: int = 0
    """Of the new weights, which one of them hands back."""


class FeedingRemotely(Feeding):
    """One remote learner or several, which get references to rows; one hands back weights with every block.

    Args:
        learners: What learns.
        updates_due: How many updates the steps that were fed call for.
    """

    def __init__(self, learners: Learners, updates_due: Callable[[], int]) -> None:
        super().__init__(learners.acting_state)
        self._learners, self._updates_due = learners, updates_due
        self._fed: list[_Fed] = []

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
        where = slice(block.start, block.end)
        trained = self._learners.train(block.rows, where, num_updates, block.episodes)
        self._fed.append(_Fed(block.num_steps, self._updates_made(), trained, list(trained.learned)))

    @override(Feeding)
    def look_after(self) -> None:
        """See `Feeding`.

        Raises:
            NonFiniteError: If a loss is not finite, of whichever learner.
        """
        self._hear_from_learners()
        while self._fed and not self._fed[0].waiting:
            fed = self._fed.pop(0)
            self.waited_s += fed.waited_s / len(fed.trained.learned)
            if fed.trained.num_updates:
                self._weights = Weights(fed.updates_made, fed.trained.weights, fed.weights_bytes)

    def _hear_from_learners(self) -> None:
        """Takes in all answers that are there: where a learner died, the oldest block's may never be whole."""
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
        if self._weights is None:  # none were handed back yet
            self._weights = self._put_weights(self._updates_made())
        return self._weights

    @override(Feeding)
    def forget(self) -> None:
        super().forget()
        self._fed.clear()

    @override(Feeding)
    def idled(self, seconds: float) -> None:
        """Nothing: the learners measure that themselves."""

"""What blocks of transitions are fed to: the learner in this process, or a remote one."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.rllib.utils.annotations import override

from rllib_hpo.errors import WorkerDiedError
from rllib_hpo.rllib.remote import TrainCall, Weights, fetch
from rllib_hpo.rllib.sampling import Block

MAX_TRAIN_CALLS = 2
"""Calls at a time to a remote learner: one that it is at work on, and the next."""
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
        """Steps that were fed and whose updates are not all made yet."""

    @abstractmethod
    def feed(self, block: Block, num_updates: int) -> None:
        """Adds the rows of `block` to the replay, and then makes `num_updates`."""

    @abstractmethod
    def weights(self) -> Weights:
        """The newest that are to be had without waiting for updates under way."""

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
        self._core.add_transitions(block.rows[block.start : block.end])
        looked_at = time.monotonic()
        for _ in range(num_updates):
            self._core.update_from_replay(1)
            if time.monotonic() - looked_at > SECONDS_BETWEEN_LOOKS:
                self._meanwhile()
                looked_at = time.monotonic()
        self._num_steps = 0

    @override(Feeding)
    def weights(self) -> Weights:
        number = self._core.trainer.num_updates
        if self._weights is None or self._weights.number != number:
            self._weights = Weights(number, ray.put(self._read_weights()))
        return self._weights

    @override(Feeding)
    def idled(self, seconds: float) -> None:
        self.waited_s += seconds

    @override(Feeding)
    def look_after(self) -> None:
        """Nothing: it is finished when it is fed."""


@dataclass
class _TrainCall:
    """A block that the remote learner has not finished yet."""

    num_steps: int
    num_updates: int
    """Made in the whole run when it is finished."""
    waited_s: ray.ObjectRef
    weights: ray.ObjectRef


class FeedingRemotely(Feeding):
    """A remote learner, which gets references to rows and hands back its weights with every block.

    Several learners, each with a replay of its own, would be dealt blocks in turn: `learners` is the seam.

    Args:
        learners: Actors.
        read_weights: See `Feeding`.
        updates_made: How many updates the run has made when nothing is fed any more.
    """

    def __init__(
        self,
        learners: list[Any],
        read_weights: Callable[[], dict[str, Any]],
        updates_made: Callable[[], int],
    ) -> None:
        super().__init__(read_weights)
        self._dealt, self._updates_made = itertools.cycle(learners), updates_made
        self._calls: list[_TrainCall] = []

    @property
    @override(Feeding)
    def has_room(self) -> bool:
        return len(self._calls) < MAX_TRAIN_CALLS

    @property
    @override(Feeding)
    def num_steps(self) -> int:
        return sum(call.num_steps for call in self._calls)

    @override(Feeding)
    def feed(self, block: Block, num_updates: int) -> None:
        call = TrainCall(slice(block.start, block.end), num_updates)
        # As an argument of its own Ray puts the rows in place over there, and not through this process.
        waited_s, weights = next(self._dealt).apply.options(num_returns=2).remote(call, block.rows)
        self._calls.append(
            _TrainCall(block.num_steps, self._updates_made() if num_updates else 0, waited_s, weights)
        )

    @override(Feeding)
    def look_after(self) -> None:
        while self._calls and ray.wait([self._calls[0].waited_s], timeout=0)[0]:
            call = self._calls.pop(0)
            try:
                self.waited_s += fetch(call.waited_s)
            except RayActorError as error:
                raise WorkerDiedError(
                    "The remote learner died; resume the run from its last checkpoint."
                ) from error
            if call.num_updates:
                self._weights = Weights(call.num_updates, call.weights)

    @override(Feeding)
    def refs(self) -> list[ray.ObjectRef]:
        return [call.waited_s for call in self._calls]

    @override(Feeding)
    def weights(self) -> Weights:
        if self._weights is None:  # none were handed back yet
            self._weights = Weights(self._updates_made(), ray.put(self._read_weights()))
        return self._weights

    @override(Feeding)
    def forget(self) -> None:
        super().forget()
        self._calls.clear()

    @override(Feeding)
    def idled(self, seconds: float) -> None:
        """Nothing: the learner measures that itself."""

"""Call all learners of a run, merge their results, and handle the death of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, UnserializableException
from ray.rllib.core.learner.learner_group import LearnerGroup

from rllib_hpo.algorithms.base import Episode
from rllib_hpo.errors import WorkerDiedError
from rllib_hpo.optim.replicas import LEARNER_DIED_MESSAGE, LEARNERS_DIED_MESSAGE, merge_metrics
from rllib_hpo.replay.frames import Transitions
from rllib_hpo.replay.shards import Dealer
from rllib_hpo.rllib._private import actor_manager
from rllib_hpo.rllib.new_stack.messages import CoreCall, TrainCall, single_success
from rllib_hpo.rllib.remote import Call, fetch

GRACE_S = 5.0
"""Seconds that learners get to end by themselves after one has failed; they may wait for that one."""

_MERGED: dict[str, Callable[[list[Any]], Any]] = {
    "flush_metrics": merge_metrics,
    "latest_diagnostics": merge_metrics,
    "total_rows": sum,
    "save_replay": lambda shards: [segment for shard in shards for segment in shard],
}
"""How to merge the results of several learners, by method; otherwise all are equal and the first is taken."""


class Trained(NamedTuple):
    """References to the results of one `Learners.train`."""

    num_updates: int
    """Updates that every learner makes."""
    learned: list[ray.ObjectRef]
    """A `Learned` of each learner."""
    weights: ray.ObjectRef
    """New weights, if they have changed."""


class Learners:
    """Call the learners of an RLlib LearnerGroup: the local one, a remote one, or several.

    Several learners train one model in lockstep (`rllib_hpo.optim.replicas`), each with a shard of the replay, so
    every call goes to all of them.

    Args:
        group: The learner group.
        all_see_rows: Whether every learner gets all rows; otherwise only the one that stores them.
    """

    def __init__(self, group: LearnerGroup, *, all_see_rows: bool = False) -> None:
        self._group, self._num, self._all_see_rows = group, max(1, len(group)), all_see_rows
        self._dealer = Dealer(self._num)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of every `ReplayLearner`, and return the merged result.

        Raises:
            WorkerDiedError: If a learner's process has died.
            NonFiniteError: If a loss is not finite, of whichever learner.
        """
        if self._num == 1:
            return single_success(self._group.foreach_learner(CoreCall(method, *args)))
        answers = self._ask([CoreCall(method, *args)] * self._num)
        return _MERGED[method](answers) if method in _MERGED else answers[0]

    def acting_state(self) -> dict[str, Any]:
        """The actor's part of the model, which is the same on all learners."""
        if self._num == 1:
            state: dict[str, Any] = single_success(self._group.foreach_learner(Call("acting_state")))
        else:
            (state,) = self._ask([Call("acting_state")])
        return state

    def train(
        self,
        rows: Transitions | ray.ObjectRef,
        where: slice,
        num_updates: int,
        episodes: Sequence[Episode] = (),
        num_relabelled: int = 0,
    ) -> Trained:
        """Send remote learners a block of transitions and the updates it makes due, without waiting.

        One of several learners stores the block; all make the same updates, once each has rows to draw from.

        Args:
            rows: Transitions, or a reference to them.
            where: The slice of them that belongs to the block.
            num_updates: Updates that the block makes due.
            episodes: Episodes that ended in the block.
            num_relabelled: Relabelled transitions at the end of the block.
        """
        shard, due = self._dealer.deal(num_updates)
        asked = []
        for rank, actor in enumerate(self._actors()):
            call = TrainCall(where, due, rank == 0, episodes, num_relabelled, keeps_rows=rank == shard)
            # As an argument of its own, the rows go straight to the learner, and not through this process.
            seen = [rows] if rank == shard or self._all_see_rows else []
            asked.append(actor.apply.options(num_returns=2).remote(call, *seen))
        return Trained(due, [learned for learned, _ in asked], asked[0][1])

    @property
    def num_waiting(self) -> int:
        """Updates that are due and wait until every learner has rows to draw from."""
        return self._dealer.num_waiting

    def answer(self, ref: ray.ObjectRef, waiting: Sequence[ray.ObjectRef]) -> Any:
        """The result of a finished call.

        Args:
            ref: Reference of the call.
            waiting: References of unfinished calls. If this call failed, learners that do not finish soon are killed:
                they may wait for the one that failed.

        Raises:
            WorkerDiedError: If a learner's process has died.
            Exception: The error that a learner raised.
        """
        try:
            return fetch(ref)
        except Exception as error:
            self._abandon(waiting)
            if isinstance(error, RayError) and not isinstance(error, UnserializableException):  # the user's
                raise WorkerDiedError(
                    LEARNER_DIED_MESSAGE if self._num == 1 else LEARNERS_DIED_MESSAGE
                ) from error
            raise

    def _ask(self, calls: Sequence[Call]) -> list[Any]:
        """Results of one call to each of the first remote learners, in order; the first failure ends them all."""
        asked = [actor.apply.remote(call) for actor, call in zip(self._actors(), calls, strict=False)]
        waiting = asked
        while waiting:
            (ready,), waiting = ray.wait(waiting)
            self.answer(ready, waiting)
        answers: list[Any] = ray.get(asked)
        return answers

    def _actors(self) -> list[Any]:
        return list(actor_manager(self._group).actors().values())

    def _abandon(self, waiting: Sequence[ray.ObjectRef]) -> None:
        """Kill learners that would wait for the one that failed."""
        if self._num == 1 or not waiting:
            return
        if ray.wait(list(waiting), num_returns=len(waiting), timeout=GRACE_S)[1]:
            for actor in self._actors():
                ray.kill(actor)

    def get_state(self) -> dict[str, Any]:
        """The state of several learners; RLlib's own holds the first one's, so a single learner adds nothing."""
        if self._num == 1:
            return {}
        return {"learners": self._get_progress(), "dealer": self._dealer.get_state()}

    def _get_progress(self) -> list[dict[str, Any]]:
        return self._ask([CoreCall("get_progress")] * self._num)

    def set_state(self, state: dict[str, Any], env_steps: int) -> None:
        """Restore the learners' own progress, after RLlib has given all of them the first one's state.

        Args:
            state: A result of `get_state`, of as many learners or of another number.
            env_steps: Environment step of the state, at which additional learners join.
        """
        if self._num == 1:
            return
        saved = state.get("learners") or self._get_progress()[:1]
        progress = (saved + [None] * self._num)[: self._num]
        self._ask([CoreCall("set_progress", each, env_steps) for each in progress])
        dealer = state.get("dealer", {"num_waiting": 0})
        if len(saved) != self._num:  # the rows were resharded one by one
            dealer = {**dealer, "num_blocks": env_steps}
        self._dealer = Dealer(self._num, **dealer)

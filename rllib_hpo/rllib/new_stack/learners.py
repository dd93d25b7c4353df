"""The learners of one run: what is asked of all of them, what their answers are together, and when one dies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayError, UnserializableException
from ray.rllib.core.learner.learner_group import LearnerGroup

from rllib_hpo.algorithms.base import Episode
from rllib_hpo.errors import WorkerDiedError
from rllib_hpo.optim.replicas import LOST, ONE_LOST, merge_metrics
from rllib_hpo.replay.shards import Dealer
from rllib_hpo.rllib._private import actor_manager
from rllib_hpo.rllib.remote import Call, CoreCall, TrainCall, fetch, only_success

GRACE_S = 5.0
"""How long learners get to end by themselves once one has failed; they may be waiting for that one."""

_MERGED: dict[str, Callable[[list[Any]], Any]] = {
    "flush_metrics": merge_metrics,
    "latest_diagnostics": merge_metrics,
    "total_rows": sum,
    "save_replay": lambda shards: [segment for shard in shards for segment in shard],
}
"""What the answers of several learners are together; otherwise all are equal, and the first one's stands for them."""


class Trained(NamedTuple):
    """Where the answers to one `Learners.train` arrive."""

    num_updates: int
    """That every learner makes."""
    learned: list[ray.ObjectRef]
    """Each learner's `Learned`."""
    weights: ray.ObjectRef
    """The new ones, if any updates are made."""


class Learners:
    """Calls to the learners of an RLlib LearnerGroup: the one in this process, a remote one, or several.

    Several train one model in step (`rllib_hpo.optim.replicas`), each with a shard of the replay, so every
    call goes to all of them.

    Args:
        group: The learners.
        all_see_rows: Whether every learner gets all rows to look at, beside the one that keeps them.
    """

    def __init__(self, group: LearnerGroup, *, all_see_rows: bool = False) -> None:
        self._group, self._num, self._all_see_rows = group, max(1, len(group)), all_see_rows
        self._dealer = Dealer(self._num)

    def call(self, method: str, *args: Any) -> Any:
        """Calls a method of every `ReplayLearner`; their answer.

        Raises:
            WorkerDiedError: If a learner's process is gone.
            NonFiniteError: If a loss is not finite, of whichever learner.
        """
        if self._num == 1:
            return only_success(self._group.foreach_learner(CoreCall(method, *args)))
        answers = self._ask([CoreCall(method, *args)] * self._num)
        return _MERGED[method](answers) if method in _MERGED else answers[0]

    def acting_state(self) -> dict[str, Any]:
        """What runners need, which is the same of all learners."""
        if self._num == 1:
            state: dict[str, Any] = only_success(self._group.foreach_learner(Call("acting_state")))
        else:
            (state,) = self._ask([Call("acting_state")])
        return state

    def train(
        self,
        rows: npt.NDArray[np.float32] | ray.ObjectRef,
        where: slice,
        num_updates: int,
        episodes: Sequence[Episode] = (),
    ) -> Trained:
        """Sends the remote learners a block of transitions and the updates that it makes due; does not wait.

        The block goes to one of several; all make the same updates, once each has rows to draw from.

        Args:
            rows: (N, width), or where the rows are.
            where: Which of them.
            num_updates: Due with this block.
            episodes: That ended in it.
        """
        shard, due = self._dealer.deal(num_updates)
        asked = []
        for rank, actor in enumerate(self._actors()):
            call = TrainCall(where, due, rank == 0, episodes, keeps_rows=rank == shard)
            # As an argument of its own Ray puts the rows in place over there, and not through this process.
            seen = [rows] if rank == shard or self._all_see_rows else []
            asked.append(actor.apply.options(num_returns=2).remote(call, *seen))
        return Trained(due, [learned for learned, _ in asked], asked[0][1])

    @property
    def num_waiting(self) -> int:
        """Updates that are due, and held back until every learner has rows to draw from."""
        return self._dealer.num_waiting

    def answer(self, ref: ray.ObjectRef, waiting: Sequence[ray.ObjectRef]) -> Any:
        """What a call that is over returned.

        Args:
            ref: The call's.
            waiting: Calls that are not over. If this one failed, learners that do not end them soon are killed:
                they may be waiting for the one that failed.

        Raises:
            WorkerDiedError: If a learner's process is gone.
            Exception: What a learner raised.
        """
        try:
            return fetch(ref)
        except Exception as error:
            self._give_up(waiting)
            if isinstance(error, RayError) and not isinstance(error, UnserializableException):  # the user's
                raise WorkerDiedError(ONE_LOST if self._num == 1 else LOST) from error
            raise

    def _ask(self, calls: Sequence[Call]) -> list[Any]:
        """The answers of the first remote learners to a call each, in order; the first failure ends them all."""
        asked = [actor.apply.remote(call) for actor, call in zip(self._actors(), calls, strict=False)]
        waiting = asked
        while waiting:
            (ready,), waiting = ray.wait(waiting)
            self.answer(ready, waiting)
        answers: list[Any] = ray.get(asked)
        return answers

    def _actors(self) -> list[Any]:
        return list(actor_manager(self._group).actors().values())

    def _give_up(self, waiting: Sequence[ray.ObjectRef]) -> None:
        """Ends learners that would wait for the one that failed."""
        if self._num == 1 or not waiting:
            return
        if ray.wait(list(waiting), num_returns=len(waiting), timeout=GRACE_S)[1]:
            for actor in self._actors():
                ray.kill(actor)

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint needs beside RLlib's, which holds the first learner's state; nothing of one alone."""
        if self._num == 1:
            return {}
        return {"learners": self._get_progress(), "dealer": self._dealer.get_state()}

    def _get_progress(self) -> list[dict[str, Any]]:
        return self._ask([CoreCall("get_progress")] * self._num)

    def set_state(self, state: dict[str, Any], env_steps: int) -> None:
        """Goes on where `get_state` was called; RLlib has given the first learner's state to all.

        Args:
            state: What it returned, of as many learners or of another number.
            env_steps: Step of the run that the state is of, at which learners that it does not know join.
        """
        if self._num == 1:
            return
        saved = state.get("learners") or self._get_progress()[:1]
        progress = (saved + [None] * self._num)[: self._num]
        self._ask([CoreCall("set_progress", each, env_steps) for each in progress])
        dealer = state.get("dealer", {"num_waiting": 0})
        if len(saved) != self._num:  # the rows were dealt anew, one by one
            dealer = {**dealer, "num_blocks": env_steps}
        self._dealer = Dealer(self._num, **dealer)

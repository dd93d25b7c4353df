"""Train several seeds in one process, and make their updates together.

The training of a seed is a call that makes updates between its steps, evaluations and checkpoints. Each call has a
thread, but only one thread runs at a time: until its call asks for updates or ends, as a coroutine does. Once all calls
that go on have asked, the updates are made together. So no two seeds use what a process has once, such as environment
variables and the state of torch, at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.learning.seeds import SeedGroup

Result = TypeVar("Result")


class SharedUpdates:
    """Call what trains several seeds, and make their updates together.

    Args:
        make_group: Function that makes the group of some learners; a group is kept as long as it has the same ones.
    """

    def __init__(self, make_group: Callable[[Sequence[ReplayLearner]], SeedGroup] = SeedGroup) -> None:
        self._make_group = make_group
        self._group: SeedGroup | None = None

    def run(self, learners: Sequence[ReplayLearner], calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """Make calls, each of which trains one of the learners, and return their results.

        Learners that have made different numbers of updates make theirs one after the other.

        Raises:
            Exception: What a call raises, after all have ended.
        """
        seeds = [_Seed(learner, call) for learner, call in zip(learners, calls, strict=True)]
        group = self._find_group(learners)
        try:
            while going := [seed for seed in seeds if not seed.is_over]:
                for seed in going:
                    if not seed.num_wanted:
                        seed.resume()
                if asking := [seed for seed in going if not seed.is_over]:
                    _update(asking, group if len(asking) == len(seeds) else None)
        finally:
            for learner in learners:
                learner.together = None
        return [seed.result() for seed in seeds]

    def _find_group(self, learners: Sequence[ReplayLearner]) -> SeedGroup | None:
        """Return the group of these learners; None if their numbers of updates differ or there is only one."""
        if len({learner.trainer.num_updates for learner in learners}) > 1 or len(learners) == 1:
            return None
        if self._group is None or self._group.learners != tuple(learners) or self._group.failures:
            self._group = self._make_group(learners)
        return self._group


def _update(seeds: Sequence[_Seed[Result]], group: SeedGroup | None) -> None:
    """Make as many updates as all of these seeds have asked for; errors are raised in their calls."""
    num_updates = min(seed.num_wanted for seed in seeds)
    if group is None:
        for seed in seeds:
            try:
                seed.learner.update_alone(num_updates)
            except Exception as error:  # noqa: BLE001  (it is raised where the updates were asked for)
                seed.error = error
    else:
        try:
            group.update_from_replay(num_updates)
        except Exception as error:  # noqa: BLE001  (as above)
            for seed in seeds:
                seed.error = error
        for number, failure in group.failures.items():
            seeds[number].error = failure
    for seed in seeds:
        seed.num_wanted = 0 if seed.error is not None else seed.num_wanted - num_updates


class _Seed(Generic[Result]):
    """A call in a thread that runs only while `resume` waits for it.

    Args:
        learner: What the call trains.
        call: Makes updates by `learner.update_from_replay`.
    """

    def __init__(self, learner: ReplayLearner, call: Callable[[], Result]) -> None:
        self.learner, self._call = learner, call
        self.num_wanted = 0
        """Number of updates that the call waits for."""
        self.error: Exception | None = None
        """Raised in the call instead of updates."""
        self._resumed, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._outcome: Future[Result] = Future()
        learner.together = self._ask
        threading.Thread(target=self._run, daemon=True, name="seed").start()

    @property
    def is_over(self) -> bool:
        """Whether the call has ended."""
        return self._outcome.done()

    def result(self) -> Result:
        """Return or raise what the call has."""
        return self._outcome.result()

    def resume(self) -> None:
        """Let the call run until it asks for updates or ends."""
        self._resumed.release()
        self._paused.acquire()

    def _ask(self, num_updates: int) -> None:
        """Wait until updates are made; called in the thread."""
        if num_updates == 0:
            return
        self.num_wanted = num_updates
        self._paused.release()
        self._resumed.acquire()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        self._resumed.acquire()
        try:
            self._outcome.set_result(self._call())
        except BaseException as error:  # noqa: BLE001  (`result` raises it)
            self._outcome.set_exception(error)
        self._paused.release()

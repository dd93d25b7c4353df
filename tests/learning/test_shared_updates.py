"""Test training calls of several seeds whose updates are made together; on a CPU a test asks for stacked tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
import torch

from rllib_hpo.errors import NonFiniteError
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.learning.seeds import SeedGroup
from rllib_hpo.learning.shared_updates import SharedUpdates
from tests.learning.test_seeds import (
    SEEDS,
    SMALL,
    assert_bitwise,
    assert_close,
    assert_same_streams,
    learner_of,
    learners_of,
)


class Groups:
    """Make groups that stack on a CPU, and count the updates that each makes."""

    def __init__(self, *, stacked: bool = False) -> None:
        self.made: list[tuple[SeedGroup, list[int]]] = []
        self._stacked = stacked

    def __call__(self, learners: Sequence[ReplayLearner]) -> SeedGroup:
        group, numbers = SeedGroup(learners), list[int]()
        if self._stacked:
            group.stack(None)
        update = group.update_from_replay

        def counted(num_updates: int) -> None:
            numbers.append(num_updates)
            update(num_updates)

        group.update_from_replay = counted  # type: ignore[method-assign]
        self.made.append((group, numbers))
        return group

    @property
    def numbers(self) -> list[list[int]]:
        """Numbers of updates that each group was asked for."""
        return [numbers for _, numbers in self.made]


def asking(learner: ReplayLearner, *numbers: int) -> Callable[[], int]:
    """Return a call that asks for these numbers of updates one after the other, and returns how many were made."""

    def call() -> int:
        for number in numbers:
            before = learner.trainer.num_updates
            learner.update_from_replay(number)
            assert learner.trainer.num_updates == before + number
        return learner.trainer.num_updates

    return call


def test_requests_of_different_sizes_are_cut_to_what_all_ask_for() -> None:
    groups, learners, alone = Groups(), learners_of(SMALL, bulk=False), learners_of(SMALL, bulk=False)
    requests = [(3, 5), (4, 0, 4), (8,)]
    calls = [asking(learner, *numbers) for learner, numbers in zip(learners, requests, strict=True)]
    assert SharedUpdates(groups).run(learners, calls) == [8, 8, 8]
    assert groups.numbers == [[3, 1, 4]]
    for ours, theirs in zip(learners, alone, strict=True):
        theirs.update_from_replay(8)
        assert_bitwise(ours, theirs)
        assert_same_streams(ours, theirs)


def test_stacked_updates_are_those_of_each_alone_and_the_group_is_kept() -> None:
    groups, learners, alone = Groups(stacked=True), learners_of(SMALL), learners_of(SMALL)
    shared = SharedUpdates(groups)
    for _ in range(2):
        shared.run(learners, [asking(learner, 2, 1) for learner in learners])
    assert groups.numbers == [[2, 1, 2, 1]]
    for ours, theirs in zip(learners, alone, strict=True):
        theirs.update_from_replay(6)
        assert_close(ours.trainer.tensors(), theirs.trainer.tensors())
        assert_same_streams(ours, theirs)


def test_only_one_call_runs_at_a_time() -> None:
    running: list[int] = []
    learners = learners_of(SMALL, bulk=False)

    def call(seed: int) -> None:
        for _ in range(20):
            running.append(seed)
            threading.Event().wait(0.0005)  # another thread would come in between
            assert running.pop() == seed
            assert not running
            learners[seed].update_from_replay(1)

    SharedUpdates().run(learners, [lambda seed=seed: call(seed) for seed in range(SEEDS)])  # type: ignore[misc]
    assert [learner.trainer.num_updates for learner in learners] == [20] * SEEDS


def test_others_go_on_when_a_call_ends_early() -> None:
    """As after a stop; they are then updated one after the other, and the next group is of those that are left."""
    groups, learners = Groups(), learners_of(SMALL, bulk=False)
    calls = [asking(learners[0], 2, 2), asking(learners[1], 2), asking(learners[2], 2, 2)]
    shared = SharedUpdates(groups)
    assert shared.run(learners, calls) == [4, 2, 4]
    assert groups.numbers == [[2]]
    assert shared.run(learners[::2], [asking(learners[0], 3), asking(learners[2], 3)]) == [7, 7]
    assert groups.numbers == [[2], [3]]


def test_learners_with_different_numbers_of_updates_are_not_grouped() -> None:
    groups, learners = Groups(), learners_of(SMALL, bulk=False)
    learners[1].update_from_replay(2)
    shared = SharedUpdates(groups)
    assert shared.run(learners, [asking(learner, 4) for learner in learners]) == [4, 6, 4]
    assert shared.run(learners[:1], [asking(learners[0], 2)]) == [6]
    assert groups.made == []
    assert shared.run(learners[:2], [asking(learner, 1) for learner in learners[:2]]) == [7, 7]
    assert groups.numbers == [[1]]


def test_a_loss_that_is_not_finite_is_raised_in_its_call() -> None:
    """The others make all of their updates; the error comes out once they have."""
    groups, learners, alone = Groups(), learners_of(SMALL, bulk=False), learners_of(SMALL, bulk=False)
    learners[1].replay.rows[:] = float("nan")
    shared = SharedUpdates(groups)
    with pytest.raises(NonFiniteError, match="The critic loss is nan at update 1"):
        shared.run(learners, [asking(learner, 2, 3) for learner in learners])
    for seed in (0, 2):
        alone[seed].update_from_replay(5)
        assert_bitwise(learners[seed], alone[seed])
    assert shared.run(learners[::2], [asking(learners[seed], 1) for seed in (0, 2)]) == [6, 6]
    assert [group.learners for group, _ in groups.made] == [tuple(learners), tuple(learners[::2])]


def test_an_error_of_the_group_is_raised_in_every_call() -> None:
    class Failing(SeedGroup):
        def update_from_replay(self, num_updates: int) -> None:
            raise torch.OutOfMemoryError("out of memory")

    learners = learners_of(SMALL, bulk=False)
    raised = list[int]()

    def call(seed: int) -> None:
        with pytest.raises(torch.OutOfMemoryError):
            learners[seed].update_from_replay(1)
        raised.append(seed)

    SharedUpdates(Failing).run(learners, [lambda seed=seed: call(seed) for seed in range(SEEDS)])  # type: ignore[misc]
    assert raised == [0, 1, 2]


def test_learners_update_alone_afterwards() -> None:
    learner, other = learner_of(SMALL, 0, bulk=False), learner_of(SMALL, 1, bulk=False)
    SharedUpdates().run([learner, other], [asking(learner, 1), asking(other, 1)])
    learner.update_from_replay(2)
    assert (learner.trainer.num_updates, other.trainer.num_updates) == (3, 1)

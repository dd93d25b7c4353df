"""Test the arithmetic of the schedule."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_hpo.rllib.new_stack.messages import split_evenly
from rllib_hpo.rllib.schedule import Schedule
from rllib_hpo.settings import SACSettings

RATES = st.sampled_from(["0", "0.1", "0.25", "0.3", "0.7", "1", "1.5", "2", "3", "20"])
COUNTS = st.integers(1, 300)


@given(rate=RATES, warmup=COUNTS, env_steps=st.integers(0, 10**7))
def test_updates_due_are_exact(rate: str, warmup: int, env_steps: int) -> None:
    schedule = Schedule(SACSettings(update_to_data=float(rate), warmup_steps=warmup))
    expected = math.floor(Fraction(rate) * max(0, env_steps - warmup))
    assert schedule.updates_due(env_steps) == expected


@given(rate=RATES, warmup=COUNTS, blocks=st.lists(st.integers(1, 40), max_size=30))
def test_updates_do_not_depend_on_how_steps_arrive(rate: str, warmup: int, blocks: list[int]) -> None:
    schedule = Schedule(SACSettings(update_to_data=float(rate), warmup_steps=warmup))
    steps = made = 0
    for block in blocks:
        steps += block
        due = schedule.updates_due(steps) - made
        assert due >= 0
        made += due
    assert made == schedule.updates_due(sum(blocks))


def test_there_is_no_catching_up_for_the_warm_up() -> None:
    schedule = Schedule(SACSettings(warmup_steps=100))
    assert [schedule.updates_due(steps) for steps in (0, 99, 100, 101, 105)] == [0, 0, 0, 1, 5]
    assert [schedule.is_warmup(steps) for steps in (0, 99, 100, 101)] == [True, True, False, False]


@given(
    warmup=COUNTS,
    evaluation=COUNTS,
    checkpoint=COUNTS,
    iteration=COUNTS,
    fragment=st.integers(1, 50),
)
def test_no_fragment_crosses_a_boundary(
    warmup: int, evaluation: int, checkpoint: int, iteration: int, fragment: int
) -> None:
    """Fragments that end at `next_stop` visit every boundary below 600."""
    schedule = Schedule(
        SACSettings(
            warmup_steps=warmup,
            evaluation_every=evaluation,
            checkpoint_every=checkpoint,
            steps_per_iteration=iteration,
        )
    )
    steps, visited, ends = 0, {0}, {0}
    while steps < 600:
        end = schedule.iteration_end(steps)
        assert 0 < end - steps <= iteration
        while steps < end:
            stop = schedule.next_stop(steps, end)
            assert steps < stop <= end
            steps = min(stop, steps + fragment)
            visited.add(steps)
        ends.add(steps)
    evaluations = {step for step in range(600) if schedule.evaluation_due(step)}
    assert evaluations == set(range(0, 600, evaluation))
    assert evaluations | ({warmup} if warmup < 600 else set()) <= visited
    checkpoints = {step for step in range(1, 600) if schedule.checkpoint_due(step)}
    assert checkpoints == set(range(checkpoint, 600, checkpoint))
    assert checkpoints | set(range(0, 600, iteration)) <= ends


@given(total=st.integers(0, 10_000), num=st.integers(1, 50))
def test_shares_are_even(total: int, num: int) -> None:
    parts = split_evenly(total, num)
    assert len(parts) == num
    assert sum(parts) == total
    assert max(parts) - min(parts) <= 1


@pytest.mark.parametrize("rate", [1e-05, 1 / 3, 0.1 + 0.2])
def test_odd_rates_are_taken_as_they_are_written(rate: float) -> None:
    schedule = Schedule(SACSettings(update_to_data=rate, warmup_steps=1))
    assert schedule.updates_due(1_000_001) == math.floor(Fraction(str(rate)) * 1_000_000)

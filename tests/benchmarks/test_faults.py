"""Test the table of faults: its arithmetic, and that the README shows the measurements."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from benchmarks import faults
from rllib_hpo.errors import UserError
from tests.experiments.faults import FAULTS, Broken
from tests.experiments.steps_log import Iteration

STEPS = list(range(0, 2_001, 100))


def broken(steps: list[int]) -> Broken:
    """Make a trial killed at 30 s after 1,250 steps, and resumed from 1,000."""
    before = [Iteration(step / 50, 0.0, 1, step, step + 10) for step in range(0, 1_250, 10)]
    after = [Iteration(40 + step / 50, 0.0, 2, step, step + 10) for step in range(1_000, 2_000, 10)]
    return Broken(pa.table({"env_steps": steps}), before + after, 30.0, "")


def test_a_break_is_measured() -> None:
    found = faults.measured(FAULTS["trial"], broken(STEPS), pa.table({"env_steps": STEPS}))
    assert found == {
        "title": "trial killed",
        "seconds_lost": 34.8,  # it was at 1,250 again when the clock stood at 64.8
        "steps_repeated": 250,
        "rows_lost": 0,
        "rows_doubled": 0,
        "equal": True,
        "equality_promised": True,
    }
    assert "| trial killed | 34.8 | 250 | 0 | 0 | yes |" in faults.table({"trial": found})


def test_lost_and_doubled_rows_are_counted() -> None:
    rows = [*STEPS[1:], 100, 100]
    found = faults.measured(FAULTS["runner"], broken(rows), pa.table({"env_steps": STEPS}))
    assert (found["rows_lost"], found["rows_doubled"]) == (1, 2)
    assert "| 1 | 2 | no, not promised |" in faults.table({"runner": found})


def test_a_broken_promise_ends_the_benchmark() -> None:
    with pytest.raises(UserError, match="trial killed: the rows differ"):
        faults.measured(FAULTS["trial"], broken(STEPS[1:]), pa.table({"env_steps": STEPS}))


def test_the_readme_shows_what_was_measured() -> None:
    found = json.loads(faults.RESULT.read_text())["faults"]
    assert list(found) == list(FAULTS)
    text = faults.README.read_text()
    assert faults.table(found) in text
    assert faults.published(text, found) == text

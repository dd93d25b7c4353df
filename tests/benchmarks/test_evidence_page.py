"""Test the page of evidence: its verdicts, its differences, and that it is what the stored rows make of it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import evidence_page
from benchmarks.evidence_page import FEWEST_SEEDS, Claim, Interval, claims_table, difference, shown, verdict
from rllib_hpo.analysis.gap_tables import Line, Stage


def interval(estimate: float, low: float, high: float) -> Interval:
    return Interval(np.asarray(estimate), np.asarray(low), np.asarray(high))


@pytest.mark.parametrize(
    ("found", "seeds", "said"),
    [
        (interval(0.8, 0.6, 0.9), FEWEST_SEEDS, "**holds**"),
        (interval(0.2, 0.1, 0.4), FEWEST_SEEDS, "does not hold"),
        (interval(0.8, 0.4, 0.9), FEWEST_SEEDS, "undecided"),
        (interval(0.8, 0.5, 0.9), FEWEST_SEEDS, "undecided"),
        (interval(1.0, 1.0, 1.0), FEWEST_SEEDS - 1, "too few seeds"),
        (None, FEWEST_SEEDS, "not tested here"),
    ],
)
def test_a_claim_is_judged_by_its_whole_interval(found: Interval | None, seeds: int, said: str) -> None:
    assert verdict(found, 0.5, seeds) == said


def line(*values: float) -> Line:
    return Line("one", Stage("train", 1), {}, {"distance": np.array(values)}, len(values))


def test_differences_are_those_of_the_same_states() -> None:
    """Each state's own difference is 0.1, however different the states are."""
    found = difference(line(1.0, 5.0, 9.0), line(0.9, 4.9, 8.9), "distance")
    assert found is not None
    assert shown(found, 3) == "0.100 [0.100, 0.100]"
    assert difference(line(1.0), None, "distance") is None
    assert difference(line(), line(), "distance") is None


def test_cells_with_bars_stay_in_their_column() -> None:
    assert (
        claims_table([Claim("a", "p(a|s)", "1", "holds")]).splitlines()[-1] == "| a | p(a\\|s) | 1 | holds |"
    )


def test_the_page_is_what_the_stored_rows_make_of_it() -> None:
    assert evidence_page.PAGE.read_text() == evidence_page.make_page()

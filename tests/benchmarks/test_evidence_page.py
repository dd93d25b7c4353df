"""Test the page of evidence: its verdicts, its differences, and that it is what the stored rows make of it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import mannwhitneyu

from benchmarks import evidence_page
from benchmarks.evidence_page import (
    Claim,
    Interval,
    Returns,
    are_enough,
    as_one_sweep,
    claims_table,
    difference,
    shown,
    verdict,
)
from rllib_hpo.analysis.gap_tables import Line, Stage
from rllib_hpo.analysis.runs import runs_of
from tests.results.rows import make_row


def interval(estimate: float, low: float, high: float) -> Interval:
    return Interval(np.asarray(estimate), np.asarray(low), np.asarray(high))


@pytest.mark.parametrize(
    ("found", "seeds", "said"),
    [
        (interval(0.8, 0.6, 0.9), (5, 5), "**holds**"),
        (interval(0.2, 0.1, 0.4), (3, 5), "does not hold"),
        (interval(0.8, 0.4, 0.9), (4, 4), "undecided"),
        (interval(0.8, 0.5, 0.9), (5, 5), "undecided"),
        (interval(1.0, 1.0, 1.0), (3, 4), "too few seeds"),
        (interval(1.0, 1.0, 1.0), (2, 5), "too few seeds"),
        (None, (5, 5), "not tested here"),
    ],
)
def test_a_claim_is_judged_by_its_whole_interval(
    found: Interval | None, seeds: tuple[int, int], said: str
) -> None:
    assert verdict(found, 0.5, enough=are_enough(*seeds)) == said


@pytest.mark.parametrize(("ours", "theirs"), [(2, 2), (3, 3), (3, 4), (2, 5), (3, 5), (4, 4), (5, 5)])
def test_seeds_are_enough_where_scipys_exact_test_can_be_significant(ours: int, theirs: int) -> None:
    best = mannwhitneyu(np.arange(ours) + 100, np.arange(theirs), method="exact").pvalue
    assert are_enough(ours, theirs) == (best <= 0.05)


def rows_of(sweep: str, variant: str, level: float) -> pa.Table:
    """Make four seeds on Hopper that end at about `level`."""
    config = {"algorithm": "sac-hpo", "evaluation_every": 1_000, "variant": variant}
    rows = [
        make_row(
            sweep=sweep, variant=variant, seed=seed, env_steps=steps, return_mean=level + seed, config=config
        )
        for seed in range(4)
        for steps in (0, 1_000)
    ]
    return pa.concat_tables([row.to_arrow() for row in rows])


def test_the_ablation_of_another_sweep_is_compared() -> None:
    joined = as_one_sweep(
        [rows_of("evidence", "default", 50.0), rows_of("evidence-ablation", "baseline-1", 9.0)]
    )
    runs = runs_of(joined)
    assert {run.label for run in runs} == {"SAC-HPO", "SAC-HPO (baseline-1)"}
    found = {claim.claim.split(" (")[-1]: claim for claim in Returns(runs).ablation()}
    assert found["baseline-1): Hopper-v4"].verdict == "**holds**"
    assert found["baseline-2): Hopper-v4"].verdict == "not tested here"


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

"""Test the figures of searches: importances that are known, and a line for each trial."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rllib_hpo.analysis.report import write_report
from rllib_hpo.analysis.search_figures import FEWEST_TRIALS, importances, parallel_figure
from rllib_hpo.analysis.searches import SearchRows, searches_in
from tests.results.rows import make_row


def searched(num_trials: int = 40, **changes: object) -> pa.Table:
    """Return the rows of a search; every other trial ends at step 100, where only the step size matters.

    At step 200 only the number of leapfrog steps does.
    """
    rng = np.random.default_rng(0)
    made = []
    for number in range(num_trials):
        step_size = float(np.exp(rng.uniform(np.log(0.01), np.log(1.0))))
        leapfrog_steps = int(rng.integers(1, 5))
        config = {
            "step_size": step_size,
            "leapfrog_steps": leapfrog_steps,
            "explore_sampler": str(rng.choice(["gaussian", "hamiltonian"])),
            **changes,
        }
        for env_steps in (100, 200)[: 1 + number % 2]:
            score = -abs(np.log(step_size / 0.1)) if env_steps == 100 else 10.0 * leapfrog_steps
            row = make_row(
                trial_id=f"trial-{number:04d}",
                seed=number,
                variant="search",
                env_steps=env_steps,
                return_mean=float(score),
                config=config,
            )
            made.append(row.to_arrow())
    return pa.concat_tables(made)


def only(table: pa.Table) -> SearchRows:
    """Return the one search of these rows."""
    (search,) = searches_in(table)
    return search


def test_what_matters_is_found() -> None:
    """At the step that all trials have reached: their last returns say that the number of leapfrog steps matters."""
    pytest.importorskip("optuna")
    found = importances(only(searched()))
    assert max(found, key=found.__getitem__) == "step_size"
    assert found["step_size"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


def test_no_importance_where_it_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    assert importances(only(searched(FEWEST_TRIALS - 1))) == {}
    assert importances(only(searched(FEWEST_TRIALS))) != {}
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert importances(only(searched())) == {}


def test_a_line_for_each_trial_with_the_best_on_top() -> None:
    search = only(searched())
    (axis,) = parallel_figure(search).axes
    names = [label.get_text() for label in axis.get_xticklabels()]
    assert names == ["explore_sampler", "leapfrog_steps", "step_size", "steps", "latest return"]
    lines = [line for line in axis.get_lines() if len(line.get_xdata()) == len(names)]
    assert len(lines) == 40
    heights = np.array([line.get_ydata() for line in lines])
    assert heights.min() == 0
    assert heights.max() == 1
    assert (np.diff(heights[:, -1]) >= 0).all()
    logarithms = np.sort(
        np.log([search.configs[rows[0].config_hash]["step_size"] for rows in search.trials.values()])
    )
    expected = (logarithms - logarithms[0]) / (logarithms[-1] - logarithms[0])
    assert np.sort(heights[:, 2]) == pytest.approx(expected)


def test_the_report_has_both(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    write_report(searched(), tmp_path)
    assert sorted(path.name for path in (tmp_path / "figures").glob("*.png")) == [
        "importance-1.png",
        "parallel-1.png",
    ]
    page = (tmp_path / "index.html").read_text()
    assert "Importance of the searched settings: SAC-HPO (search, " in page
    assert "Trials of the search: SAC-HPO (search, " in page

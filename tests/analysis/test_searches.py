"""Test searches in reports: listed trial by trial, and excluded from means."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from rllib_hpo.analysis.report import write_report
from rllib_hpo.analysis.runs import runs_of
from rllib_hpo.analysis.search_figures import parallel_figure
from rllib_hpo.analysis.searches import problems_table, search_tables, searches_in
from rllib_hpo.analysis.tables import NOTHING, progress_table
from rllib_hpo.cli import app
from rllib_hpo.results import rows_from_arrow, write_row
from tests.analysis.test_tables import grid
from tests.results.rows import make_row
from tests.results.test_configurations import rows

PBT = ({"step_size": [0.1, 0.05], "seed": [0, 77]}, {"step_size": 0.2}, {"step_size": 0.3})


def test_a_line_for_each_configuration() -> None:
    table = rows({}, {}, {"step_size": 0.05}, {"step_size": 0.05})
    runs = runs_of(table)
    assert [(run.label, run.seed) for run in runs] == [
        ("SAC-HPO (step_size=0.05)", 2),
        ("SAC-HPO (step_size=0.05)", 3),
        ("SAC-HPO (step_size=0.1)", 0),
        ("SAC-HPO (step_size=0.1)", 1),
    ]
    assert [row[1:3] for row in progress_table(runs).rows] == [
        ["SAC-HPO (step_size=0.05)", "2"],
        ["SAC-HPO (step_size=0.1)", "2"],
    ]


def test_a_search_is_a_table_of_trials_and_no_run() -> None:
    table = pa.concat_tables([rows(*PBT, variant="search"), grid()])
    assert {run.label for run in runs_of(table)} == {"SAC", "SAC-HPO"}
    (search,) = search_tables(table)
    assert search.columns == ["trial", "step_size", "steps", "latest", "best"]
    assert sorted(row[:2] for row in search.rows) == [
        ["trial0", "0.1, then 0.05"],
        ["trial1", "0.2"],
        ["trial2", "0.3"],
    ]
    assert "change step_size during the run" in search.note


def test_trials_within_the_limit_on_costs_come_first() -> None:
    """Then those that exceed it, the least first, whatever their returns."""
    costs = {"trial0": 30.0, "trial1": 20.0, "trial2": 25.5, "trial3": 25.0}
    returns = {"trial0": 900.0, "trial1": 100.0, "trial2": 50.0, "trial3": 200.0}
    made = [
        make_row(
            trial_id=trial,
            seed=number,
            variant="search",
            return_mean=returns[trial],
            cost_mean=cost,
            cost_discounted_mean=1.0,
            cost_limit=25.0,
            config={"step_size": 0.1 * (number + 1), "cost_discounting": "undiscounted"},
        ).to_arrow()
        for number, (trial, cost) in enumerate(costs.items())
    ]
    (search,) = search_tables(pa.concat_tables(made))
    place = search.columns.index("cost over its limit")
    assert [(row[0], row[place]) for row in search.rows] == [
        ("trial3", NOTHING),
        ("trial1", NOTHING),
        ("trial2", "0.5"),
        ("trial0", "5"),
    ]
    assert "within the limit on costs come first" in search.note
    (axis,) = parallel_figure(searches_in(pa.concat_tables(made))[0]).axes
    lines = [line for line in axis.get_lines() if len(line.get_xdata()) > 2 or line.get_alpha()]
    assert [line.get_linestyle() for line in lines] == [":", ":", "-", "-"]


def test_the_report_says_what_check_says(tmp_path: Path) -> None:
    write_report(rows(*PBT), tmp_path)
    page, markdown = (tmp_path / "index.html").read_text(), (tmp_path / "tables.md").read_text()
    assert "All configurations are the same" not in page
    for text in (page, markdown):
        assert "not seeds of one configuration" in text
        assert "0.1, then 0.05" in text
    assert not list(tmp_path.rglob("final.csv"))
    problems = problems_table(rows(*PBT))
    assert problems is not None
    assert all(what in markdown for _, what in problems.rows)
    assert problems_table(grid()) is None


@pytest.mark.parametrize(
    "words", [["results", "show"], ["results", "show", "--full"], ["report", "--out", "r"]]
)
def test_commands_take_a_search_alone(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for row in rows_from_arrow(rows(*PBT)):
        write_row(tmp_path / "rows", row)
    done = CliRunner().invoke(app, [*words, "rows"])
    assert done.exit_code == 0, done.output
    if words[0] == "results":
        assert "Search:" in done.output
        assert "seeds" not in done.output.replace("seeds of one", "")


def test_two_searches_have_a_table_each() -> None:
    other = [
        make_row(
            task="ant",
            env_id="Ant-v4",
            trial_id=f"a{i}",
            seed=i,
            variant="search",
            config={"lr": 1e-3 * (i + 1)},
        )
        for i in range(2)
    ]
    table = pa.concat_tables([rows(*PBT), *(row.to_arrow() for row in other)])
    assert [one.name for one in search_tables(table)] == ["search-1", "search-2"]

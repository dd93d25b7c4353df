"""Test the table and figure of costs by hand, from made-up rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rllib_hpo.analysis.costs import cost_figure, cost_table
from rllib_hpo.analysis.report import write_report
from rllib_hpo.analysis.runs import runs_of
from rllib_hpo.results import cost_statistics, read_rows, write_row
from tests.results.rows import make_row


def write_rows(
    root: Path, algorithm: str, seed: int, cost: float, discounting: str = "undiscounted", **changes: Any
) -> None:
    """Write six evaluations of an Ant with the given cost per episode, a tenth of it discounted, in 500 steps."""
    config = {
        "algorithm": algorithm,
        "evaluation_every": 1_000,
        "cost": {"kind": "torque"},
        "cost_limit": 25.0,
        "cost_discounting": discounting,
    }
    costs = cost_statistics([cost, cost], [cost / 10] * 2, [50, 50], [500, 500])
    for step in range(0, 6_000, 1_000):
        row = make_row(
            algorithm=algorithm,
            task="ant-torque25",
            env_id="Ant-v4",
            seed=seed,
            env_steps=step,
            trial_id=f"{algorithm}-{seed}",
            config=config,
            episode_length_mean=500.0,
            cost_limit=25.0,
            diagnostics={
                "train_cost_total": 100.0 * seed + step,
                "q_cost_start": 3.0,
                "cost_discounted_latest": 6.0,
            },
            **costs,
            **changes,
        )
        write_row(root, row)


def test_the_table_by_hand(tmp_path: Path) -> None:
    """Two seeds of SAC exceed the limit; one of SAC-Lagrangian does, and one does not."""
    for seed, cost in ((0, 60.0), (1, 80.0)):
        write_rows(tmp_path, "sac", seed, cost)
    for seed, cost in ((0, 20.0), (1, 30.0)):
        write_rows(tmp_path, "sac-lagrangian", seed, cost)
    table = cost_table(runs_of(read_rows(tmp_path)))
    assert table is not None
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [cell["algorithm"] for cell in cells] == ["SAC", "SAC-Lagrangian"]
    assert [cell["cost"] for cell in cells] == ["70.0 ± 14.1", "25.0 ± 7.1"]
    assert [cell["discounted cost"] for cell in cells] == ["7.0 ± 1.4", "2.5 ± 0.7"]
    assert [cell["within the limit"] for cell in cells] == ["0 of 2", "1 of 2"]
    assert [cell["cost per 100 steps"] for cell in cells] == ["14.0 ± 2.8", "5.0 ± 1.4"]
    assert cells[0]["cost of training"] == "5,050.0 ± 70.7"
    assert cells[0]["predicted / real"] == "0.50 ± 0.00"
    assert cells[0]["limit"] == "25.0 u"
    assert "ant-torque25 returns 1,000 for doing nothing." in table.note


def test_a_discounted_limit_bounds_the_discounted_cost(tmp_path: Path) -> None:
    write_rows(tmp_path, "sac", 0, 200.0, "discounted")
    table = cost_table(runs_of(read_rows(tmp_path)))
    assert table is not None
    cell = dict(zip(table.columns, table.rows[0], strict=True))
    assert (cell["limit"], cell["within the limit"]) == ("25.0 d", "1 of 1")


@pytest.mark.parametrize(("discounting", "place"), [("undiscounted", 1), ("discounted", 2)])
def test_the_limit_and_doing_nothing_are_drawn_where_they_belong(
    tmp_path: Path, discounting: str, place: int
) -> None:
    write_rows(tmp_path, "sac", 0, 60.0, discounting)
    figure = cost_figure(runs_of(read_rows(tmp_path)))
    assert figure is not None
    levels = [
        {
            str(line.get_label()): line.get_ydata()[0]
            for line in axis.get_lines()
            if len(line.get_ydata()) == 2
        }
        for axis in figure.axes
    ]
    assert levels[0] == {"doing nothing": 1_000.0}
    assert [("limit" in level) for level in levels] == [k == place for k in range(3)]
    assert levels[place]["limit"] == 25.0


def test_a_report_shows_costs_where_there_are_any(tmp_path: Path) -> None:
    """Reports on tasks without costs stay unchanged."""
    write_row(tmp_path / "plain", make_row())
    plain = write_report(read_rows(tmp_path / "plain"), tmp_path / "one")
    assert not (plain["figures"] / "costs.png").exists()
    assert "Returns and costs" not in plain["tables"].read_text()
    write_rows(tmp_path / "costly", "sac", 0, 60.0)
    made = write_report(read_rows([tmp_path / "plain", tmp_path / "costly"]), tmp_path / "other")
    assert (made["figures"] / "costs.png").exists()
    assert "Returns and costs" in made["tables"].read_text()
    page = made["page"].read_text()
    assert '"cost_mean":[60.0' in page
    assert '"violation_share":[0.1' in page

"""Test which rows count as seeds of one configuration, and which as a search."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from rllib_hpo.results import check
from rllib_hpo.results.configurations import Cell, cells_in
from tests.results.rows import make_row

CONFIG: dict[str, Any] = {"algorithm": "sac-hpo", "task": "hopper", "step_size": 0.1, "alpha": 0.2}


def rows(*trials: dict[str, Any], variant: str = "default", steps: int = 2) -> pa.Table:
    """Make rows of one trial each; a value that is a list varies from row to row."""
    made = []
    for seed, changes in enumerate(trials):
        for i in range(steps):
            now = {name: value[i] if isinstance(value, list) else value for name, value in changes.items()}
            config = {**CONFIG, "seed": seed, **now}
            row = make_row(
                seed=config["seed"],
                env_steps=1_000 * i,
                trial_id=f"trial{seed}",
                variant=variant,
                config=config,
            )
            made.append(row.to_arrow())
    return pa.concat_tables(made)


def cell_of(table: pa.Table) -> Cell:
    (cell,) = cells_in(table).values()
    return cell


def test_seeds_differ_in_nothing() -> None:
    cell = cell_of(rows({}, {}, {"checkpoint_every": 7, "num_torch_threads": 2, "cuda_graph": False}))
    assert (cell.differing, set(cell.lines.values()), cell.is_search) == ((), {""}, False)


def test_rows_from_before_a_setting_existed_are_seeds_of_those_after_it() -> None:
    assert not cell_of(rows({}, {"gamma": 0.99, "leapfrog_steps": 3, "num_learners": 0})).differing
    assert cell_of(rows({}, {"gamma": 0.98})).differing == ("gamma",)


def test_other_settings_are_other_lines() -> None:
    cell = cell_of(rows({}, {"step_size": 0.05}, {"step_size": 0.1000001}, {"seed": 9}))
    assert sorted(set(cell.lines.values())) == ["step_size=0.05", "step_size=0.1", "step_size=0.1000001"]
    assert not cell.is_search
    (problem,) = check(rows({}, {"step_size": 0.05}))
    assert "seeds differ in step_size" in problem.what


def test_many_lines_of_several_seeds_each_are_no_search() -> None:
    table = rows(*({"leapfrog_steps": k} for k in range(8) for _ in range(3)))
    assert not cell_of(table).is_search


def test_a_search_is_refused_as_a_comparison() -> None:
    differing = [{"step_size": 0.1 + i / 100} for i in range(8)]
    for cell in (cell_of(rows(*differing)), cell_of(rows(*differing[:2], variant="search"))):
        assert cell.is_search
        assert "trials differ in step_size" in cell.refusal
    assert not cell_of(rows({}, {}, variant="search")).is_search


def test_settings_that_change_during_a_run_are_named() -> None:
    table = rows({}, {"step_size": [0.1, 0.05], "seed": [1, 77]})
    cell = cell_of(table)
    assert cell.changing == {"trial1": ("step_size",)}
    assert "1 of 2 trials change step_size during the run" in cell.refusal
    assert [problem.kind for problem in check(table)] == [
        "mixed",
        "mixed",
    ]  # nothing is missing from a search

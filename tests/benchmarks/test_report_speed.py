"""The synthetic grid is complete, and reads back as that of a finished sweep."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from benchmarks.report_speed import store, synthetic_rows, timed_rows
from rllib_hpo.results import check, read_rows


def test_rows_of_the_grid(tmp_path: Path) -> None:
    rows = synthetic_rows(num_seeds=2, num_evaluations=3)
    assert len(rows) == 8 * 3 * 2 * 3
    store(pa.concat_tables([row.to_arrow() for row in rows]), tmp_path)
    table = read_rows(tmp_path)
    assert table.num_rows == len(rows)
    assert len(list(tmp_path.rglob("*.parquet"))) == 8 * 3 * 2
    assert all(problem.kind != "duplicate" for problem in check(table))
    assert all(duration > 0 for duration in timed_rows(rows[:2], tmp_path / "timed"))

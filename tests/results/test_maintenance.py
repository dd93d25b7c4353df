"""Test merging, joining and checking datasets of rows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rllib_hpo.errors import StorageError
from rllib_hpo.results import (
    COST_COLUMNS,
    SCHEMA,
    add,
    check,
    compact,
    cost_statistics,
    merge_trial,
    read_rows,
    rows_from_arrow,
    write_row,
)
from rllib_hpo.results.reader import COMPACTED
from tests.results.rows import make_row

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = {"algorithm": "sac", "evaluation_every": 10_000}


def write_grid(root: Path, seeds: range = range(2), steps: int = 30_000) -> None:
    for task in ("hopper", "ant"):
        for seed in seeds:
            for step in range(0, steps + 1, 10_000):
                write_row(root, make_row(task=task, seed=seed, env_steps=step, config=CONFIG))


def test_compacting_keeps_every_row_in_one_file_of_each_folder(tmp_path: Path) -> None:
    write_grid(tmp_path)
    before = read_rows(tmp_path)
    assert compact(tmp_path) == (16, 2)
    assert read_rows(tmp_path).equals(before)
    assert [path.name for path in tmp_path.rglob("*.parquet")] == [COMPACTED] * 2
    newer = make_row(task="ant", env_steps=0, returns=(1.0,), config=CONFIG)
    write_row(tmp_path, newer)  # as of a trial that was resumed
    assert newer in rows_from_arrow(read_rows(tmp_path))
    assert read_rows(tmp_path).num_rows == before.num_rows
    assert compact(tmp_path) == (3, 2)
    assert newer in rows_from_arrow(read_rows(tmp_path))
    assert compact(tmp_path) == (2, 2)


def test_a_trials_rows_become_one_file_and_newer_ones_win(tmp_path: Path) -> None:
    write_grid(tmp_path, steps=20_000)
    before = read_rows(tmp_path)
    for _ in range(2):  # twice is as good
        merge_trial(tmp_path, "demo", "sac-hpo", "ant", "0123456789")
    assert read_rows(tmp_path).equals(before)
    names = sorted(path.name for path in tmp_path.rglob("task=ant/*.parquet"))
    assert names == [
        "0123456789.parquet",
        *(f"0123456790-{step:010d}.parquet" for step in (0, 10_000, 20_000)),
    ]
    again = make_row(task="ant", env_steps=20_000, returns=(7.0,), config=CONFIG)
    more = make_row(task="ant", env_steps=30_000, returns=(8.0,), config=CONFIG)
    for row in (again, more):  # of a trial that was extended
        write_row(tmp_path, row)
    assert all(row in rows_from_arrow(read_rows(tmp_path)) for row in (again, more))
    merge_trial(tmp_path, "demo", "sac-hpo", "ant", "0123456789")
    assert read_rows(tmp_path).num_rows == before.num_rows + 1
    assert all(row in rows_from_arrow(read_rows(tmp_path)) for row in (again, more))
    merge_trial(tmp_path, "demo", "sac-hpo", "ant", "nobody")


def test_a_trial_merges_no_other_whose_name_begins_like_its_own(tmp_path: Path) -> None:
    for trial in ("abc", "abc-1"):
        for step in (0, 10_000):
            write_row(tmp_path, make_row(trial_id=trial, env_steps=step))
    merge_trial(tmp_path, "demo", "sac-hpo", "hopper", "abc")
    names = sorted(path.name for path in tmp_path.rglob("*.parquet"))
    assert names == ["abc-1-0000000000.parquet", "abc-1-0000010000.parquet", "abc.parquet"]


MERGING = """
    import sys
    from pathlib import Path
    from rllib_hpo.results import merge_trial, write_row
    from tests.results.rows import make_row

    for number in range(60):
        trial = f"t{number}"
        for step in range(5):
            write_row(Path(sys.argv[1]), make_row(trial_id=trial, seed=number, env_steps=step))
        merge_trial(Path(sys.argv[1]), "demo", "sac-hpo", "hopper", trial)
"""


def test_compacting_while_trials_merge_their_rows_loses_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(MERGING), str(tmp_path)]
    merging = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    compacted = 0
    while merging.poll() is None:
        before, after = compact(tmp_path)
        compacted += before > after
    assert merging.returncode == 0
    assert compacted > 3
    compact(tmp_path)
    assert sorted(row.env_steps for row in rows_from_arrow(read_rows(tmp_path))) == sorted([*range(5)] * 60)


COMPACTING = """
    import sys
    from pathlib import Path
    from rllib_hpo.results import compact, write_row
    from tests.results.rows import make_row

    root = Path(sys.argv[1])
    print("ready", flush=True)
    for step in range(1_000_000):
        write_row(root, make_row(env_steps=step))
        compact(root)
        print(step, flush=True)
"""


def test_readers_see_every_row_once_while_files_are_merged_and_after_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(COMPACTING), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    seen = []
    for _ in range(4):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            acknowledged = -1
            while acknowledged < 40:
                steps = read_rows(tmp_path)["env_steps"].to_pylist()
                assert steps == list(range(len(steps)))
                assert len(steps) > acknowledged
                acknowledged = int(writer.stdout.readline())
                seen.append(len(steps))
            writer.send_signal(signal.SIGKILL)
        steps = read_rows(tmp_path)["env_steps"].to_pylist()
        assert steps == list(range(len(steps)))
    assert len(set(seen)) > 10


def test_sweeps_of_several_machines_are_joined(tmp_path: Path) -> None:
    write_grid(tmp_path / "one", range(2))
    write_grid(tmp_path / "two", range(1, 4))
    assert add(tmp_path / "one", tmp_path / "two") == 16
    assert add(tmp_path / "one", tmp_path / "two") == 0
    table = read_rows(tmp_path / "one")
    assert sorted(set(table["seed"].to_pylist())) == [0, 1, 2, 3]
    assert table.num_rows == 32
    assert check(table) == []
    with pytest.raises(StorageError, match="There are no evaluation rows"):
        add(tmp_path / "one", tmp_path / "nowhere")


def test_a_whole_grid_has_no_problems(tmp_path: Path) -> None:
    write_grid(tmp_path)
    assert check(read_rows(tmp_path)) == []


@pytest.mark.parametrize(
    ("row", "kind", "says"),
    [
        ({"seed": 7, "env_steps": 0}, "missing", "ant, seed 7: no evaluation at 10,000 steps and 2 more"),
        ({"seed": 7, "env_steps": 0}, "missing", "on hopper: no rows of seed 7"),
        ({"seed": 0, "env_steps": 0, "trial_id": "else"}, "duplicate", "0123456789, else"),
        ({"seed": 0, "env_steps": 0, "returns": (float("nan"), 1.0)}, "not finite", "seed 0 at 0 steps"),
        ({"seed": 0, "env_steps": 0, "env_id": "Ant-v5"}, "mixed", "environments: Ant-v5, Hopper-v4"),
        ({"seed": 0, "env_steps": 0, "git_commit": "b" * 40}, "mixed", "aaaaaaaaaaaa, bbbbbbbbbbbb"),
        ({"seed": 0, "env_steps": 0, "config": {**CONFIG, "tau": 1}}, "mixed", "several configurations"),
        ({"seed": 7, "env_steps": 0, "config": {**CONFIG, "tau": 1}}, "mixed", "seeds differ in tau"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, row: dict[str, object], kind: str, says: str) -> None:
    write_grid(tmp_path)
    write_row(tmp_path, make_row(**{"task": "ant", "config": CONFIG, **row}))
    assert any(p.kind == kind and says in p.what for p in check(read_rows(tmp_path))), check(
        read_rows(tmp_path)
    )


def test_rows_of_the_first_schema_are_read_with_no_diagnostics(tmp_path: Path) -> None:
    old = make_row(schema_version=1).to_arrow().drop_columns(["diagnostics"])
    new = make_row(seed=1, diagnostics={"drift": 0.25})
    path = write_row(tmp_path, new).parent / "old-0000000000.parquet"
    pq.write_table(old, path)
    table = read_rows(tmp_path)
    assert table.schema.equals(SCHEMA)
    assert [row.diagnostics for row in rows_from_arrow(table)] == [{}, {"drift": 0.25}]
    pq.write_table(make_row().to_arrow().drop_columns(["diagnostics"]), path)
    with pytest.raises(StorageError, match="it lacks diagnostics"):
        read_rows(tmp_path)


def test_rows_from_before_costs_have_null_and_not_zero(tmp_path: Path) -> None:
    names = [*COST_COLUMNS, "costs"]
    old = make_row(schema_version=4).to_arrow().drop_columns(names)
    costs = cost_statistics([3.0, 5.0], [1.0, 2.0], [3, 5], [10, 10]) | {"cost_limit": 25.0}
    path = write_row(tmp_path, make_row(seed=1, **costs)).parent / "old-0000000000.parquet"
    pq.write_table(old, path)
    first, second = read_rows(tmp_path).to_pylist()
    assert {name: first[name] for name in names} == dict.fromkeys(names)
    assert {name: second[name] for name in names} == costs | {"costs": [3.0, 5.0]}


@pytest.mark.parametrize(("version", "column"), [(2, "episodes_cut"), (3, "env_restarts")])
def test_rows_from_before_a_column_say_nothing_of_it(tmp_path: Path, version: int, column: str) -> None:
    old = make_row(schema_version=version).to_arrow().drop_columns([column])
    path = write_row(tmp_path, make_row(seed=1, **{column: 3})).parent / "old-0000000000.parquet"
    pq.write_table(old, path)
    table = read_rows(tmp_path)
    assert table.schema.equals(SCHEMA)
    assert table[column].to_pylist() == [None, 3]
    compact(tmp_path)
    assert read_rows(tmp_path).equals(table)

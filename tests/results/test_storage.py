"""Test rows on disk: written completely or not at all, and read back exactly."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from rllib_hpo.errors import StorageError
from rllib_hpo.results import (
    SCHEMA,
    SCHEMA_VERSION,
    read_rows,
    row_config,
    row_path,
    rows_from_arrow,
    trial_id,
    write_row,
)
from tests.results.rows import make_row

REPOSITORY = Path(__file__).resolve().parents[2]


def run_python(script: str, *arguments: str, prefix: tuple[str, ...] = ()) -> list[str]:
    """Return the lines that `script` prints in a fresh interpreter that can import the package and the tests."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [*prefix, sys.executable, "-c", textwrap.dedent(script), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_round_trip_is_exact_and_sorted(tmp_path: Path) -> None:
    rows = [
        make_row(task=task, algorithm=algorithm, trial_id=f"{algorithm}{seed}", seed=seed, env_steps=steps)
        for algorithm in ("sac", "sac-hpo")
        for task in ("ant", "hopper")
        for seed in (2, 10)
        for steps in (0, 5_000, 10_000)
    ]
    shuffled = random.Random(0).sample(rows, len(rows))
    paths = {write_row(tmp_path, row) for row in shuffled}
    table = read_rows(tmp_path)
    assert table.schema.equals(SCHEMA)
    assert rows_from_arrow(table) == rows
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == paths


def test_path_is_the_documented_one(tmp_path: Path) -> None:
    path = write_row(tmp_path, make_row(env_steps=10_000))
    expected = "sweep=demo/algorithm=sac-hpo/task=hopper/0123456789-0000010000.parquet"
    assert path.relative_to(tmp_path).as_posix() == expected


@pytest.mark.parametrize("name", ["ALE/Pong-v5", "..", "a=b c%/ü\n", "_hidden", ".hidden", "../../etc"])
def test_any_name_stays_inside_its_folder_and_comes_back(tmp_path: Path, name: str) -> None:
    row = make_row(sweep=name, algorithm=name, task=name, trial_id=name)
    path = write_row(tmp_path, row)
    assert len(path.relative_to(tmp_path).parts) == 4
    assert tmp_path.resolve() in path.resolve().parents
    assert rows_from_arrow(read_rows(tmp_path)) == [row]
    assert pandas.read_parquet(tmp_path)["task"].tolist() == [name]


def test_same_key_replaces_itself(tmp_path: Path) -> None:
    first = write_row(tmp_path, make_row(returns=(1.0,)))
    second = write_row(tmp_path, make_row(returns=(2.0,)))
    other = write_row(tmp_path, make_row(returns=(3.0,), trial_id="other"))
    assert first == second != other
    assert sorted(read_rows(tmp_path)["return_mean"].to_pylist()) == [2.0, 3.0]


def test_other_readers_understand_the_folder(tmp_path: Path) -> None:
    """Pandas and pyarrow make typed columns of the folders' names."""
    for task in ("ALE/Pong", "hopper"):
        write_row(tmp_path, make_row(task=task))
    for frame in (
        pandas.read_parquet(tmp_path),
        pyarrow.dataset.dataset(tmp_path, partitioning="hive").to_table().to_pandas(),
    ):
        assert frame["task"].tolist() == ["ALE/Pong", "hopper"]
        assert set(frame.columns) == set(SCHEMA.names)


def test_a_file_that_is_copied_elsewhere_says_where_it_belongs(tmp_path: Path) -> None:
    row = make_row(task="ALE/Pong")
    copied = tmp_path / "copied.parquet"
    copied.write_bytes(write_row(tmp_path, row).read_bytes())
    assert rows_from_arrow(read_rows(copied)) == [row]
    assert set(SCHEMA.names) - set(pandas.read_parquet(copied).columns) == {"sweep", "algorithm", "task"}


def test_roots_may_be_many_nested_or_a_single_file(tmp_path: Path) -> None:
    path = write_row(tmp_path / "a", make_row(seed=0))
    write_row(tmp_path / "b", make_row(seed=1))
    assert read_rows([tmp_path / "a", str(tmp_path / "b"), tmp_path]).num_rows == 2
    assert read_rows(path).num_rows == 1
    assert read_rows(path.parent).num_rows == 1


def test_nothing_gives_an_empty_table(tmp_path: Path) -> None:
    for table in (read_rows(tmp_path), read_rows(tmp_path / "missing"), read_rows([])):
        assert table.num_rows == 0
        assert table.schema.equals(SCHEMA)


def test_unfinished_and_foreign_files_are_not_rows(tmp_path: Path) -> None:
    path = write_row(tmp_path, make_row())
    path.with_name(".0123456789-0000020000.parquet.tmp").write_bytes(b"PAR1 half")
    path.with_name(".hidden.parquet").write_bytes(b"PAR1 half")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "replay.parquet")
    assert read_rows(tmp_path).num_rows == 1


@pytest.mark.parametrize("damage", ["truncate", "garbage", "empty", "foreign"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    for seed in range(3):
        path = write_row(tmp_path, make_row(seed=seed, trial_id=f"trial{seed}"))
    bad = path.with_name("trial1-0000010000.parquet")
    whole = bad.read_bytes()
    if damage == "foreign":
        pq.write_table(pa.table({"seed": ["not a number"]}), bad)
    else:
        bad.write_bytes({"truncate": whole[:-20], "garbage": b"x" * len(whole), "empty": b""}[damage])
    with pytest.raises(StorageError, match=r"trial1-0000010000\.parquet"):
        read_rows(tmp_path)


def test_a_file_with_missing_columns_is_named(tmp_path: Path) -> None:
    path = write_row(tmp_path, make_row())
    lacking = path.with_name("lacking.parquet")
    pq.write_table(pq.ParquetFile(path).read().drop_columns(["returns"]), lacking)
    with pytest.raises(StorageError, match=r"lacking\.parquet.*returns"):
        read_rows(tmp_path)


def test_rows_of_a_newer_schema_are_refused(tmp_path: Path) -> None:
    write_row(tmp_path, make_row(schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(StorageError, match=f"schema version {SCHEMA_VERSION + 1}"):
        read_rows(tmp_path)


def test_row_config_comes_back_and_alteration_is_noticed(tmp_path: Path) -> None:
    config = {"algorithm": "sac", "lr": 3e-4, "alpha": "auto", "nested": {"layers": [256, 256]}}
    write_row(tmp_path, make_row(config=config))
    (record,) = read_rows(tmp_path).to_pylist()
    assert row_config(record) == config
    assert row_config(make_row(config=config)) == config
    with pytest.raises(StorageError, match="modified"):
        row_config({**record, "config_json": record["config_json"].replace("256", "128")})


def test_trial_id_stays_with_its_directory(tmp_path: Path) -> None:
    first, second = trial_id(tmp_path / "a"), trial_id(tmp_path / "b")
    assert first != second
    (tmp_path / "a").rename(tmp_path / "moved")
    assert trial_id(tmp_path / "moved") == first


WRITER = """
    import sys
    from pathlib import Path
    from rllib_hpo.results import write_row
    from tests.results.rows import make_row

    padding = {"padding": [i * 0.1 for i in range(5_000)]}  # a longer write is interrupted more often
    print("ready", flush=True)
    for step in range(1_000_000):
        write_row(Path(sys.argv[1]), make_row(env_steps=step % 50, updates=step, config=padding))
        print(step, flush=True)
"""


def test_readers_never_see_half_a_file_when_the_writer_is_killed(tmp_path: Path) -> None:
    """After SIGKILL at random instants, all acknowledged rows are complete, and there is nothing else."""
    rng = random.Random(7)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    rows_seen = 0
    for attempt in range(8):
        root = tmp_path / str(attempt % 2)  # so later writers also meet what a killed one left behind
        command = [sys.executable, "-c", textwrap.dedent(WRITER), str(root)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            deadline = time.monotonic() + rng.uniform(0.05, 0.25)
            while time.monotonic() < deadline:  # reading while it writes
                rows_seen += read_rows(root).num_rows
            writer.send_signal(signal.SIGKILL)
            acknowledged = [int(line) for line in writer.stdout if line.endswith("\n")]
        table = read_rows(root)
        last = acknowledged[-1] if acknowledged else -1
        latest = dict(zip(table["env_steps"].to_pylist(), table["updates"].to_pylist(), strict=True))
        for step in range(max(0, last - 49), last + 1):
            assert latest[step % 50] in (step, step + 50), (attempt, step)
        for row in table.to_pylist():
            assert len(row_config(row)["padding"]) == 5_000
    assert rows_seen > 0


FULL_DISK = """
    import sys
    from pathlib import Path
    from rllib_hpo.errors import StorageError
    from rllib_hpo.results import read_rows, write_row
    from tests.results.rows import make_row

    root = Path(sys.argv[1])
    write_row(root, make_row(returns=(1.0,)))
    filler = root / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass
    for steps in (10_000, 20_000):  # one that replaces, one that is new
        try:
            write_row(root, make_row(env_steps=steps, returns=(2.0,)))
        except StorageError as error:
            print(error)
    print(read_rows(root)["return_mean"].to_pylist(), [p.name for p in root.rglob(".*")])
    filler.unlink()
    write_row(root, make_row(env_steps=20_000, returns=(3.0,)))
    print(read_rows(root)["return_mean"].to_pylist())
"""


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    """A real file system of 64 KiB is mounted where only the child process sees it."""
    mount = f"mount -t tmpfs -o size=64k tmpfs '{tmp_path}' && exec \"$@\""
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    try:
        probe = subprocess.run([*prefix, "true"], capture_output=True, timeout=30, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare (util-linux) to mount a tiny file system")
    if probe.returncode:
        pytest.skip("this kernel or container does not allow mounting in a user namespace")
    replaced, new, before, after = run_python(FULL_DISK, str(tmp_path), prefix=prefix)
    assert replaced == f"Cannot write {row_path(tmp_path, make_row())}: No space left on device."
    assert new == f"Cannot write {row_path(tmp_path, make_row(env_steps=20_000))}: No space left on device."
    assert before == "[1.0] []"
    assert after == "[1.0, 3.0]"


FILE_LIMIT = """
    import resource, sys
    from pathlib import Path
    from rllib_hpo.errors import StorageError
    from rllib_hpo.results import read_rows, write_row
    from tests.results.rows import make_row

    root = Path(sys.argv[1])
    write_row(root, make_row(returns=(1.0,)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
    try:
        write_row(root, make_row(returns=(2.0,)))
    except StorageError as error:
        print(error)
    print(read_rows(root)["return_mean"].to_pylist(), [p.name for p in root.rglob(".*")])
"""


def test_a_write_cut_short_keeps_the_old_row(tmp_path: Path) -> None:
    """The kernel rejects writes after 1,000 bytes: the partial file is removed, and the earlier row stays."""
    assert run_python(FILE_LIMIT, str(tmp_path)) == [
        f"Cannot write {row_path(tmp_path, make_row())}: File too large.",
        "[1.0] []",
    ]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "sweep=demo").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match=r"^Cannot write .*: (Not a directory|File exists)\.$"):
        write_row(tmp_path, make_row())


def test_importing_results_is_light() -> None:
    """Rows can be read without Ray and PyTorch."""
    script = "import sys, rllib_hpo.results; print({'ray', 'torch', 'wandb'} & set(sys.modules))"
    assert run_python(script) == ["set()"]

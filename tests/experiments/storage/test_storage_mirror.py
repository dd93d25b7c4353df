"""Test sweeps on storage: what is uploaded when, what is restored, and storage that is unreachable or damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from rllib_hpo.errors import CheckpointError, StorageError
from rllib_hpo.experiments.process.lock import locked
from rllib_hpo.experiments.storage import transfers
from rllib_hpo.experiments.storage.checkpoints import CheckpointStore
from rllib_hpo.experiments.storage.folder import Storage, check_no_secrets, rows_from
from rllib_hpo.experiments.storage.mirror import Mirror
from rllib_hpo.experiments.storage.stored_checkpoints import manifest_on
from rllib_hpo.results import read_rows, trial_id, without_volatile, write_row
from rllib_hpo.rllib.checkpointing import FORMAT
from tests.experiments.lives import CLI, REPOSITORY
from tests.experiments.s3_server import Proxy, s3_server
from tests.experiments.sweeps import test_sweep as sweeps
from tests.experiments.sweeps.test_sweep import EVALUATIONS, rows, started, wait_until
from tests.experiments.token_cluster import free_ports
from tests.results.rows import make_row
from tests.test_cli import run as run_here

TRIAL = "sac-Pendulum-v1-seed0"
SWEEP = sweeps.SWEEP.replace("seeds: 0-1", "seeds: 0")


class FailingHandler(fs.FileSystemHandler):
    """Fail all calls of the local filesystem while `down`."""

    def __init__(self) -> None:
        self.local, self.down, self.written = fs.LocalFileSystem(), threading.Event(), []

    def _answering(self) -> fs.LocalFileSystem:
        if self.down.is_set():
            raise OSError("Connection refused")
        return self.local

    def get_type_name(self) -> str:
        return "failing"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self._answering().get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        return self._answering().get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._answering().create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._answering().delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._answering().delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        self._answering().delete_file(path)

    def move(self, src: str, dest: str) -> None:
        self._answering().move(src, dest)
        self.written.append(dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._answering().copy_file(src, dest)

    def open_input_stream(self, path: str) -> Any:
        return self._answering().open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        return self._answering().open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return self._answering().open_output_stream(path)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        return self._answering().open_append_stream(path)


class Node:
    """Simulate a machine that runs the trial: it has its own disk, and all share the storage."""

    def __init__(self, disk: Path, handler: FailingHandler, shared: Path) -> None:
        self.results, self.run = disk / "results", disk / "trials" / TRIAL
        self.storage = Storage(f"file://{shared}", fs.PyFileSystem(handler), str(shared))
        self.mirror = Mirror(self.storage, self.run, self.results, timeout_s=0.5)

    def starts(self, step: int = 0) -> Mirror:
        self.mirror.identify()
        self.mirror.restore()
        self.mirror.start(step)
        return self.mirror

    def evaluates(self, step: int) -> Path:
        row = make_row(env_steps=step, trial_id=trial_id(self.run))
        return write_row(self.results, row)

    def saves(self, step: int, segments: int, returned: float | None = None) -> Path:
        """Save a checkpoint of that step, with the replay in the given number of segments of 10 rows."""
        listed = []
        for number in range(segments):
            data = np.full((10, 3), number, np.float32)
            crc32 = zlib.crc32(data.data)
            name = f"rows-{number * 10:010d}-{number * 10 + 10:010d}-{crc32:08x}.npy"
            (self.run / "replay").mkdir(parents=True, exist_ok=True)
            np.save(self.run / "replay" / name, data)
            listed.append({"file": name, "start": number * 10, "end": number * 10 + 10, "crc32": crc32})
        path = self.run / "checkpoints" / f"step-{step:010d}"
        (path / "learner").mkdir(parents=True)
        state = f"state {step}".encode()
        (path / "learner" / "state.pkl").write_bytes(state)
        manifest = {
            "format": FORMAT,
            "algorithm": "sac",
            "env": "Pendulum-v1",
            "config": {},
            "env_steps": step,
            "evaluation": returned and {"env_runners": {"episode_return_mean": returned}},
            "replay": {"directory": "../../replay", "total_rows": step, "segments": listed},
            "files": {"learner/state.pkl": {"bytes": len(state), "crc32": zlib.crc32(state)}},
        }
        (path / "manifest.json").write_text(json.dumps(manifest))
        return path

    def forgets(self, step: int) -> None:
        shutil.rmtree(self.run / "checkpoints" / f"step-{step:010d}")


@pytest.fixture
def handler() -> FailingHandler:
    return FailingHandler()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    return tmp_path / "shared" / "little"


@pytest.fixture
def node(tmp_path: Path, handler: FailingHandler, shared: Path) -> Iterator[Node]:
    one = Node(tmp_path / "one", handler, shared)
    yield one
    one.mirror.close()


@pytest.fixture
def other(tmp_path: Path, handler: FailingHandler, shared: Path) -> Iterator[Node]:
    one = Node(tmp_path / "other", handler, shared)
    yield one
    one.mirror.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "FIRST_RETRY_S", 0.02)
    monkeypatch.setattr(transfers, "LONGEST_RETRY_S", 0.05)  # far below the patience
    monkeypatch.setattr(transfers, "CLOSING_S", 1.0)


def on_storage(shared: Path) -> list[str]:
    """Return the checkpoints and segments on storage."""
    trial = shared / "trials" / TRIAL
    return sorted(str(p.relative_to(trial)) for p in [*trial.glob("checkpoints/*"), *trial.glob("replay/*")])


def test_rows_come_before_segments_files_and_manifest(node: Node, handler: FailingHandler) -> None:
    mirror = node.starts()
    mirror.finish()  # the thread has looked for earlier rows, so that it takes none of those below for one
    mirror.row(node.evaluates(0))
    mirror.row(node.evaluates(100))
    mirror.checkpoint(node.saves(100, segments=2))
    mirror.finish()
    kinds = [Path(path).name.split("-")[0] for path in handler.written]
    identity = trial_id(node.run)
    assert kinds == ["trial_id", identity, identity, "rows", "rows", "state.pkl", "manifest.json"]
    assert (manifest_on(node.storage.child("trials").child(TRIAL)) or {})["env_steps"] == 100


def test_only_new_segments_go_and_old_things_leave(node: Node, handler: FailingHandler, shared: Path) -> None:
    mirror = node.starts()
    for number in (1, 2, 3, 4):
        if number > 1:
            node.forgets(number * 100 - 100)
        path = node.saves(number * 100, segments=number, returned=float(number))
        if number == 4:  # the ring went round: the first segment is no longer listed
            manifest = json.loads((path / "manifest.json").read_text())
            del manifest["replay"]["segments"][0]
            (path / "manifest.json").write_text(json.dumps(manifest))
        mirror.checkpoint(path)
        mirror.finish()
    segments = [path for path in handler.written if "/replay/" in path]
    assert len(segments) == len(set(segments)) == 4
    there = on_storage(shared)
    assert there[:2] == ["checkpoints/step-0000000300", "checkpoints/step-0000000400"]
    assert len(there) == 2 + 4  # the one before the last still lists the first segment
    node.forgets(400)
    path = node.saves(500, segments=5, returned=5.0)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["replay"]["segments"][0]
    (path / "manifest.json").write_text(json.dumps(manifest))
    mirror.checkpoint(path)
    mirror.finish()
    assert not any("rows-0000000000-" in name for name in on_storage(shared))


def test_the_best_stays_also_where_another_node_goes_on(node: Node, other: Node, shared: Path) -> None:
    mirror = node.starts()
    mirror.checkpoint(node.saves(100, segments=1, returned=5.0))
    mirror.checkpoint(node.saves(200, segments=1, returned=1.0))
    mirror.finish()
    mirror.close()
    other.starts(200)
    for step in (300, 400, 500):
        other.mirror.checkpoint(other.saves(step, segments=1, returned=2.0))
        other.mirror.finish()
        other.forgets(step - 100)
    steps = [int(name[-3:]) for name in on_storage(shared) if name.startswith("checkpoints/")]
    assert (steps[0], steps[-1]) == (100, 500)
    assert 200 not in steps


def test_the_best_is_that_of_its_own_weights(node: Node, other: Node, shared: Path) -> None:
    """With evaluations beside training, manifests hold the return of the evaluation before."""
    mirror = node.starts()
    for step, before, own in ((100, None, 5.0), (200, 5.0, 1.0)):
        mirror.checkpoint(node.saves(step, segments=1, returned=before))
        CheckpointStore(node.run).evaluated(step, own)
    mirror.checkpoint(node.saves(300, segments=1, returned=1.0))
    mirror.finish()
    mirror.close()
    other.starts(300)
    assert CheckpointStore(other.run).returns() == {"100": 5.0, "200": 1.0}
    CheckpointStore(other.run).evaluated(300, 2.0)
    for step in (400, 500, 600):
        other.mirror.checkpoint(other.saves(step, segments=1, returned=2.0))
        other.mirror.finish()
        other.forgets(step - 100)
    there = [name for name in on_storage(shared) if name.startswith("checkpoints/step-")]
    steps = [int(name[-3:]) for name in there]
    assert (steps[0], steps[-1]) == (100, 600)
    assert 200 not in steps


def test_training_goes_on_while_storage_is_away(
    node: Node, handler: FailingHandler, caplog: pytest.LogCaptureFixture, shared: Path
) -> None:
    """Checkpoints may also be replaced locally before their upload."""
    mirror = node.starts()
    mirror.finish()
    handler.down.set()
    began = time.monotonic()
    for step in range(0, 600, 100):
        mirror.row(node.evaluates(step))
        mirror.checkpoint(node.saves(step, segments=step // 100))
        if step:
            node.forgets(step - 100)
    assert time.monotonic() - began < 30  # disks may be slow; a call that waited would not end
    time.sleep(0.3)
    assert not any(shared.rglob("*.parquet"))
    handler.down.clear()
    mirror.finish()
    assert len(read_rows(shared)) == 6
    assert on_storage(shared)[0] == "checkpoints/step-0000000500"
    away, back = [record.getMessage() for record in caplog.records if "torage" in record.getMessage()]
    assert "does not respond (Connection refused)" in away
    assert "is back after" in back


def test_a_trial_waits_no_longer_than_its_patience(
    node: Node, handler: FailingHandler, tmp_path: Path, shared: Path
) -> None:
    mirror = node.starts()
    handler.down.set()
    mirror.row(node.evaluates(0))
    mirror.checkpoint(node.saves(100, segments=1))
    with pytest.raises(StorageError, match=r"all results are in .*one/trials") as raised:
        mirror.finish()
    assert "\n" not in str(raised.value)
    mirror.close()
    handler.down.clear()
    again = Node(tmp_path / "one", handler, shared)
    again.starts(100).finish()  # what resuming does
    again.mirror.close()
    assert read_rows(shared)["env_steps"].to_pylist() == [0]
    assert on_storage(shared)[0] == "checkpoints/step-0000000100"


def test_another_node_goes_on(node: Node, other: Node, shared: Path) -> None:
    mirror = node.starts()
    (shared / "trials" / TRIAL / "config.yaml").write_text("steps: 1\n")
    mirror.row(node.evaluates(0))
    mirror.checkpoint(node.saves(100, segments=2))
    mirror.row(node.evaluates(200))
    mirror.finish()
    mirror.close()
    other.starts(100)
    assert trial_id(other.run) == trial_id(node.run)
    assert (other.run / "config.yaml").read_text() == "steps: 1\n"
    newest = CheckpointStore(other.run).newest_valid()
    assert newest is not None
    assert newest.name == "step-0000000100"
    other.mirror.row(other.evaluates(200))
    other.mirror.finish()
    assert read_rows(shared)["env_steps"].to_pylist() == [0, 200]


@pytest.mark.parametrize(
    "what", ["checkpoints/step-0000000200/learner/state.pkl", "replay", "missing", "manifest"]
)
def test_a_damaged_checkpoint_is_passed_over_and_said(
    what: str, node: Node, other: Node, shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = node.starts()
    mirror.checkpoint(node.saves(100, segments=1))
    mirror.checkpoint(node.saves(200, segments=2))
    mirror.finish()
    trial = shared / "trials" / TRIAL
    newest = trial / "checkpoints" / "step-0000000200"
    if what == "missing":
        (newest / "learner" / "state.pkl").unlink()
    elif what == "manifest":
        (newest / "manifest.json").write_text("{")
    else:
        path = max((trial / "replay").glob("*")) if what == "replay" else trial / what
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    other.starts(100)
    found = CheckpointStore(other.run).newest_valid()
    assert found is not None
    assert found.name == "step-0000000100"
    assert "step-0000000200" in caplog.text
    assert "Using the previous checkpoint." in caplog.text
    other.mirror.checkpoint(other.saves(200, segments=2))  # made again, it replaces the damaged one
    other.mirror.finish()
    shutil.rmtree(other.run)
    again = Node(other.run.parents[1], FailingHandler(), shared)
    again.mirror.identify()
    again.mirror.restore()
    found = CheckpointStore(again.run).newest_valid()
    assert found is not None
    assert found.name == "step-0000000200"


def test_damage_to_all_is_never_a_fresh_start(node: Node, other: Node, shared: Path) -> None:
    mirror = node.starts()
    mirror.checkpoint(node.saves(100, segments=1))
    mirror.finish()
    (shared / "trials" / TRIAL / "checkpoints" / "step-0000000100" / "learner" / "state.pkl").write_bytes(
        b"?"
    )
    other.mirror.identify()
    with pytest.raises(CheckpointError, match="To start the trial again, remove"):
        other.mirror.restore()


def test_a_checkpoint_without_a_manifest_does_not_exist(node: Node, other: Node, shared: Path) -> None:
    mirror = node.starts()
    mirror.checkpoint(node.saves(100, segments=1))
    mirror.finish()
    (shared / "trials" / TRIAL / "checkpoints" / "step-0000000100" / "manifest.json").unlink()
    other.starts()
    assert CheckpointStore(other.run).newest_valid() is None
    assert manifest_on(other.storage.child("trials").child(TRIAL)) is None


def test_another_run_of_that_name_is_refused(node: Node, other: Node) -> None:
    node.mirror.identify()
    trial_id(other.run)
    with pytest.raises(StorageError, match="is not the one stored at"):
        other.mirror.identify()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAHIDDEN:hunter2@bucket/x",
        "s3://AKIAHIDDEN@bucket/x",
        "s3://u:hun/ter2@bucket/x",
        "s3://bucket/x?access_key=AKIAHIDDEN&secret_key=hunter2",
        "s3://bucket/x?session_token=hunter2",
        "s3://bucket/x?endpoint_override=http://u:hunter2@host",
        "s3://bucket/x?endpoint_override=http%3A%2F%2Fu%3Ahunter2%40host",
        "abfs://account/x?client_secret=hunter2",
        "file://u:hunter2@host/x",
    ],
)
def test_secrets_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(StorageError) as raised:
        Storage.open(uri)
    assert not any(secret in str(raised.value) for secret in ("hunter2", "ter2", "AKIA"))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/x?endpoint_override=http://127.0.0.1:9000&region=us-east-1&scheme=http",
        "gs://anonymous@bucket/x",
        "file:///mnt/shared",
        "/mnt/me@work",
    ],
)
def test_other_uris_are_not(uri: str) -> None:
    check_no_secrets(uri)


def test_the_name_comes_before_the_query() -> None:
    query = "?endpoint_override=http://127.0.0.1:9000&region=us-east-1&scheme=http"
    child = Storage.open(f"s3://bucket/x/{query}").child("little")
    assert (child.uri, child.path) == (f"s3://bucket/x/little{query}", "bucket/x/little")


def test_rows_are_found_at_any_level(node: Node, tmp_path: Path, shared: Path) -> None:
    mirror = node.starts()
    mirror.row(node.evaluates(0))
    mirror.finish()
    task = next(shared.rglob("task=*"))
    for number, root in enumerate([shared.parent, shared, shared / "results", task]):
        rows_from(Storage.open(f"file://{root}"), tmp_path / str(number))
        assert len(read_rows(tmp_path / str(number))) == 1


def test_storage_that_cannot_be_used_is_one_sentence_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "little.yaml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    for uri in (f"file://{tmp_path}/file/x", "nonsense://x", "s3://u:hunter2@bucket/x"):
        assert run_here("sweep", "little.yaml", "--storage", uri) == 2
        said = capsys.readouterr()
        (line,) = said.err.strip().splitlines()
        assert line.startswith("Error: ")
        assert "hunter2" not in said.out + said.err
        assert not (tmp_path / "runs").exists()


# Against a real S3 server ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    pytest.importorskip("moto")
    pytest.importorskip("flask_cors")
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


def run(*words: str, cwd: Path, code: int = 0) -> str:
    process = started(*words, cwd=cwd)
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, (out, err)
    return out + err


def downloaded(uri: str, directory: Path) -> pa.Table:
    """Return all rows on storage, without clock times; every file has one."""
    rows_from(Storage.open(uri), directory)
    table = without_volatile(read_rows(directory))
    assert len(list(directory.rglob("*.parquet"))) == len(table)
    return table


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Return rows of an uninterrupted sweep without storage."""
    work = tmp_path_factory.mktemp("reference")
    (work / "little.yaml").write_text(SWEEP)
    run("little.yaml", "--out", "sweep", cwd=work)
    table = rows(work / "sweep")
    assert len(table) == 2 * len(EVALUATIONS)
    return table


def ended_of(uri: str) -> Callable[[], bool]:
    """Return whether some trial has its second checkpoint on storage, and not all have their last."""
    storage = Storage.open(uri)
    return lambda: any("step-0000000200/manifest.json" in name for name in storage.files("trials"))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_and_its_disk_lost_it_goes_on_elsewhere(
    s3: Proxy, reference: pa.Table, tmp_path: Path
) -> None:
    base, uri = s3.uri("bucket/killed"), s3.uri("bucket/killed/little")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    (first / "little.yaml").write_text(SWEEP)
    process = started("little.yaml", "--storage", base, cwd=first)
    wait_until(ended_of(uri), process, poll_s=0.5)  # each look asks the server, which is slow
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    for trial in (
        first / "runs" / "little" / "trials"
    ).iterdir():  # a killed driver's workers live on for a moment
        with locked(trial):
            pass
    shutil.rmtree(first)
    assert 0 < len(downloaded(uri, tmp_path / "before")) < len(reference)
    printed = run("--resume", uri, cwd=second)
    assert "2 done, 0 failed, 0 unfinished" in printed
    assert downloaded(uri, tmp_path / "after").equals(reference)
    for path in (second / "runs" / "little").rglob("*"):
        assert not path.is_file() or b"dummy-secret" not in path.read_bytes(), path
    assert "2 done, 0 failed, 0 unfinished" in run("--resume", uri, cwd=second)
    shown = subprocess.run(
        [*CLI, "results", "check", uri],
        cwd=second,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert f"{len(reference)} rows; none is missing" in shown.stdout, shown.stderr


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_while_the_server_is_away_for_a_minute(
    s3: Proxy, reference: pa.Table, tmp_path: Path
) -> None:
    base, uri = s3.uri("bucket/away"), s3.uri("bucket/away/little")
    (tmp_path / "little.yaml").write_text(SWEEP)
    process = started("little.yaml", "--storage", base, "--max-concurrent", "1", cwd=tmp_path)
    wait_until(ended_of(uri), process)
    s3.off()
    time.sleep(60)
    s3.on()
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, (out, err)
    assert "2 done, 0 failed, 0 unfinished" in out
    assert downloaded(uri, tmp_path / "after").equals(reference)
    assert f"{uri} already exists" in run(
        "little.yaml", "--out", "x", "--storage", base, cwd=tmp_path, code=2
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_bucket_and_no_server_are_one_sentence(s3: Proxy, tmp_path: Path) -> None:
    (tmp_path / "little.yaml").write_text(SWEEP)
    nowhere = (
        f"s3://bucket/x?endpoint_override=http://127.0.0.1:{free_ports(1)[0]}&region=us-east-1&scheme=http"
    )
    for uri in (s3.uri("no-such-bucket/x"), nowhere):
        process = started("little.yaml", "--storage", uri, cwd=tmp_path)
        _, err = process.communicate(timeout=400)
        assert process.returncode == 2
        (line,) = err.strip().splitlines()
        assert line.startswith("Error: Cannot reach the storage s3://")
        assert not (tmp_path / "runs").exists()

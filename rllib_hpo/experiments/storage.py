"""Sweeps on storage: `rllib-hpo sweep FILE --storage URI` mirrors all that is durable to URI/NAME.

URI is what `pyarrow.fs.FileSystem.from_uri` takes (s3://bucket/prefix?region=eu-west-1, gs://bucket/prefix,
file:///mnt/shared) or a plain path. Every node then works in a directory of its own, and needs no file system that
others share; `rllib-hpo sweep --resume URI/NAME` goes on with the sweep anywhere. Credentials come from the
environment or the profile, as pyarrow finds them; a URI that holds any is refused.

Training never waits for an upload. A thread sends a trial's rows at once and in order, and before a checkpoint
every row up to its step, then its replay segments, its files and, last, its manifest: a checkpoint without one does
not exist. While storage is away uploads are tried again; the trial waits for them when it ends.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

import numpy as np
import pyarrow as pa
from pyarrow import fs

from rllib_hpo.errors import CheckpointError, StorageError, UserError
from rllib_hpo.experiments.checkpoints import CheckpointStore
from rllib_hpo.results import read_rows, rows_from_arrow, trial_id, write_atomically, write_row
from rllib_hpo.rllib.checkpointing import MANIFEST, read_manifest, verify

PATIENCE_S = 600.0
"""How long a trial that has ended, or is to begin, waits for storage that does not answer."""
CLOSING_S = 20.0
"""How long a trial that is stopped in the middle gives its uploads, while storage answers."""
FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 30.0
KEPT = 2
"""Newest checkpoints on storage: should the last turn out damaged, there is one before it."""

_ATOMIC = frozenset({"s3", "gcs", "abfs"})  # there an object appears whole or not at all
_ABSENT = (OSError, pa.ArrowException)  # what pyarrow raises where storage does not answer, or refuses
_SECRET = re.compile(r"key|secret|token|passw|credential|signature|^sig$|^sas", re.IGNORECASE)
_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


def is_uri(text: str) -> bool:
    """Whether `text` is a URI and not a plain path; a Windows drive is none."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", text) is not None


def refuse_secrets(uri: str) -> None:
    """Refuses a URI that holds credentials: it is written to plan.json and to logs.

    Raises:
        StorageError: Without repeating the URI.
    """
    if not is_uri(uri):
        return
    try:
        query = parse_qsl(urlsplit(uri).query, keep_blank_values=True)
    except ValueError:
        raise StorageError("The storage is not a URI that can be read.") from None
    # An @ anywhere: where a password holds a slash, what stands before it is no longer the URI's host.
    if "@" in re.sub(r"^gs://anonymous@", "", uri) or "%40" in urlsplit(uri).query:
        raise StorageError(
            "The storage's URI holds a user or a password (an @); give credentials in the environment."
        )
    for name, _ in query:
        if _SECRET.search(name):
            raise StorageError(f"The storage's URI holds a secret ({name}); give it in the environment.")


@dataclass(frozen=True)
class Storage:
    """A folder on a pyarrow filesystem; what fails raises OSError, as pyarrow does, unless said otherwise.

    Args:
        uri: How people name it; it holds no secret.
        filesystem: Where it is.
        path: And where there.
    """

    uri: str
    filesystem: Any
    path: str

    @classmethod
    def open(cls, uri: str) -> Storage:
        """The folder that `uri` names, which need not exist yet.

        Raises:
            StorageError: If it holds a secret, is malformed, or pyarrow cannot reach it.
        """
        refuse_secrets(uri)
        if not is_uri(uri):
            path = str(Path(uri).absolute())
            return cls(path, fs.LocalFileSystem(), path)
        try:
            filesystem, path = fs.FileSystem.from_uri(_hurried(uri))
        except (*_ABSENT, ValueError) as error:
            raise StorageError(f"Cannot use the storage {uri}: {_reason(error)}.") from error
        return cls(uri, filesystem, path.rstrip("/"))

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.path).name

    @property
    def local(self) -> Path | None:
        """The directory it is, where it is one of this machine."""
        return Path(self.path) if self.filesystem.type_name == "local" else None

    def child(self, name: str) -> Storage:
        """A folder in it."""
        if not is_uri(self.uri):
            return Storage(f"{self.uri}/{name}", self.filesystem, f"{self.path}/{name}")
        parts = urlsplit(self.uri)
        uri = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))
        return Storage(uri, self.filesystem, f"{self.path}/{name}")

    def read(self, name: str) -> bytes:
        """A file's bytes; FileNotFoundError if there is none."""
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return bytes(stream.read())

    def read_if_there(self, name: str) -> bytes | None:
        """A file's bytes, or None."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def write(self, name: str, source: bytes | IO[bytes]) -> int:
        """Puts a file there, whole or not at all; its size."""
        path = PurePosixPath(self.path, name)
        is_atomic = self.filesystem.type_name in _ATOMIC
        if not is_atomic:
            self.filesystem.create_dir(str(path.parent), recursive=True)
        target = path if is_atomic else path.with_name(f".{path.name}.tmp")
        with self.filesystem.open_output_stream(str(target)) as stream:
            shutil.copyfileobj(io.BytesIO(source) if isinstance(source, bytes) else source, stream, 1 << 20)
            size = int(stream.tell())
        if not is_atomic:
            self.filesystem.move(str(target), str(path))
        return size

    def download(self, name: str, path: Path) -> None:
        """A file from there; FileNotFoundError if there is none."""
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)

    def files(self, folder: str = "") -> dict[str, int]:
        """Names (below this storage) and sizes of all files at or below a folder; none where it does not exist."""
        base = f"{self.path}/{folder}".rstrip("/")
        selector = fs.FileSelector(base, recursive=True, allow_not_found=True)
        found = [info for info in self.filesystem.get_file_info(selector) if info.type == fs.FileType.File]
        names = {str(PurePosixPath(info.path).relative_to(self.path)): int(info.size) for info in found}
        return {name: size for name, size in names.items() if not PurePosixPath(name).name.startswith(".")}

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.path}/{name}")

    def remove_folder(self, name: str) -> None:
        """Removes a folder and all below it, if it is there."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_dir(f"{self.path}/{name}")

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Makes one sentence of what fails.

        Raises:
            StorageError: If storage does not answer, refuses, or has no such bucket.
        """
        try:
            yield
        except StorageError:
            raise
        except _ABSENT as error:
            raise StorageError(f"Cannot reach the storage {self.uri}: {_reason(error)}.") from error


def _hurried(uri: str) -> str:
    """Google's client by itself tries for a quarter of an hour before it says that anything is wrong."""
    if not uri.startswith(("gs://", "gcs://")) or "retry_limit_seconds" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds=20"


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".: ")


def publish(storage: Storage, directory: Path, names: Iterable[str]) -> None:
    """Puts files of a sweep's directory on storage.

    Raises:
        StorageError: If it cannot be reached.
    """
    with storage.reached():
        for name in names:
            storage.write(name, (directory / name).read_bytes())


def fetch(storage: Storage, directory: Path, names: Iterable[str]) -> None:
    """Puts files on storage into a sweep's directory.

    Raises:
        StorageError: If storage cannot be reached, or lacks one of them.
    """
    with storage.reached():
        for name in names:
            data = storage.read_if_there(name)
            if data is None:
                raise StorageError(f"There is no sweep on the storage {storage.uri}: it lacks {name}.")
            write_atomically(directory / name, data)


def steps_on(storage: Storage) -> int:
    """Environment steps that the newest whole checkpoint of a trial on storage holds.

    Raises:
        StorageError: If storage cannot be reached.
    """
    with storage.reached():
        sizes = storage.files()
        for name in sorted(_complete(sizes), reverse=True):
            try:
                manifest: dict[str, Any] = json.loads(storage.read(f"checkpoints/{name}/{MANIFEST}"))
                files = manifest["files"].items()
                if all(
                    sizes.get(f"checkpoints/{name}/{file}") == about["bytes"] for file, about in files
                ) and all(f"replay/{segment['file']}" in sizes for segment in manifest["replay"]["segments"]):
                    return int(manifest["env_steps"])
            except (ValueError, KeyError):  # a damaged manifest; the trial says so when it starts
                continue
    return 0


def rows_from(storage: Storage, directory: Path) -> None:
    """Downloads all evaluation rows at or below a folder of storage.

    Raises:
        StorageError: If storage cannot be reached.
    """
    with storage.reached(), ThreadPoolExecutor(16) as pool:
        names = [
            name
            for name in storage.files()
            if name.endswith(".parquet") and PurePosixPath(storage.path, name).parent.name.startswith("task=")
        ]
        # Files keep their task folder, which tells readers what they are, also where that is all of the storage.
        root = directory / PurePosixPath(storage.path).name
        list(pool.map(lambda name: storage.download(name, root / name), names))


def _complete(names: Iterable[str]) -> set[str]:
    """Names of the checkpoints that have a manifest."""
    found = (re.fullmatch(rf"checkpoints/(step-\d+)/{MANIFEST}", name) for name in names)
    return {match[1] for match in found if match}


class Mirror:
    """What one trial has on storage: brought here before it starts, and kept up while it runs by one thread.

    Args:
        sweep: The sweep's folder on storage.
        directory: The trial's own, here; its name is that on storage.
        results: The folder of the rows, here.
        patience_s: How long to wait for storage where there is nothing else to do.
    """

    def __init__(
        self, sweep: Storage, directory: Path, results: Path, patience_s: float = PATIENCE_S
    ) -> None:
        self._rows, self._trial = sweep.child("results"), sweep.child("trials").child(directory.name)
        self._directory, self._results, self._patience_s = directory, results, patience_s
        self._sizes: dict[str, int] = {}
        self._manifests: dict[str, bytes] = {}
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed, self._stop = threading.Condition(), threading.Event()
        self._away_since: float | None = None
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    # Before the trial runs -------------------------------------------------------------------------------

    def identify(self) -> None:
        """Agrees with storage on the trial's identity, and takes its configuration from there.

        Raises:
            StorageError: If storage stays away, or another run of that name is there.
        """
        there = self._patiently(lambda: self._trial.read_if_there("trial_id"))
        mine = self._directory / "trial_id"
        if there is None:
            identity = trial_id(self._directory)
            self._patiently(lambda: self._trial.write("trial_id", f"{identity}\n".encode()))
        elif mine.exists() and mine.read_bytes().strip() != there.strip():
            raise StorageError(
                f"The trial in {self._directory} is another one than that on the storage {self._trial.uri}; "
                "choose another --out."
            )
        else:
            write_atomically(mine, there)
        config = self._patiently(lambda: self._trial.read_if_there("config.yaml"))
        if config is not None:
            write_atomically(self._directory / "config.yaml", config)

    def restore(self) -> None:
        """Downloads the newest checkpoint that is intact, with its replay, unless there is one as new here.

        Raises:
            StorageError: If storage stays away.
            CheckpointError: If there are finished checkpoints, and all are damaged.
        """
        self._patiently(self._look)
        newest, damaged = self._newest_here()
        refused: list[CheckpointError] = []
        for name in sorted(self._manifests, reverse=True):
            if newest is not None and name <= newest:
                break
            try:
                self._patiently(partial(self._download, name))
            except CheckpointError as error:
                refused.append(error)
                del self._manifests[name]
                continue
            newest = name
            break
        if newest is None and refused:
            raise CheckpointError(f"{refused[0]} To start the trial over, remove {self._trial.uri}.")
        if newest is None and damaged is not None:
            raise damaged
        for passed_over in refused:
            _logger.warning("%s Using the checkpoint before it.", passed_over)

    def _newest_here(self) -> tuple[str | None, CheckpointError | None]:
        try:
            newest = CheckpointStore(self._directory).newest_valid()
        except CheckpointError as error:
            return None, error
        return (None if newest is None else newest.name), None

    def _look(self) -> None:
        self._sizes = self._trial.files()
        self._manifests = {
            name: self._trial.read(f"checkpoints/{name}/{MANIFEST}") for name in _complete(self._sizes)
        }

    def _download(self, name: str) -> None:
        """Puts a checkpoint here, or raises a CheckpointError that says what is wrong with it."""
        path = self._directory / "checkpoints" / name
        temporary = path.with_name(f".{name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        write_atomically(temporary / MANIFEST, self._manifests[name])
        try:
            manifest = read_manifest(temporary)
            for file in manifest["files"]:
                self._trial.download(f"checkpoints/{name}/{file}", temporary / file)
            for segment in manifest["replay"]["segments"]:
                self._download_segment(segment)
            verify(temporary)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"The checkpoint {name} on {self._trial.uri} lacks a file: {_reason(error)}."
            ) from error
        except CheckpointError as error:
            raise CheckpointError(
                f"The checkpoint {name} on {self._trial.uri} cannot be used: {error}"
            ) from error
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)

    def _download_segment(self, segment: dict[str, Any]) -> None:
        path = self._directory / "replay" / segment["file"]
        if _has_rows(path, segment):
            return
        temporary, name = path.with_name(f".{path.name}.tmp"), f"replay/{segment['file']}"
        self._trial.download(name, temporary)
        if not _has_rows(temporary, segment):
            self._sizes.pop(name, None)  # a good one made here would replace it
            raise CheckpointError(f"The replay segment {path.name} is damaged.")
        temporary.replace(path)

    # While it runs ---------------------------------------------------------------------------------------

    def start(self, env_steps: int) -> None:
        """Starts the thread, which first sends what an earlier life left here up to the step it goes on from."""
        self._enqueue(lambda: self._send_rows_before(env_steps))
        self._enqueue(lambda: self._send_checkpoints(f"step-{env_steps:010d}"))
        self._thread = threading.Thread(target=self._work, name="storage", daemon=True)
        self._thread.start()

    def row(self, path: Path) -> None:
        """A row was written: sends it."""
        name, data = path.relative_to(self._results).as_posix(), path.read_bytes()
        self._enqueue(lambda: self._write_row(name, data))

    def checkpoint(self, path: Path) -> None:
        """A checkpoint was written: sends it after the rows before it, and removes from storage what it replaces.

        Raises:
            CheckpointError: If an earlier one could not be sent, for a reason that waiting would not mend.
        """
        self._raise_error()
        self._enqueue(lambda: self._send_checkpoints(path.name))

    def finish(self) -> None:
        """Waits until everything is on storage.

        Raises:
            StorageError: If storage stays away for longer than `patience_s`.
            CheckpointError: If a checkpoint could not be sent, for a reason that waiting would not mend.
        """
        began = time.monotonic()
        with self._changed:
            while self._jobs and self._error is None:
                away = self._away_since
                if away is not None and time.monotonic() - max(began, away) > self._patience_s:
                    raise self._given_up()
                self._changed.wait(0.2)
        self._raise_error()

    def close(self) -> None:
        """Ends the thread; what it has not sent by then is sent when the trial is resumed."""
        if self._thread is None:
            return
        deadline = time.monotonic() + CLOSING_S
        with self._changed:
            while self._jobs and self._away_since is None and time.monotonic() < deadline:
                self._changed.wait(0.2)
            self._stop.set()
            self._changed.notify_all()
        self._thread.join(CLOSING_S)

    def failed(self, name: str, text: bytes) -> None:
        """Puts the file that says why the trial failed on storage, if that answers."""
        try:
            self._trial.write(name, text)
        except _ABSENT:
            _logger.warning("The storage %s does not answer: %s is in %s only.", *self._about(name))

    def _about(self, name: str) -> tuple[str, str, Path]:
        return self._trial.uri, name, self._directory

    def _write_row(self, name: str, data: bytes) -> None:
        self._rows.write(name, data)

    def _send_rows_before(self, env_steps: int) -> None:
        """Rows that stand here and not on storage; later ones are made again."""
        identity = trial_id(self._directory)
        own = sorted(self._results.rglob(f"task=*/{identity}-*.parquet"))
        merged = sorted(self._results.rglob("task=*/compacted.parquet"))
        rows = rows_from_arrow(read_rows([*own, *merged])) if own or merged else []
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            written = [
                write_row(root, row)
                for row in rows
                if row.trial_id == identity and row.env_steps <= env_steps
            ]
            names = {path.relative_to(root).as_posix(): path for path in written}
            there: set[str] = set()
            for task in {str(PurePosixPath(name).parent) for name in names}:
                there.update(self._rows.files(task))
            for name in sorted(names.keys() - there):
                self._write_row(name, names[name].read_bytes())

    def _send_checkpoints(self, last: str) -> None:
        """Those kept here, up to that named `last`: later ones have rows that wait behind this."""
        for path in sorted((self._directory / "checkpoints").glob("step-*")):
            if path.name > last:
                break
            try:
                self._send_checkpoint(path)
            except CheckpointError:
                # Passed over when the trial started, or replaced meanwhile by a newer one, which waits behind this.
                if not any(other.name > path.name for other in path.parent.glob("step-*")):
                    raise
        if last in self._manifests:
            self._prune()

    def _send_checkpoint(self, path: Path) -> None:
        folder = f"checkpoints/{path.name}"
        try:
            manifest, data = verify(path), (path / MANIFEST).read_bytes()
        except FileNotFoundError as error:  # removed while it was read
            raise CheckpointError(f"{path} is gone, and cannot be put on storage.") from error
        if self._manifests.get(path.name) == data:
            return
        if any(name.startswith(f"{folder}/") for name in self._sizes):
            self._remove_checkpoint(path.name)  # another of that step, or one that was never finished
        for segment in manifest["replay"]["segments"]:
            self._send(path / manifest["replay"]["directory"] / segment["file"], f"replay/{segment['file']}")
        for file in manifest["files"]:
            self._send(path / file, f"{folder}/{file}")
        self._sizes[f"{folder}/{MANIFEST}"] = self._trial.write(f"{folder}/{MANIFEST}", data)
        self._manifests[path.name] = data

    def _send(self, path: Path, name: str) -> None:
        """A file that is never changed once it is written, unless it is there."""
        try:
            file = path.open("rb")
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} is gone, and cannot be put on storage.") from error
        with file:
            if self._sizes.get(name) != os.fstat(file.fileno()).st_size:
                self._sizes[name] = self._trial.write(name, file)

    def _prune(self) -> None:
        """Removes checkpoints but the newest, the best and those kept here, and segments that none of them lists."""
        here = {path.name for path in (self._directory / "checkpoints").glob("step-*")}
        best = max(sorted(self._manifests), key=lambda name: _evaluation_return(self._manifests[name]))
        kept = {*sorted(self._manifests)[-KEPT:], best, *(here & self._manifests.keys())}
        there = {PurePosixPath(name).parts[1] for name in self._sizes if name.startswith("checkpoints/")}
        for name in sorted(there - kept):
            self._remove_checkpoint(name)
        listed = {file for data in self._manifests.values() for file in _segments(data)}
        for name in [name for name in self._sizes if name.startswith("replay/")]:
            if name.removeprefix("replay/") not in listed:
                self._trial.remove(name)
                del self._sizes[name]

    def _remove_checkpoint(self, name: str) -> None:
        self._manifests.pop(name, None)
        folder = f"checkpoints/{name}"
        self._trial.remove(f"{folder}/{MANIFEST}")  # first: from here on it does not exist
        self._trial.remove_folder(folder)
        for file in [file for file in self._sizes if file.startswith(f"{folder}/")]:
            del self._sizes[file]

    # The thread ------------------------------------------------------------------------------------------

    def _enqueue(self, job: Callable[[], None]) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._stop.is_set())
                if self._stop.is_set():
                    return
                job = self._jobs[0]
            try:
                self._retried(job, self._stop.is_set)
            except Exception as error:  # noqa: BLE001  (raised where the trial next asks)
                self._error = error
            with self._changed:
                if self._error is None and not self._stop.is_set():
                    self._jobs.popleft()
                self._changed.notify_all()
                if self._error is not None:
                    return

    def _retried(self, job: Callable[[], _T], given_up: Callable[[], bool]) -> _T:
        """Does it, again and again while storage is away."""
        delay = FIRST_RETRY_S
        while True:
            try:
                result = job()
            except UserError:  # of what stands here: waiting would not mend it
                raise
            except _ABSENT as error:
                if self._away_since is None:
                    self._away_since = time.monotonic()
                    _logger.warning(
                        "The storage %s does not answer (%s); uploads are tried again until it does.",
                        self._trial.uri,
                        _reason(error),
                    )
                if given_up():
                    raise
                self._stop.wait(delay)
                delay = min(2 * delay, LONGEST_RETRY_S)
            else:
                if self._away_since is not None:
                    gone = time.monotonic() - self._away_since
                    self._away_since = None
                    _logger.warning("The storage %s is back after %.0f s.", self._trial.uri, gone)
                return result

    def _patiently(self, job: Callable[[], _T]) -> _T:
        """Does it now; storage that is away is waited for."""
        deadline = time.monotonic() + self._patience_s
        try:
            return self._retried(job, lambda: time.monotonic() > deadline)
        except UserError:
            raise
        except _ABSENT as error:
            raise StorageError(f"Cannot reach the storage {self._trial.uri}: {_reason(error)}.") from error

    def _given_up(self) -> StorageError:
        return StorageError(
            f"The storage {self._trial.uri} has been away for {self._patience_s:g} s: all results are in "
            f"{self._directory} and {self._results}, and `--resume` there puts them on storage."
        )

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def _evaluation_return(manifest: bytes) -> float:
    try:
        return float(json.loads(manifest)["evaluation"]["env_runners"]["episode_return_mean"])
    except (ValueError, KeyError, TypeError):  # never evaluated, or damaged
        return float("-inf")


def _segments(manifest: bytes) -> list[str]:
    try:
        return [segment["file"] for segment in json.loads(manifest)["replay"]["segments"]]
    except (ValueError, KeyError, TypeError):  # damaged
        return []


def _has_rows(path: Path, segment: dict[str, Any]) -> bool:
    """Whether a replay segment is there, and as it was written."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # noqa: BLE001  (a damaged header may raise anything)
        return False
    return zlib.crc32(np.ascontiguousarray(rows).data) == segment["crc32"]

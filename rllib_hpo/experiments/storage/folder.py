"""Read and write a folder on storage (`--storage URI`) through pyarrow.

URI is what `pyarrow.fs.FileSystem.from_uri` takes (s3://bucket/prefix?region=eu-west-1, gs://bucket/prefix,
file:///mnt/shared) or a plain path. Credentials come from the environment or the profile, as pyarrow finds them; a
URI that holds any is refused.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from rllib_hpo.errors import StorageError
from rllib_hpo.results import write_atomically
from rllib_hpo.results.paths import absolute

STORAGE_ERRORS = (OSError, pa.ArrowException)
"""Errors of pyarrow when storage does not answer, or refuses."""

_ATOMIC = frozenset({"s3", "gcs", "abfs"})  # there an object appears whole or not at all
_SECRET = re.compile(r"key|secret|token|passw|credential|signature|^sig$|^sas", re.IGNORECASE)


def remove_paths(paths: Iterable[Path]) -> None:
    """Remove files and folders, each on its own: one that is missing or cannot be removed keeps no other."""
    for path in list(paths):  # which may be a listing of the folder they are in
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def is_uri(text: str) -> bool:
    """Whether `text` is a URI, and not a path; a Windows drive is a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", text) is not None


def check_no_secrets(uri: str) -> None:
    """Check that a URI holds no credentials, since plan.json and logs contain it.

    Raises:
        StorageError: Without repeating the URI.
    """
    if not is_uri(uri):
        return
    try:
        query = parse_qsl(urlsplit(uri).query, keep_blank_values=True)
    except ValueError:
        raise StorageError("The storage is not a valid URI.") from None
    # An @ anywhere: where a password holds a slash, what stands before it is no longer the URI's host.
    if "@" in re.sub(r"^gs://anonymous@", "", uri) or "%40" in urlsplit(uri).query:
        raise StorageError(
            "The storage URI contains a user name or password (an @); give credentials in the environment."
        )
    for name, _ in query:
        if _SECRET.search(name):
            raise StorageError(f"The storage URI contains a secret ({name}); give it in the environment.")


@dataclass(frozen=True)
class Storage:
    """A folder on a pyarrow filesystem; methods raise OSError, as pyarrow does, unless stated otherwise.

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
        """Open the folder of `uri`, which need not exist yet.

        Raises:
            StorageError: If it holds a secret, is malformed, or pyarrow cannot reach it.
        """
        check_no_secrets(uri)
        if not is_uri(uri):
            path = str(absolute(uri))
            return cls(path, fs.LocalFileSystem(), path)
        try:
            filesystem, path = fs.FileSystem.from_uri(_limit_retries(uri))
        except (*STORAGE_ERRORS, ValueError) as error:
            raise StorageError(f"Cannot use the storage {uri}: {reason(error)}.") from error
        return cls(uri, filesystem, path.rstrip("/"))

    @property
    def name(self) -> str:
        """Last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def local(self) -> Path | None:
        """The local directory, if it is on this machine."""
        return Path(self.path) if self.filesystem.type_name == "local" else None

    def child(self, name: str) -> Storage:
        """A folder in this one."""
        if not is_uri(self.uri):
            return Storage(f"{self.uri}/{name}", self.filesystem, f"{self.path}/{name}")
        parts = urlsplit(self.uri)
        uri = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))
        return Storage(uri, self.filesystem, f"{self.path}/{name}")

    def read(self, name: str) -> bytes:
        """Content of a file; FileNotFoundError if there is none."""
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return bytes(stream.read())

    def read_if_exists(self, name: str) -> bytes | None:
        """Content of a file, or None."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def write(self, name: str, source: bytes | IO[bytes]) -> int:
        """Write a file atomically; returns its size."""
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
        """Download a file; FileNotFoundError if there is none."""
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)

    def files(self, folder: str = "") -> dict[str, int]:
        """Sizes of all files at or below a folder, by path relative to this one; empty if it does not exist."""
        base = f"{self.path}/{folder}".rstrip("/")
        selector = fs.FileSelector(base, recursive=True, allow_not_found=True)
        found = [info for info in self.filesystem.get_file_info(selector) if info.type == fs.FileType.File]
        names = {str(PurePosixPath(info.path).relative_to(self.path)): int(info.size) for info in found}
        return {name: size for name, size in names.items() if not PurePosixPath(name).name.startswith(".")}

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.path}/{name}")

    def remove_folder(self, name: str) -> None:
        """Remove a folder with its content if it exists."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_dir(f"{self.path}/{name}")

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turn errors into a StorageError of one sentence.

        Raises:
            StorageError: If storage does not answer, refuses, or has no such bucket.
        """
        try:
            yield
        except StorageError:
            raise
        except STORAGE_ERRORS as error:
            raise StorageError(f"Cannot reach the storage {self.uri}: {reason(error)}.") from error


def _limit_retries(uri: str) -> str:
    """Limit the retries of Google's client, which defaults to 15 minutes."""
    if not uri.startswith(("gs://", "gcs://")) or "retry_limit_seconds" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds=20"


def reason(error: BaseException) -> str:
    """First line of an error's text, or the name of its type, for use in a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".: ")


def publish(storage: Storage, directory: Path, names: Iterable[str]) -> None:
    """Upload files of a sweep's directory.

    Raises:
        StorageError: If it cannot be reached.
    """
    with storage.reached():
        for name in names:
            storage.write(name, (directory / name).read_bytes())


def fetch(storage: Storage, directory: Path, names: Iterable[str]) -> None:
    """Download files into a sweep's directory.

    Raises:
        StorageError: If storage cannot be reached, or lacks one of them.
    """
    with storage.reached():
        for name in names:
            data = storage.read_if_exists(name)
            if data is None:
                raise StorageError(f"There is no sweep at {storage.uri}: {name} is missing.")
            write_atomically(directory / name, data)


def rows_from(storage: Storage, directory: Path) -> None:
    """Download all evaluation rows at or below a folder of storage.

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

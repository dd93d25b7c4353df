"""Read and write checkpoints on any pyarrow filesystem, through a local folder.

A checkpoint is written to a temporary folder (`TMPDIR` names its disk), replay and all, and uploaded file by file with
the manifest last: on storage, too, it is whole or does not exist. Reading downloads what the manifest lists and
verifies it by the same checksums before anything is unpickled.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from pyarrow import fs
from ray import train, tune

from rllib_hpo.documents import reason
from rllib_hpo.errors import CheckpointError, StorageError, UserError
from rllib_hpo.results.paths import absolute
from rllib_hpo.rllib.checkpointing import MANIFEST, REPLAY, follow, read_manifest, verify_component

_OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})
"""Filesystems without folders, where a file appears whole or not at all."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BROKEN_URI = re.compile(r"(s3|gs|gcs|abfss?|hdfs|viewfs|file):/[^/]")


@dataclass(frozen=True)
class RemoteFolder:
    """A folder on a filesystem that is not this machine's.

    Args:
        filesystem: Any of `pyarrow.fs`.
        path: The folder on it, without a slash at its end.
    """

    filesystem: Any
    path: str

    def __str__(self) -> str:
        """Name for messages, without a URI's options, which may hold secrets."""
        return f"{self.filesystem.type_name}://{self.path}"

    def folder(self, path: str) -> RemoteFolder:
        """A folder relative to this one; `..` leads out of it."""
        return RemoteFolder(self.filesystem, posixpath.normpath(f"{self.path}/{path}"))

    def files(self) -> list[str]:
        """Paths of all files below it, relative to it; empty if it does not exist."""
        selector = fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        found = [info for info in self.filesystem.get_file_info(selector) if info.type == fs.FileType.File]
        return [posixpath.relpath(info.path, self.path) for info in found]

    def upload(self, name: str, source: Path) -> None:
        """Copy a local file to `name` atomically."""
        target = final = f"{self.path}/{name}"
        if self.filesystem.type_name not in _OBJECT_STORES:
            self.filesystem.create_dir(posixpath.dirname(final), recursive=True)
            target = f"{final}.tmp"
        with source.open("rb") as file, self.filesystem.open_output_stream(target) as stream:
            shutil.copyfileobj(file, stream, 1 << 20)
        if target != final:
            self.filesystem.move(target, final)

    def download(self, name: str, target: Path) -> bool:
        """Copy `name` to a local file; False if it does not exist."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                self.filesystem.open_input_stream(f"{self.path}/{name}") as stream,
                target.open("wb") as file,
            ):
                shutil.copyfileobj(stream, file, 1 << 20)
        except FileNotFoundError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.path}/{name}")

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turn errors of pyarrow into a StorageError of one sentence.

        Raises:
            StorageError: If the filesystem does not answer or refuses.
        """
        try:
            yield
        except (CheckpointError, StorageError):
            raise
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"Cannot reach the storage {self}: {reason(error)}.") from error


def is_uri(path: object) -> bool:
    """Whether `path` is text like "s3://bucket/folder"."""
    return isinstance(path, str) and _URI.match(path) is not None


def locate(
    path: str | Path | train.Checkpoint | tune.Checkpoint, filesystem: Any = None
) -> Path | RemoteFolder:
    """Locate a checkpoint by the arguments of RLlib and Tune.

    Args:
        path: A local path, a URI that pyarrow knows, or a Checkpoint of Tune; a path of `filesystem` if one is given.
        filesystem: One of `pyarrow.fs`; None takes it from the URI.

    Raises:
        StorageError: If the URI or the filesystem cannot be used.
    """
    if isinstance(path, train.Checkpoint | tune.Checkpoint):
        path, filesystem = path.path, path.filesystem
    if _BROKEN_URI.match(str(path)):
        raise StorageError(
            f"{path} is a URI that lost a slash, as it does in a pathlib.Path; give the URI as a string."
        )
    if filesystem is None:
        if not is_uri(path):
            return absolute(path)
        try:
            filesystem, path = fs.FileSystem.from_uri(path)
        except (OSError, ValueError, pa.ArrowException) as error:
            scheme = str(path).partition(":")[0]
            raise StorageError(f"The URI {scheme}://... cannot be used: {reason(error)}.") from error
    if not isinstance(filesystem, fs.FileSystem):
        raise StorageError(
            f"filesystem={type(filesystem).__name__} is not a filesystem of pyarrow.fs; wrap an fsspec filesystem "
            "as PyFileSystem(FSSpecHandler(...))."
        )
    if isinstance(filesystem, fs.LocalFileSystem):
        return absolute(path)
    return RemoteFolder(filesystem, str(path).rstrip("/"))


@contextmanager
def written_to(place: Path | RemoteFolder) -> Iterator[Path]:
    """A local folder for a checkpoint, which is uploaded to `place` if the context ends without an error.

    A checkpoint that was there before ends when the new one begins to replace it.

    Raises:
        StorageError: If the upload fails; `place` then has no manifest, and no checkpoint.
    """
    if isinstance(place, Path):
        (place / MANIFEST).unlink(missing_ok=True)
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as stage:
        yield Path(stage)
        _upload(Path(stage), place)


def _upload(stage: Path, place: RemoteFolder) -> None:
    manifest = read_manifest(stage)
    names = [
        *manifest["files"],
        *(f"{REPLAY}/{segment['file']}" for segment in manifest["replay"]["segments"]),
    ]
    with place.reached():
        place.remove(MANIFEST)
        for name in names:
            place.upload(name, stage / name)
        place.upload(MANIFEST, stage / MANIFEST)
        # Each replay has files of other names; those of the checkpoint that was here before would pile up.
        replay = place.folder(REPLAY)
        for name in replay.files():
            if f"{REPLAY}/{name}" not in names:
                replay.remove(name)


@contextmanager
def read_from(place: Path | RemoteFolder) -> Iterator[Path]:
    """A local folder with the files that the manifest of the checkpoint at `place` lists, not verified yet.

    Raises:
        CheckpointError: If there is no finished checkpoint; what the block raises names `place`, not the local folder.
        StorageError: If `place` cannot be reached.
    """
    if isinstance(place, Path):
        yield follow(place)
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as stage, _naming(place, Path(stage)):
        yield _download(place, Path(stage))


def _download(place: RemoteFolder, stage: Path) -> Path:
    with place.reached():
        if not place.download(MANIFEST, stage / MANIFEST):
            raise CheckpointError(f"{place} is not a finished checkpoint: it has no {MANIFEST}.")
        manifest = read_manifest(stage)
        replay = manifest["replay"]["directory"]
        if posixpath.isabs(replay):
            raise CheckpointError(
                f"The replay of the checkpoint {place} is not on its storage but in {replay}."
            )
        # A replay shared by several checkpoints is beside them: here, too, it must be within the stage.
        directory = stage.joinpath(*["up"] * PurePosixPath(replay).parts.count(".."))
        directory.mkdir(parents=True, exist_ok=True)
        (stage / MANIFEST).rename(directory / MANIFEST)
        for name in manifest["files"]:
            place.download(name, directory / name)
        segments, local = place.folder(replay), Path(posixpath.normpath(directory / replay))
        for segment in manifest["replay"]["segments"]:
            segments.download(segment["file"], local / segment["file"])
    return directory


@contextmanager
def component_from(place: Path | RemoteFolder, component: str) -> Iterator[Path]:
    """A local folder with a component that was saved at `place`.

    Args:
        place: The component's folder, in a checkpoint or by itself.
        component: Its path within a checkpoint. Where `place` ends with it, the checkpoint's manifest verifies it.

    Raises:
        CheckpointError: If there is nothing, or it is damaged; what the block raises names `place`.
        StorageError: If `place` cannot be reached.
    """
    if isinstance(place, Path):
        verify_component(place, component)
        yield place
        return
    is_inside = place.path.endswith(f"/{component}")
    root = place.folder("/".join([".."] * len(PurePosixPath(component).parts))) if is_inside else place
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as stage, _naming(root, Path(stage)):
        local = Path(stage, component) if is_inside else Path(stage)
        with place.reached():
            names = place.files()
            if any(name.startswith(f"{component}/") for name in names):
                names = [name for name in names if name.startswith(f"{component}/")]  # which is refused below
            for name in names:
                place.download(name, local / name)
            if is_inside:
                root.download(MANIFEST, Path(stage, MANIFEST))
        verify_component(local, component)
        yield local


@contextmanager
def _naming(place: RemoteFolder, stage: Path) -> Iterator[None]:
    """Replace the local folder in messages by `place`, since users never see the former."""
    try:
        yield
    except UserError as error:
        local = re.compile(rf"{re.escape(str(stage))}(/up)*")
        if not local.search(str(error)):
            raise
        raise CheckpointError(local.sub(lambda _: str(place), str(error))) from error

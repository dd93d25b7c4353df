"""List, upload and download the checkpoints and the replay of one trial on storage.

A checkpoint's replay segments go first, then its files and, last, its manifest: one without a manifest does not exist.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np

from rllib_hpo.errors import CheckpointError
from rllib_hpo.experiments.storage.checkpoints import (
    RETURNS_FILE,
    CheckpointStore,
    evaluation_return,
    numbered,
    parse_returns,
)
from rllib_hpo.experiments.storage.folder import Storage, reason
from rllib_hpo.results import write_atomically
from rllib_hpo.rllib.checkpointing import MANIFEST, parse_manifest, read_manifest, verify

_RETURNS = f"checkpoints/{RETURNS_FILE}"
KEPT = 2
"""Number of newest checkpoints kept on storage, in case the last is damaged."""


def manifest_on(storage: Storage) -> dict[str, Any] | None:
    """Manifest of the newest complete checkpoint of a trial on storage; None without any.

    Raises:
        StorageError: If storage cannot be reached.
    """
    with storage.reached():
        sizes = storage.files()
        for name in sorted(_complete(sizes), reverse=True):
            try:
                manifest = parse_manifest(storage.read(f"checkpoints/{name}/{MANIFEST}"), PurePath(name))
                files = manifest["files"].items()
                if all(
                    sizes.get(f"checkpoints/{name}/{file}") == about["bytes"] for file, about in files
                ) and all(f"replay/{segment['file']}" in sizes for segment in manifest["replay"]["segments"]):
                    return manifest
            except CheckpointError:  # damaged; the trial says so when it starts
                continue
    return None


class StoredCheckpoints:
    """A trial's folders `checkpoints` and `replay` on storage, and their local counterparts.

    It remembers what is on storage, which it alone changes, so only `look` lists the files there. Where storage is
    away its methods raise as `Storage` does; each may be called again then, and goes on where it was.

    Args:
        trial: The trial's folder on storage.
        directory: And here.
    """

    def __init__(self, trial: Storage, directory: Path) -> None:
        self._trial, self._directory = trial, directory
        self._sizes: dict[str, int] = {}
        self._manifests: dict[str, bytes] = {}
        self._returns_sent: dict[str, float] = {}

    def look(self) -> None:
        """List the files on storage."""
        self._sizes = self._trial.files()
        self._manifests = {
            name: self._trial.read(f"checkpoints/{name}/{MANIFEST}") for name in _complete(self._sizes)
        }
        self._take_returns()

    def _take_returns(self) -> None:
        """Merge the returns stored there into the local ones; no checkpoint holds them."""
        there = self._trial.read_if_exists(_RETURNS) if _RETURNS in self._sizes else None
        if there is not None:
            store = CheckpointStore(self._directory)
            store.note_returns({**parse_returns(there), **store.returns()})

    def names(self) -> list[str]:
        """Names of the checkpoints on storage, `step-0000010000`, newest first."""
        return sorted(self._manifests, reverse=True)

    def download(self, name: str) -> None:
        """Download a checkpoint with its replay.

        Raises:
            CheckpointError: If it is damaged; from then on it does not count among `names`.
        """
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
        except (FileNotFoundError, CheckpointError) as error:
            del self._manifests[name]  # one of that step made here would replace it
            lacks = isinstance(error, FileNotFoundError)
            what = f"lacks a file: {reason(error)}." if lacks else f"cannot be used: {error}"
            raise CheckpointError(f"The checkpoint {name} on {self._trial.uri} {what}") from error
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

    def send(self, last: str) -> None:
        """Upload local checkpoints up to the one named `last`, and remove what they replace.

        Raises:
            CheckpointError: If one is damaged or gone, and no newer one is here.
        """
        for path in numbered(self._directory / "checkpoints"):
            if path.name > last:
                break
            try:
                self._send_checkpoint(path)
            except CheckpointError:
                # Passed over when the trial started, or replaced meanwhile by a newer one, which waits behind this.
                if not any(other.name > path.name for other in numbered(path.parent)):
                    raise
        self._send_returns()
        if last in self._manifests:
            self._prune()

    def _send_returns(self) -> None:
        """Upload returns that became known after their checkpoints were saved."""
        returns = CheckpointStore(self._directory).returns()
        if returns and returns != self._returns_sent:
            self._sizes[_RETURNS] = self._trial.write(_RETURNS, json.dumps(returns).encode())
            self._returns_sent = returns

    def _send_checkpoint(self, path: Path) -> None:
        folder = f"checkpoints/{path.name}"
        try:
            manifest, data = verify(path), (path / MANIFEST).read_bytes()
        except FileNotFoundError as error:  # removed while it was read
            raise CheckpointError(f"{path} no longer exists, so it cannot be uploaded.") from error
        if self._manifests.get(path.name) == data:
            return
        if any(name.startswith(f"{folder}/") for name in self._sizes):
            self._remove_checkpoint(path.name)  # another of that step, or one that was never finished
        for segment in manifest["replay"]["segments"]:
            self._send_file(
                path / manifest["replay"]["directory"] / segment["file"], f"replay/{segment['file']}"
            )
        for file in manifest["files"]:
            self._send_file(path / file, f"{folder}/{file}")
        self._sizes[f"{folder}/{MANIFEST}"] = self._trial.write(f"{folder}/{MANIFEST}", data)
        self._manifests[path.name] = data

    def _send_file(self, path: Path, name: str) -> None:
        """Upload an immutable file unless storage has it."""
        try:
            file = path.open("rb")
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} no longer exists, so it cannot be uploaded.") from error
        with file:
            if self._sizes.get(name) != os.fstat(file.fileno()).st_size:
                self._sizes[name] = self._trial.write(name, file)

    def _prune(self) -> None:
        """Remove checkpoints except the newest, the best and local ones, and segments that none lists."""
        here = {path.name for path in numbered(self._directory / "checkpoints")}
        returns = CheckpointStore(self._directory).returns()
        best = max(
            sorted(self._manifests), key=lambda name: _evaluation_return(self._manifests[name], returns)
        )
        kept = {*sorted(self._manifests)[-KEPT:], best, *(here & self._manifests.keys())}
        there = {PurePosixPath(name).parts[1] for name in self._sizes if name.startswith("checkpoints/step-")}
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


def _complete(names: Iterable[str]) -> set[str]:
    """Names of checkpoints with a manifest."""
    found = (re.fullmatch(rf"checkpoints/(step-\d+)/{MANIFEST}", name) for name in names)
    return {match[1] for match in found if match}


def _evaluation_return(manifest: bytes, returns: Mapping[str, float]) -> float:
    try:
        return evaluation_return(parse_manifest(manifest, PurePath()), returns)
    except CheckpointError:
        return float("-inf")


def _segments(manifest: bytes) -> list[str]:
    try:
        return [segment["file"] for segment in parse_manifest(manifest, PurePath())["replay"]["segments"]]
    except CheckpointError:
        return []


def _has_rows(path: Path, segment: dict[str, Any]) -> bool:
    """Whether a replay segment exists with its checksum."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # noqa: BLE001  (a damaged header may raise anything)
        return False
    return zlib.crc32(np.ascontiguousarray(rows).data) == segment["crc32"]

"""Write files atomically, even if the writer is killed."""

from __future__ import annotations

import os
from pathlib import Path

from rllib_hpo.durable import sync, sync_path
from rllib_hpo.errors import StorageError


def write_atomically(path: Path, data: bytes) -> Path:
    """Write `data` to `path`, making its folders; readers see the old file or the new one, never a part.

    The temporary file stands in the same folder under a name with a leading dot. Its name depends on
    `path` alone, so what a killed writer left behind is overwritten by the next attempt: one writer per path.

    Raises:
        StorageError: the disk is full or refuses; the file that was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_and_sync(temporary, data)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)  # a full disk should at least get these bytes back
            raise
        sync_path(path.parent)
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror or error}.") from error
    return path


def _write_and_sync(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        sync(file.fileno())

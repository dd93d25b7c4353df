"""Probe the features of a directory's file system with temporary files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rllib_hpo.durable import sync_path
from rllib_hpo.experiments.process.lock import can_lock

LACKS = {
    "symbolic links": "`last` and `best` become small text files",
    "file locks": "never let two processes write one run",
    "fsync of files": "a power cut may cost the newest rows and checkpoints",
    "fsync of folders": "a power cut may cost the newest rows and checkpoints",
}
"""Features that a file system may lack, and the consequence for runs."""


def nearest_folder(directory: Path) -> Path:
    """The directory itself, or the nearest folder above it that exists."""
    place = directory.absolute()
    while not os.path.isdir(place):  # unlike Path.is_dir, False where it may not be looked at
        place = place.parent
    return place


def lacking(directory: Path) -> list[str]:
    """Names from `LACKS` of the features that the file system of `directory` lacks; it need not exist yet.

    Raises:
        OSError: If it cannot be written at all, or fails.
    """
    with tempfile.TemporaryDirectory(prefix=".rllib-hpo-doctor-", dir=nearest_folder(directory)) as name:
        folder = Path(name)
        file = folder / "file"
        file.write_bytes(b"0")
        file.replace(folder / "renamed")
        file = folder / "renamed"
        can = {
            "symbolic links": _links(folder / "link", file),
            "file locks": _locks(file),
            "fsync of files": sync_path(file),
            "fsync of folders": sync_path(folder),
        }
    return [what for what in LACKS if not can[what]]


def _links(link: Path, target: Path) -> bool:
    try:
        link.symlink_to(target.name)
    except OSError:
        return False
    return True


def _locks(file: Path) -> bool:
    descriptor = os.open(file, os.O_RDWR)
    try:
        return can_lock(descriptor)
    finally:
        os.close(descriptor)

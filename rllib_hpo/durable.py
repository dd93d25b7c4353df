"""Flushing files and folders to the disk, where the file system can."""

from __future__ import annotations

import errno
import os
from pathlib import Path

UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""What a file system answers that has no such call; EIO and ENOSPC mean that data are lost, and stay errors."""


def sync(descriptor: int) -> bool:
    """Flushes an open file or folder to the disk.

    Returns:
        Whether it was flushed; False where the file system does not support fsync.

    Raises:
        OSError: If the disk refuses (EIO, ENOSPC, ...).
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True


def sync_path(path: Path) -> bool:
    """Flushes a file, or a folder so that a rename in it survives a power cut; returns and raises as `sync`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return sync(descriptor)
    finally:
        os.close(descriptor)

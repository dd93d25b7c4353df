"""Flush files and folders to the disk, if the file system supports it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""Error numbers of file systems without fsync; EIO and ENOSPC mean lost data, and stay errors."""


def sync(descriptor: int) -> bool:
    """Flush an open file or folder to the disk.

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
    """Flush a file, or a folder so that a rename in it survives a power cut; returns and raises as `sync`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return sync(descriptor)
    finally:
        os.close(descriptor)

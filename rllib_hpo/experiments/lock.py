"""One process at a time trains in a run directory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rllib_hpo.errors import StorageError, UserError

PATIENCE_S = 30.0
"""How long to wait for one that is about to die: a killed driver's workers live on for some seconds."""


@contextmanager
def locked(directory: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Holds the directory while the context lasts; the system lets go of it when the process dies.

    The file .lock in it says who.

    Raises:
        UserError: If another process holds it for longer than `patience_s`.
        StorageError: If the directory cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # where there is none (Windows), two processes are the user's to avoid
        yield
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(f"Cannot write {directory}: {error.strerror or error}.") from error
    deadline = time.monotonic() + patience_s
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = os.pread(descriptor, 20, 0).decode().strip()
                    raise UserError(f"Another process (pid {holder}) is training in {directory}.") from None
                time.sleep(0.1)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)

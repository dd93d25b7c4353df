"""Lock a run directory, so that one process at a time trains in it."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rllib_hpo.errors import StorageError, UserError
from rllib_hpo.results import write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TIMEOUT_S = 30.0
"""Seconds to wait for a dying holder: workers of a killed driver survive it for some seconds."""

LOCK_FILE, HOLDER_FILE = ".lock", ".lock.json"
UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
"""Error numbers of `flock` on file systems without locks: Lustre without the option, NFS without a server."""

HEARTBEAT_S, SILENCE_S = 3.0, 20.0
"""Without file locks: interval of the holder's heartbeats, and silence after which it counts as dead."""

_logger = logging.getLogger(__name__)


@contextmanager
def locked(directory: Path, timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """Lock the directory while the context lasts; the system releases the lock when the process dies.

    The file .lock in it says who. Where the file system has no locks, .lock.json names host and process, and
    what it holds changes every few seconds while the process lives.

    Raises:
        UserError: If another process holds it for longer than `timeout_s`.
        StorageError: If the directory cannot be written.
    """
    if fcntl is None:  # where there is none (Windows), two processes are the user's to avoid
        yield
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(f"Cannot write {directory}: {error.strerror or error}.") from error
    deadline = time.monotonic() + timeout_s
    try:
        if not _flock(descriptor, directory, deadline):
            with _held_by_file(directory, deadline):
                yield
            return
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def can_lock(descriptor: int) -> bool:
    """Lock an open file without waiting; False if its file system, or the system, has no locks.

    Raises:
        BlockingIOError: If another process holds it.
        OSError: If the file system fails.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True


def _flock(descriptor: int, directory: Path, deadline: float) -> bool:
    """Wait for the lock; False if the file system has none."""
    while True:
        try:
            return can_lock(descriptor)
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 20, 0).decode().strip()
                raise UserError(f"Another process (pid {holder}) is training in {directory}.") from None
            time.sleep(0.1)
        except OSError as error:
            raise StorageError(f"Cannot lock {directory}: {error.strerror or error}.") from error


@contextmanager
def _held_by_file(directory: Path, deadline: float) -> Iterator[None]:
    """Lock the directory by a file that names the holder; two processes that start at once may both hold it."""
    _logger.warning(
        "The file system of %s does not support file locks: do not let two processes write this run at once.",
        directory,
    )
    path = directory / HOLDER_FILE
    _wait_until_free(path, deadline)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "processes": _process_namespace()}
    write_atomically(path, json.dumps({**me, "beat": 0}).encode())
    done = threading.Event()

    def beat() -> None:
        number = 0
        while not done.wait(HEARTBEAT_S):
            number += 1
            with suppress(StorageError):  # a full disk, which the next row or checkpoint tells of
                write_atomically(path, json.dumps({**me, "beat": number}).encode())

    thread = threading.Thread(target=beat, daemon=True, name="lock")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        path.unlink(missing_ok=True)


def _wait_until_free(path: Path, deadline: float) -> None:
    """Wait until the directory is free: no file, or a holder that is dead or silent.

    Raises:
        UserError: If its holder lives past the deadline.
    """
    seen, since = b"", time.monotonic()
    while True:
        try:
            holder = path.read_bytes()
        except FileNotFoundError:
            return
        now = time.monotonic()
        if holder != seen:
            seen, since = holder, now
        if _is_dead(holder) or now - since > SILENCE_S:
            return
        if now > deadline:
            raise UserError(
                f"Another process ({_name(holder)}) is training in {path.parent}; if it has ended, remove {path}."
            )
        time.sleep(0.1)


def _is_dead(holder: bytes) -> bool:
    """Whether the process that wrote `holder` ran on this host and has ended; False if that is unknown."""
    try:
        about = json.loads(holder)
        if (about["host"], about["processes"]) != (socket.gethostname(), _process_namespace()):
            return False
        os.kill(int(about["pid"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, OSError):
        return False
    return False


def _name(holder: bytes) -> str:
    try:
        about = json.loads(holder)
        return f"pid {about['pid']} on {about['host']}"
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _process_namespace() -> str:
    """Name of the process namespace, which differs between containers of one host."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""

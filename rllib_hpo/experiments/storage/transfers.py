"""Run storage operations with retries, synchronously or queued on a background thread.

The thread retries each job until storage answers. An error that a retry cannot fix ends the thread, and is raised when
its owner next calls it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from rllib_hpo.errors import StorageError, UserError
from rllib_hpo.experiments.storage.folder import STORAGE_ERRORS, reason

CLOSING_S = 20.0
"""Seconds that a stopped trial gives its uploads, while storage answers."""
FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 30.0

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


class Transfers:
    """Uploads and downloads of one trial.

    A job is a function that raises OSError or ArrowException while storage is away, and may be called again then.

    Args:
        uri: URI of the storage, for messages.
        timeout_s: Seconds to wait for storage when there is nothing else to do.
    """

    def __init__(self, uri: str, timeout_s: float) -> None:
        self._uri, self._timeout_s = uri, timeout_s
        self._jobs: deque[Callable[[], object]] = deque()
        self._changed, self._stop = threading.Condition(), threading.Event()
        self._away_since: float | None = None
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def run(self, job: Callable[[], _T]) -> _T:
        """Run a job now, retrying while storage does not answer.

        Raises:
            StorageError: If it does not answer for `timeout_s` seconds.
            UserError: The job's own error, which a retry cannot fix.
        """
        deadline = time.monotonic() + self._timeout_s
        try:
            return self._with_retries(job, lambda: time.monotonic() > deadline)
        except UserError:
            raise
        except STORAGE_ERRORS as error:
            raise StorageError(f"Cannot reach the storage {self._uri}: {reason(error)}.") from error

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="storage", daemon=True)
        self._thread.start()

    def enqueue(self, job: Callable[[], object]) -> None:
        """Queue a job for the thread."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def wait(self) -> bool:
        """Wait until the thread has done all jobs; False if storage has not answered for `timeout_s` seconds.

        Raises:
            Exception: The error that ended the thread.
        """
        began = time.monotonic()
        with self._changed:
            while self._jobs and self._error is None:
                away = self._away_since
                if away is not None and time.monotonic() - max(began, away) > self._timeout_s:
                    return False
                self._changed.wait(0.2)
        self.raise_error()
        return True

    def close(self) -> None:
        """End the thread, after at most `CLOSING_S` seconds of queued jobs while storage answers."""
        if self._thread is None:
            return
        deadline = time.monotonic() + CLOSING_S
        with self._changed:
            while self._jobs and self._away_since is None and time.monotonic() < deadline:
                self._changed.wait(0.2)
            self._stop.set()
            self._changed.notify_all()
        self._thread.join(CLOSING_S)

    def raise_error(self) -> None:
        """Raise the error that ended the thread, if any."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        """Body of the thread: run the jobs in order; a job leaves the queue when it is done."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._stop.is_set())
                if self._stop.is_set():
                    return
                job = self._jobs[0]
            try:
                self._with_retries(job, self._stop.is_set)
            except Exception as error:  # noqa: BLE001  (raised where the trial next asks)
                self._error = error
            with self._changed:
                if self._error is None and not self._stop.is_set():
                    self._jobs.popleft()
                self._changed.notify_all()
                if self._error is not None:
                    return

    def _with_retries(self, job: Callable[[], _T], given_up: Callable[[], bool]) -> _T:
        """Run a job, retrying while storage does not answer."""
        delay = FIRST_RETRY_S
        while True:
            try:
                result = job()
            except UserError:  # about local files: a retry cannot fix it
                raise
            except STORAGE_ERRORS as error:
                if self._away_since is None:
                    self._away_since = time.monotonic()
                    _logger.warning(
                        "The storage %s does not respond (%s); uploads are retried until it does.",
                        self._uri,
                        reason(error),
                    )
                if given_up():
                    raise
                self._stop.wait(delay)
                delay = min(2 * delay, LONGEST_RETRY_S)
            else:
                if self._away_since is not None:
                    gone = time.monotonic() - self._away_since
                    self._away_since = None
                    _logger.warning("The storage %s is back after %.0f s.", self._uri, gone)
                return result

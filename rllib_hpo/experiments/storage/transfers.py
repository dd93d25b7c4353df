"""Work with storage that may be away: done with patience, or in order by a thread of its own.

The thread tries each job again until storage answers; what cannot be mended by waiting ends it, and is raised where
its owner next asks.
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
"""How long a trial that is stopped in the middle gives its uploads, while storage answers."""
FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 30.0

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


class Transfers:
    """What one trial sends to storage and takes from there.

    A job is a function that raises OSError or ArrowException while storage is away, and may be called again then.

    Args:
        uri: The storage's, for sentences.
        timeout_s: How long to wait for storage where there is nothing else to do.
    """

    def __init__(self, uri: str, timeout_s: float) -> None:
        self._uri, self._timeout_s = uri, timeout_s
        self._jobs: deque[Callable[[], object]] = deque()
        self._changed, self._stop = threading.Condition(), threading.Event()
        self._away_since: float | None = None
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def now(self, job: Callable[[], _T]) -> _T:
        """Does a job here; storage that is away is waited for.

        Raises:
            StorageError: If it stays away for longer than `timeout_s`.
            UserError: What the job itself raises; waiting would not mend it.
        """
        deadline = time.monotonic() + self._timeout_s
        try:
            return self._with_retries(job, lambda: time.monotonic() > deadline)
        except UserError:
            raise
        except STORAGE_ERRORS as error:
            raise StorageError(f"Cannot reach the storage {self._uri}: {reason(error)}.") from error

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._work, name="storage", daemon=True)
        self._thread.start()

    def later(self, job: Callable[[], object]) -> None:
        """Leaves a job to the thread, after those before it."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def wait(self) -> bool:
        """Waits until the thread has done all jobs; False if storage has been away for longer than `timeout_s`.

        Raises:
            Exception: What ended the thread.
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
        """Ends the thread, with `CLOSING_S` for what is left to do while storage answers."""
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
        """Raises what ended the thread, if anything did."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        """The thread: does the jobs in order; one stays the first of them until it is done."""
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
        """Does it, again and again while storage is away."""
        delay = FIRST_RETRY_S
        while True:
            try:
                result = job()
            except UserError:  # of what stands here: waiting would not mend it
                raise
            except STORAGE_ERRORS as error:
                if self._away_since is None:
                    self._away_since = time.monotonic()
                    _logger.warning(
                        "The storage %s does not answer (%s); uploads are tried again until it does.",
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

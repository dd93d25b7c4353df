"""Signals that ask a run or a sweep to stop: the first saves and ends it, the second ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C; docker stop, systemd, Kubernetes, a spot machine taken back; a lost terminal; Slurm before a time limit."""

_requests: list[StopRequest] = []
"""Requests with an open context; the handlers of the last one are installed."""


def exit_code(number: int) -> int:
    """The exit code of a command that a signal stopped: 130 after Ctrl-C, else 143."""
    return 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


class StopRequest:
    """Whether a signal has asked to stop.

    While nothing is trained yet (`can_save` is False), or after an earlier signal, a signal raises SystemExit with
    the exit code; otherwise it is noted, announced and passed on to the listeners, in a thread of its own.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.signal: int | None = None
        """The number of the first signal."""
        self.can_save = False
        """Whether there is something that a stop has to save."""
        self._console, self._listeners = console, list[Callable[[], None]]()
        self._has_come, self._is_over = threading.Event(), False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal `number`.

        Raises:
            SystemExit: If it ends the process at once.
        """
        is_second = self.signal is not None
        self.signal = number if self.signal is None else self.signal
        if is_second or not self.can_save:
            raise SystemExit(exit_code(self.signal))
        self._has_come.set()

    def on_stop(self, listener: Callable[[], None]) -> None:
        """Call `listener` in another thread once a signal asks to stop."""
        self._listeners.append(listener)

    def follow(self) -> None:
        """Announce the signal and call the listeners; runs in a thread until `close`."""
        self._has_come.wait()
        if self._is_over or self.signal is None:
            return
        for listener in self._listeners:
            listener()
        if self._console is not None:
            name = signal.Signals(self.signal).name
            self._console.print(
                f"{name}: stopping and saving. A second signal exits immediately, without saving.",
                highlight=False,
                soft_wrap=True,
            )

    def close(self) -> None:
        """End `follow`; the handlers are no longer installed."""
        self._is_over = self.signal is None
        self._has_come.set()


@contextmanager
def stop_request(console: Console | None = None) -> Iterator[StopRequest]:
    """Let the stop signals set a request while the context lasts; outside the main thread none comes.

    A signal other than SIGINT that is ignored stays so: `nohup` ignores SIGHUP.

    Args:
        console: Where the first signal is acknowledged.
    """
    request = StopRequest(console)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    owned = [n for n in STOP_SIGNALS if n == signal.SIGINT or before[n] is not signal.SIG_IGN]
    follower = threading.Thread(target=request.follow, daemon=True, name="stop-signals")
    follower.start()
    _requests.append(request)
    try:
        for number in owned:
            signal.signal(number, request)
        yield request
    finally:
        for number in owned:
            signal.signal(number, before[number])
        _requests.remove(request)
        request.close()
        follower.join()


def owns_signals() -> bool:
    """Whether a request holds the handlers of this process."""
    return bool(_requests)


def reclaim_signals() -> None:
    """Install the handlers of the current request again, after a library has installed its own."""
    if not _requests or threading.current_thread() is not threading.main_thread():
        return
    for number in STOP_SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _requests[-1])


@contextmanager
def children_spared() -> Iterator[None]:
    """Block SIGHUP and SIGUSR1 in processes that start in this context; this process gets them afterwards.

    They go to a whole process group: a lost terminal would end Ray's own processes before the trials are saved.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

"""Pass a signal from a sweep's driver to its trials, so that each saves before Tune ends."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection

import ray
from ray.tune import Callback, Stopper

from rllib_hpo.experiments.process.signals import StopRequest, reclaim_signals
from rllib_hpo.rllib._private import get_from_cluster, put_in_cluster

SAVE_TIMEOUT_S = 15.0
"""Seconds that trials get to save. Tune gives them 15 s more to end; Kubernetes kills the driver after 30 s."""
_POLL_S = 1.0
_LOGGER = logging.getLogger(__name__)


class SweepStop(Stopper):
    """End Tune's loop once a stop was requested and the trials that ran then have ended.

    Args:
        request: What the signals set.
        running: Names of the trials that run now.
    """

    def __init__(self, request: StopRequest, running: Callable[[], Collection[str]]) -> None:
        self._request, self._running = request, running
        self.key = f"rllib_hpo/stop/{uuid.uuid4().hex}"
        """Key of the request in the cluster's key-value store."""
        self._waits_for: set[str] | None = None
        self._since = 0.0
        request.on_stop(self._tell_trials)

    def _tell_trials(self) -> None:
        try:
            put_in_cluster(self.key, b"1")
        except Exception as error:  # noqa: BLE001  (the cluster is gone: so are the trials)
            _LOGGER.warning("Trials cannot be notified to stop: %s", error)

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        """Return False: trials end by themselves."""
        return False

    def stop_all(self) -> bool:
        """Whether Tune is to end now."""
        if self._request.signal is None:
            return False
        running = set(self._running())
        if self._waits_for is None:
            self._waits_for, self._since = running, time.monotonic()
        self._waits_for &= running  # trials that start meanwhile have nothing to save
        return not self._waits_for or time.monotonic() - self._since > SAVE_TIMEOUT_S

    def __getstate__(self) -> dict[str, object]:
        """Return no state: Tune pickles it for a restore that a sweep does not use."""
        return {}


class SignalReclaimer(Callback):
    """Reinstall this process's signal handlers after Tune has installed its own."""

    def setup(self, **info: object) -> None:
        """Reinstall the handlers; Tune calls this after installing its own."""
        reclaim_signals()


def when_stopped(key: str, listener: Callable[[], None]) -> None:
    """Call `listener` in another thread once the driver requests a stop; for the process of a trial."""
    if not key or not ray.is_initialized():
        return

    def watch() -> None:
        try:
            while not get_from_cluster(key):
                time.sleep(_POLL_S)
        except Exception:  # noqa: BLE001  (the cluster is gone, and this process with it)
            return
        listener()

    threading.Thread(target=watch, daemon=True, name="sweep-stop").start()

"""Log the events of a run as JSON lines: RUN/events.jsonl."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rllib_hpo.documents import parse_json
from rllib_hpo.errors import UserError
from rllib_hpo.results.provenance import git_commit, versions

EVENTS_FILE = "events.jsonl"

Event = Literal[
    "started",
    "resumed",
    "evaluated",
    "checkpoint",
    "policy",
    "checkpoint_passed_over",
    "warning",
    "finished",
    "stopped",
    "failed",
]

_LOGGER = logging.getLogger(__name__)


class EventLog:
    """Append to the events of a run, after those of earlier sessions.

    A log that cannot be written is reported once and never stops the training; a full disk is not even
    reported, because the next row or checkpoint says so and ends the run.

    Args:
        directory: Of the run.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / EVENTS_FILE
        self._has_ended, self._is_broken = False, False

    def begin(self, env_steps: int, checkpoint: Path | None, about: Mapping[str, Any]) -> None:
        """Log the start of a session, from nothing or from `checkpoint`."""
        where = {"pid": os.getpid(), "host": socket.gethostname()}
        what = {"git_commit": git_commit(), "versions": versions()}
        if checkpoint is None:
            self.write("started", env_steps, **about, **where, **what)
        else:
            self.write("resumed", env_steps, path=str(checkpoint), **about, **where, **what)

    def end(self, env_steps: int, *, complete: bool, error: BaseException | None = None) -> None:
        """Log the end of the session; only the first call writes, since one failure may arrive twice."""
        if self._has_ended:
            return
        self._has_ended = True
        if isinstance(error, Exception):
            self.write("failed", env_steps, error=_sentence(error))
        else:  # an interrupt is no failure
            self.write("finished" if complete else "stopped", env_steps)

    def write(self, event: Event, env_steps: int, **about: Any) -> None:
        """Append one line atomically."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "event": event, "env_steps": env_steps, **about}) + "\n"
        try:
            _append(self.path, line.encode())
        except OSError as error:
            if not self._is_broken and error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                _LOGGER.warning("Cannot write %s: %s.", self.path, error.strerror or error)
            self._is_broken = True


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read the events of a file, oldest first, without lines that a killed process left unfinished."""
    events = []
    for line in path.read_bytes().splitlines():
        try:
            events.append(parse_json(line, "an event"))
        except UserError:  # half a line may be JSON, too, but no object
            continue
    return events


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # what a killed process left stays a line of its own
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"

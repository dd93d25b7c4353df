"""Write TensorBoard files of one run against environment steps: RUN/tensorboard."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from rllib_hpo.durable import UNSUPPORTED

_LOGGER = logging.getLogger(__name__)


class TensorBoard:
    """Write scalars; drop those that a killed session logged beyond the step of the resume.

    tensorboardX's own SummaryWriter writes in a thread, which dies where the disk is full, and whoever logs next
    waits for it for ever. Here a file that cannot be written is reported once, and not even that where the disk is
    full, because the next row or checkpoint says so and ends the run.

    Args:
        directory: Of the run.
        env_steps: Where the run begins, or goes on.
    """

    def __init__(self, directory: Path, env_steps: int) -> None:
        self._folder, self._is_broken = directory / "tensorboard", False
        self._writer: EventsWriter | None = None
        with self._tolerant():
            self._folder.mkdir(parents=True, exist_ok=True)
            # Two sessions may begin in one second.
            self._writer = EventsWriter(str(self._folder / "events"), filename_suffix=f".{env_steps:010d}")
            if env_steps:
                purge = SessionLog(status=SessionLog.START)
                self._writer.write_event(Event(step=env_steps + 1, session_log=purge))
            self._writer.flush()

    def log(self, metrics: Mapping[str, float], env_steps: int) -> None:
        """Record `metrics` (a flat mapping) at `env_steps`."""
        if self._writer is None or self._is_broken:
            return
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        with self._tolerant():
            self._writer.write_event(
                Event(wall_time=time.time(), step=env_steps, summary=Summary(value=values))
            )
            self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            with self._tolerant():
                self._writer.close()

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in UNSUPPORTED:  # it was written, and only not flushed to the disk
                return
            if not self._is_broken and error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                _LOGGER.warning("Cannot write %s: %s.", self._folder, error.strerror or error)
            self._is_broken = True

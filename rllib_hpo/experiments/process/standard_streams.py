"""Make standard streams safe: a lost terminal must not end a run, whose results are in files."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Unfailing(io.FileIO):
    """A descriptor that drops what cannot be written (`| head`, a lost terminal, a full disk)."""

    def write(self, data: Any) -> int:
        """Write, or drop what cannot be written."""
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError:
            return size
        return size if written is None else written


def make_streams_safe() -> None:
    """Make stdin, stdout and stderr usable in any case.

    Closed descriptors lead to the null device, so that no data file gets their numbers. Characters that the
    encoding lacks are printed as "?", and what nobody reads any more is dropped.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_null(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _safe(sys.stdout, 1)
    sys.stderr = _safe(sys.stderr, 2)


def _open_null(descriptor: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)


def _safe(stream: Any, descriptor: int) -> Any:
    """A stream like `stream` that never fails; one without a descriptor stays as it is."""
    encoding, buffers_lines = "utf-8", True
    if stream is not None:
        try:
            if stream.fileno() != descriptor:
                return stream
            stream.flush()
        except (OSError, ValueError):  # replaced by a test or a notebook, or broken already
            return stream
        encoding, buffers_lines = stream.encoding, stream.line_buffering
    raw = io.BufferedWriter(_Unfailing(descriptor, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding=encoding, errors="replace", line_buffering=buffers_lines)

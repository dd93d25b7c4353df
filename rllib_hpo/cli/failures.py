"""Report unexpected errors in one line, with the traceback in a file."""

from __future__ import annotations

import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path

from rllib_hpo.cli.console import errors
from rllib_hpo.documents import reason

LOG_FILE = "error.log"

_directory: list[Path] = []


def keep_log_in(directory: Path) -> None:
    """Write tracebacks of internal errors into the directory of this run or sweep from now on."""
    _directory[:] = [directory]


def report(error: Exception) -> int:
    """Print the error that ended the command in one line, and the traceback only if no file can hold it.

    Returns:
        The exit code: 2 for an error of a file or of memory, else 1.
    """
    if isinstance(error, OSError) and error.filename is not None:
        errors.print(f"Error: {error.filename}: {reason(error)}.", style="red", soft_wrap=True)
        return 2
    if isinstance(error, MemoryError):
        errors.print("Error: Out of memory; reduce the size of the request.", style="red", soft_wrap=True)
        return 2
    what = f"{type(error).__name__}: {reason(error)}"
    trace = "".join(traceback.format_exception(error))
    path = _write(trace)
    if path is None:
        errors.print(trace)
        errors.print(f"Internal error: {what}.", style="red", soft_wrap=True)
    else:
        errors.print(
            f"Internal error: {what}; please report it and attach {path}.", style="red", soft_wrap=True
        )
    return 1


def _write(trace: str) -> Path | None:
    """Append a traceback to the first writable file; return its path, or None without one."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    for directory in (*_directory, None):
        try:
            if directory is None:
                directory = Path(tempfile.mkdtemp(prefix="rllib-hpo-"))
            elif not directory.is_dir():  # a start that failed leaves no directory
                continue
            path = directory / LOG_FILE
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time}\n{trace}\n")
            return path.absolute()
        except OSError:
            continue
    return None

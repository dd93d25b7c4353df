"""Read text from users' files, and report unexpected errors of reading."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rllib_hpo.errors import SettingsError, UserError

MAX_BYTES = 2**20
"""Size limit of files that people write; the largest in this repository has 12 kB."""
_MAX_REASON = 300


def read_bytes(path: Path, kind: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Read the content of a file, or of a pipe such as /dev/stdin.

    Args:
        path: The file.
        kind: Its kind in messages, such as "sweep file".
        max_bytes: Size limit.

    Raises:
        UserError: If it cannot be read, is not a file, or is larger.
    """
    try:
        # Opening a pipe without a writer would block forever; a shell's `<(command)` is in /dev/fd.
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir() and not str(path).startswith("/dev/"):
            raise UserError(f"The {kind} {path} is not a regular file.")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"The {kind} {path} cannot be read: {reason(error)}.") from error
    if len(data) > max_bytes:
        raise UserError(f"The {kind} {path} is larger than the limit of {max_bytes:,} bytes.")
    return data


def read_text(path: Path, kind: str, max_bytes: int = MAX_BYTES) -> str:
    """Read the text of a UTF-8 file, without a byte order mark.

    Raises:
        UserError: As `read_bytes`.
        SettingsError: If a line is not UTF-8; names that line.
    """
    data = read_bytes(path, kind, max_bytes)
    try:
        # Convert line ends as Python's text files do.
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SettingsError(
            f"{path}, line {line}: the {kind} is not UTF-8 text ({error.reason}); save it as UTF-8."
        ) from error


def reason(error: BaseException) -> str:
    """Return the message of an exception on one line, without the full stop."""
    if isinstance(error, OSError) and error.errno:
        return error.strerror or os.strerror(error.errno)
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    said = said.encode(errors="backslashreplace").decode()
    return said if len(said) <= _MAX_REASON else f"{said[:_MAX_REASON]} ..."


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn any error raised while reading a user's input into one sentence; the last resort below all checks.

    Args:
        what: The input's name in messages, such as "The sweep file a.yaml".

    Raises:
        UserError: If anything is raised; names the input and the error. A UserError passes unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{what} needs more memory than is available.") from error
    except RecursionError as error:
        raise UserError(f"{what} is nested too deeply.") from error
    except Exception as error:
        raise UserError(f"{what} cannot be used: {type(error).__name__}: {reason(error)}.") from error

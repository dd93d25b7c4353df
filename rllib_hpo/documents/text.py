"""Text out of files of users, and what is said of input that nobody expected."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rllib_hpo.errors import SettingsError, UserError

MAX_BYTES = 2**20
"""Of a file that people write; the largest of this repository has 12 kB."""
_MAX_REASON = 300


def read_bytes(path: Path, kind: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a file, or of a pipe such as /dev/stdin.

    Args:
        path: The file.
        kind: What messages call it, as "sweep file".
        max_bytes: The most that it may hold.

    Raises:
        UserError: If it cannot be read, is no file, or is larger.
    """
    try:
        # Opening a pipe that nobody writes to would wait for ever; a shell's `<(command)` is one of /dev/fd.
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir() and not str(path).startswith("/dev/"):
            raise UserError(f"The {kind} {path} is not a regular file; name one.")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"The {kind} {path} cannot be read: {reason(error)}.") from error
    if len(data) > max_bytes:
        raise UserError(f"The {kind} {path} is larger than {max_bytes:,} bytes, the most that is read.")
    return data


def read_text(path: Path, kind: str, max_bytes: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        UserError: As `read_bytes`.
        SettingsError: Naming the line that is not UTF-8.
    """
    data = read_bytes(path, kind, max_bytes)
    try:
        # Line ends as Python's text files have them.
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SettingsError(
            f"{path}, line {line}: the {kind} is not UTF-8 text ({error.reason}); save it as UTF-8."
        ) from error


def reason(error: BaseException) -> str:
    """What an exception says, on one line, without the full stop."""
    if isinstance(error, OSError) and error.errno:
        return error.strerror or os.strerror(error.errno)
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    said = said.encode(errors="backslashreplace").decode()
    return said if len(said) <= _MAX_REASON else f"{said[:_MAX_REASON]} ..."


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns whatever is raised while input of a user is read into one sentence; the net below all checks.

    Args:
        what: The input, as messages name it: "The sweep file a.yaml".

    Raises:
        UserError: Naming the input and what was raised; a UserError goes through as it is.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{what} asks for more memory than there is.") from error
    except RecursionError as error:
        raise UserError(f"{what} is nested too deeply.") from error
    except Exception as error:
        raise UserError(f"{what} cannot be used: {type(error).__name__}: {reason(error)}.") from error

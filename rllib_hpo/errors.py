"""Errors that a user can cause. The command line prints them as one sentence and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can cause and fix; ``str(error)`` is one clear sentence."""


class SettingsError(UserError, ValueError):
    """A configuration key is unknown, or its value has the wrong type or is impossible."""


class UnknownNameError(UserError, ValueError):
    """A task, algorithm, sampler or option of that name does not exist."""


class UserCodeError(UserError):
    """A user's code, such as an environment, raised an error or broke the interface that it implements.

    Args:
        message: The sentence.
        traceback: Of the user's error, as text, since a `__cause__` does not travel between processes; "" for none.
    """

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


def with_traceback(error: UserError) -> str:
    """The message, followed by the traceback of the user's code if there is one."""
    return f"{error}\n{getattr(error, 'traceback', '')}".rstrip("\n")


class NonFiniteError(UserError, ArithmeticError):
    """A NaN or an infinity appeared in an observation, a reward, a loss or a parameter."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another algorithm, task or version."""


class StorageError(UserError, OSError):
    """Results, replay segments or checkpoints could not be written or read."""


class WorkerDiedError(UserError):
    """A learner or all runners have died; the run can resume from its last checkpoint."""


def shown(value: object, most: int = 100) -> str:
    """`repr(value)` for a message: on one line, shortened."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]} ..."


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The valid name closest to `name`, or None if none is close."""
    matches = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(kind: str, name: str, options: Iterable[str]) -> UnknownNameError:
    """An error that names the unknown name, the nearest valid one, and all allowed ones."""
    allowed = sorted(options)
    close = nearest(name, allowed)
    hint = f" Did you mean '{close}'?" if close else ""
    return UnknownNameError(f"Unknown {kind} {shown(name)}.{hint} Valid: {', '.join(allowed)}.")

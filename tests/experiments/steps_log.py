"""Report the progress of a run that imports this module (`--import`), and change nothing else.

After every iteration it appends "SECONDS CLOCK PID BEFORE AFTER" to the file that STEPS_FILE names: the machine's
uptime, which does not depend on the clock, the clock, the process, and its environment steps before and after.
"""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm

STEPS_FILE = "STEPS_FILE"
"""Variable to set for the parent of the training process: the driver or its node."""


class Iteration(NamedTuple):
    """One completed iteration."""

    time: float
    clock: float
    pid: int
    before: int
    after: int


def uptime() -> float:
    """Return the seconds since the machine's start."""
    return float(Path("/proc/uptime").read_text().split()[0])


def read_iterations(path: Path) -> list[Iteration]:
    """Read what runs have written so far, in order."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        Iteration(float(seconds), float(clock), *map(int, rest))
        for seconds, clock, *rest in map(str.split, lines)
    ]


def _announce(path: str) -> None:
    file, train = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), ActorCriticAlgorithm.train

    @functools.wraps(train)
    def announced(self: ActorCriticAlgorithm) -> Any:
        before = self.env_steps
        result = train(self)
        os.write(file, f"{uptime()} {time.time()} {os.getpid()} {before} {self.env_steps}\n".encode())
        return result

    ActorCriticAlgorithm.train = announced


if STEPS_FILE in os.environ:
    _announce(os.environ[STEPS_FILE])

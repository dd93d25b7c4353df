"""Imported by a run (`--import`), so that whoever watches it knows how far it is: it changes nothing else.

After every iteration "SECONDS CLOCK PID BEFORE AFTER" is appended to the file STEPS_FILE names: the machine's uptime,
which no clock that is set wrong can alter, that clock, the process, and its environment steps before and after.
"""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm

STEPS_FILE = "STEPS_FILE"
"""The variable of whatever starts the process that trains: the driver, or its node."""


class Iteration(NamedTuple):
    """One that was completed."""

    time: float
    clock: float
    pid: int
    before: int
    after: int


def uptime() -> float:
    """Seconds since this machine began."""
    return float(Path("/proc/uptime").read_text().split()[0])


def read_iterations(path: Path) -> list[Iteration]:
    """What runs have written so far, in order."""
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

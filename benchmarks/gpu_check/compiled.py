"""Compile the updates of every algorithm, a process each; compare them with eager ones, and measure them.

Processes compile at the same time, on as many cores as there are, and take turns on the GPU: measurements hold a lock
that compilations share.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import update_speed
from benchmarks.gpu_check import targets, updates
from benchmarks.gpu_check.rows import Row, append
from benchmarks.update_speed import Contestant

if TYPE_CHECKING:
    from rllib_hpo.learning.replay_learner import ReplayLearner

STATES = 12
"""Stored states from which single updates are compared; kinds of most algorithms repeat within."""
FIRST_UPDATES = 48
"""Updates before the first that is compared, in which every kind is captured and tensors are made."""


def mode_on(device: str) -> str:
    """Return how compiled updates run on a device."""
    return "compiled graph" if device == "cuda" else "compiled"


def run(device: str, emit: Callable[[Row], None], names: Sequence[str], rows: Path) -> None:
    """Start a process for every algorithm, as many at a time as there are cores; `rows` is where `emit` writes."""
    if device == "cpu":  # where a compilation takes a minute of one core
        names = names[:1]
    cores = os.cpu_count() or 1
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    waiting, running = list(names), dict[str, subprocess.Popen[bytes]]()
    while waiting or running:
        while waiting and len(running) < cores:
            name = waiting.pop(0)
            command = [sys.executable, "-m", "benchmarks.gpu_check.compiled", name, device, str(rows)]
            running[name] = subprocess.Popen(command, env=environment)
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        for name, process in list(running.items()):
            if (code := process.poll()) is not None:
                del running[name]
                if code:
                    emit(Row(f"{name}, compiled", "FAILED", detail=f"its process ended with {code}"))


def check(name: str, device: str, emit: Callable[[Row], None], lock: Path) -> None:
    """Compile the updates of one algorithm; compare them, measure them, and count their kernels."""
    mode, warnings = mode_on(device), _Warnings()
    options = {"tf32": False, "diagnostics_interval": 10**9}
    eager = update_speed.make_learner(Contestant(name, updates.SIZE, device, "eager"), **options)
    if eager.trainer.bulk is None:  # target critics under a guard move in other roundings
        eager.trainer.update_in_bulk(None)
    logging.getLogger("rllib_hpo").addHandler(warnings)
    compiled = update_speed.make_learner(Contestant(name, updates.SIZE, device, mode), **options)
    with turn(lock, exclusive=False):
        for learner in (eager, compiled):
            learner.update_from_replay(
                FIRST_UPDATES if device == "cuda" else 4 * len(learner.trainer.all_kinds())
            )
        distance = largest_distance(eager, compiled, STATES)
    for text in warnings.texts:
        emit(Row(f"{name}, {mode}", "FAILED", detail=text[:300]))
    emit(Row.agreement(f"{name}, {mode}, largest distance from eager", distance, targets.LARGEST_DISTANCE))
    with turn(lock, exclusive=True):
        updates.measure(name, device, [mode], emit)


def largest_distance(one: ReplayLearner, other: ReplayLearner, num_states: int) -> float:
    """Return the largest relative distance of any tensor after single updates from the states of `one`."""
    import torch

    largest = 0.0
    for _ in range(num_states):
        with torch.no_grad():
            for ours, theirs in zip(other.trainer.tensors(), one.trainer.tensors(), strict=True):
                ours.copy_(theirs)
        for learner in (one, other):
            learner.update_from_replay(1)
        for ours, theirs in zip(other.trainer.tensors(), one.trainer.tensors(), strict=True):
            size, distance = theirs.double().norm().item(), (ours - theirs).double().norm().item()
            relative = distance / (size + 1e-5)  # near 0 the absolute difference counts
            largest = max(largest, relative if math.isfinite(relative) else math.inf)
    return largest


@contextmanager
def turn(lock: Path, *, exclusive: bool) -> Iterator[None]:
    """Wait until no other process measures or, to measure alone, until none compiles either."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield


class _Warnings(logging.Handler):
    """Keep the sentences of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: Any) -> None:
        self.texts.append(record.getMessage())


def main(name: str, device: str, rows: str) -> None:
    """Check one algorithm in this process."""
    import torch

    torch.set_num_threads(1)
    path = Path(rows)

    def emit(row: Row) -> None:
        append(path, row)

    try:
        check(name, device, emit, path.with_suffix(".lock"))
    except Exception as error:  # noqa: BLE001
        emit(Row(f"{name}, compiled", "FAILED", detail=f"{type(error).__name__}: {error}"[:300]))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Test that a run killed at any instant and resumed ends bitwise as one without interruption.

The runs are real processes of the command line, killed with SIGKILL from outside: some at a fixed time, others shortly
after the start of a delicate phase, which evaluates, restores or writes a checkpoint.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.experiments.lives import (
    assert_same_outcome,
    checkpoints,
    evaluated,
    life,
    new_run,
    resumed,
    run,
    wait_for,
)
from tests.rllib.tiny import SAC_HPO_IN_TIME

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

CHECKPOINT_EVERY = 100


class Kill(NamedTuple):
    """When to end a session: some time after a phase began for the nth time."""

    phase: str
    occurrence: int
    delay_s: float


def kills(
    rng: random.Random, clock: int, training: int, evaluation: int, checkpoint: int, restoring: int
) -> list[Kill]:
    """Return the given number of kills of each sort, in random order.

    The longest delays are about as long as the phases.
    """
    plan = [
        *(Kill("start", 0, rng.uniform(0, 6)) for _ in range(clock)),
        *(Kill("training", rng.randint(1, 4), rng.uniform(0, 0.25)) for _ in range(training)),
        *(Kill("evaluation", rng.randint(1, 2), rng.uniform(0, 0.03)) for _ in range(evaluation)),
        *(Kill("checkpoint", rng.randint(1, 2), rng.uniform(0, 0.02)) for _ in range(checkpoint)),
        *(Kill("restoring", 1, rng.uniform(0, 0.05)) for _ in range(restoring)),
    ]
    rng.shuffle(plan)
    return plan


def killed_life(arguments: list[str], kill: Kill, tmp_path: Path) -> str:
    """Run until the kill; return the phase in which it fell."""
    phases = tmp_path / "phases"
    phases.unlink(missing_ok=True)

    def seen() -> list[str]:
        return phases.read_text().splitlines() if phases.exists() else []

    watched = [*arguments, "--import", "tests.experiments.phases"]
    with life(watched, tmp_path, PHASES_FILE=str(phases)) as process:
        if kill.occurrence:
            wait_for(lambda: seen().count(f"+{kill.phase}") >= kill.occurrence, process, poll_s=0.0005)
        # However fast the machine, no life gets further than its third checkpoint.
        tick = time.monotonic() + kill.delay_s
        wait_for(lambda: time.monotonic() > tick or seen().count("+checkpoint") > 2, process, poll_s=0.001)
        os.killpg(process.pid, signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"it ended before {kill}: {err}"
        assert not err, err
    return (seen() or ["start-up"])[-1].removeprefix("+")


def killed_often(tmp_path: Path, start: list[str], steps: int, plan: list[Kill]) -> set[str]:
    """Run through all kills of `plan`, then to the end; return the phases of the kills."""
    directory, deaths = tmp_path / "killed", Counter[str]()
    for kill in plan:
        begun = (directory / "config.yaml").exists()
        at = max(checkpoints(directory), default=0)
        if at >= steps - 3 * CHECKPOINT_EVERY:  # the last steps are for the last life
            kill = Kill("start", 0, kill.delay_s % 2)
        elif kill.phase == "restoring" and not at:
            kill = kill._replace(phase="training")
        death = killed_life(resumed(directory) if begun else start, kill, tmp_path)
        deaths[death] += 1
        half_written = [path.name for path in directory.glob("checkpoints/.*.tmp")]
        print(f"from step {at}: killed in phase '{death}' {' '.join(half_written)}")
    print(dict(deaths))
    run(resumed(directory), tmp_path)
    assert deaths.total() == len(plan)
    return {phase.split(",")[0] for phase in deaths}


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """Make a directory that is removed after success."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@SAC_HPO_IN_TIME
def test_twenty_kills_change_nothing(algorithm: str, work: Path) -> None:
    steps = 3_000
    reference, directory = work / "reference", work / "killed"
    run(new_run(reference, algorithm, steps=steps), work)
    plan = kills(random.Random(algorithm), clock=6, training=3, evaluation=3, checkpoint=7, restoring=1)
    assert len(plan) == 20
    phases = killed_often(work, new_run(directory, algorithm, steps=steps), steps, plan)
    assert {"training", "checkpoint"} <= phases
    assert_same_outcome(directory, reference)
    assert evaluated(directory) == list(range(0, steps + 1, 100))
    leftovers = [path for path in directory.rglob("*") if path.name.endswith(".tmp")]
    assert not leftovers

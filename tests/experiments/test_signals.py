"""Ctrl-C, and SIGTERM from a machine that is taken back, end a run after the iteration, and nothing is lost."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rllib_hpo.experiments.progress import Progress
from rllib_hpo.experiments.run_config import resolve
from rllib_hpo.experiments.train import RunFiles, train
from rllib_hpo.experiments.wandb_logger import WandbOptions
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from tests.experiments.lives import (
    assert_same_outcome,
    checkpoints,
    ended,
    evaluated,
    life,
    new_run,
    outcome,
    run,
    wait_for,
)

pytestmark = pytest.mark.timeout(1500)

STEPS = 600
OFF_SCHEDULE = {"checkpoint_every": 1_000}
"""No checkpoint but the one that a signal brings about."""


def stopped(
    arguments: list[str], directory: Path, cwd: Path, number: int, after: int
) -> tuple[int, str, str]:
    """Starts a run and signals it once the evaluation at step `after` is on disk."""
    with life(arguments, cwd) as process:
        assert wait_for(lambda: after in evaluated(directory), process), ended(process)
        os.killpg(process.pid, number)
        return ended(process)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stopped."""
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(new_run(directory, "sac-hpo", steps=STEPS, **OFF_SCHEDULE), directory.parent)
    return directory


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_iteration_and_the_run_goes_on_exactly(
    number: int, code: int, uninterrupted: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "a run"  # the message quotes it
    arguments = new_run(directory, "sac-hpo", steps=STEPS, **OFF_SCHEDULE)
    returncode, out, err = stopped(arguments, directory, tmp_path, number, after=100)
    assert (returncode, err) == (code, ""), out
    (step,) = checkpoints(directory)
    assert 100 <= step < STEPS
    assert step % 50 == 0  # a whole iteration
    said = next(line for line in out.splitlines() if line.startswith("Stopped."))
    program, *again = shlex.split(said.partition(": ")[2])
    assert program == "rllib-hpo"
    assert again == ["train", "--resume", str(directory)]
    run([*again, "--wandb", "disabled"], tmp_path)
    assert_same_outcome(directory, uninterrupted)


class SignalledWhenReporting(Progress):
    """The signal comes after an iteration is over: the next does not begin, and this one is not lost."""

    def report(self, algorithm: ActorCriticAlgorithm, result: Mapping[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_between_two_iterations_too_it_saves_what_was_learned(tmp_path: Path) -> None:
    values = {"hidden_units": 16, "warmup_steps": 40, "checkpoint_every": 1_000, "steps_per_iteration": 40}
    config = resolve(
        {"algorithm": "sac", "task": "hopper", "steps": 400, "evaluation_every": 1_000, **values}
    )
    progress, options = SignalledWhenReporting(Console(quiet=True)), WandbOptions("disabled")
    files = RunFiles(tmp_path / "run")
    assert train(config, files, progress, wandb=options) == signal.SIGINT
    assert checkpoints(files.directory) == [40]
    assert train(config, files, progress, wandb=options) == signal.SIGINT
    assert checkpoints(files.directory) == [40, 80]


@pytest.mark.slow
def test_where_the_simulator_cannot_be_saved_the_scheduled_checkpoint_stands(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    arguments = new_run(
        directory, "sac", "humanoid-pybullet", steps=2_000, evaluation_every=150, steps_per_iteration=30
    )
    code, out, err = stopped(arguments, directory, tmp_path, signal.SIGTERM, after=150)
    assert (code, err) == (143, ""), out
    assert "--resume" in out
    steps = checkpoints(directory)
    assert steps
    assert all(step % 100 == 0 for step in steps)
    assert outcome(directory)["manifest"]["env_steps"] == steps[-1] < 2_000


def test_a_second_signal_does_not_wait_for_the_iteration(tmp_path: Path) -> None:
    """An iteration of days; without a traceback, and what was on disk stays."""
    directory = tmp_path / "run"
    arguments = new_run(
        directory,
        "sac",
        steps=10**7,
        steps_per_iteration=10**7,
        checkpoint_every=10**7,
        replay_capacity=10**4,
    )
    with life(arguments, tmp_path) as process:
        assert wait_for(lambda: 100 in evaluated(directory), process), ended(process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:  # what calls back from C may have swallowed the interrupt
            process.send_signal(signal.SIGINT)
        code, out, err = ended(process)
    assert code != 0
    assert "Traceback" not in out + err
    assert {0, 100} <= set(evaluated(directory))

"""Test that Ctrl-C and SIGTERM end a run after the iteration, without loss."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rllib_hpo.experiments.config.run_config import resolve
from rllib_hpo.experiments.process.signals import STOP_SIGNALS, exit_code, stop_request
from rllib_hpo.experiments.runs.files import RunFiles
from rllib_hpo.experiments.runs.train import TrainingRun, train
from rllib_hpo.experiments.tracking.events import EVENTS_FILE, read_events
from rllib_hpo.experiments.tracking.progress import Progress
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from rllib_hpo.rllib.checkpointing import read_manifest
from tests.experiments.lives import (
    REPOSITORY,
    assert_same_outcome,
    checkpoints,
    ended,
    evaluated,
    life,
    new_run,
    run,
    wait_for,
)

pytestmark = pytest.mark.timeout(1500)

STEPS = 600
OFF_SCHEDULE = {"checkpoint_every": 1_000}
"""No checkpoints except the one that a signal triggers."""


def stopped(
    arguments: list[str], directory: Path, cwd: Path, number: int, after: int
) -> tuple[int, str, str]:
    """Start a run, and signal it when the evaluation at step `after` is on disk."""
    with life(arguments, cwd) as process:
        assert wait_for(lambda: after in evaluated(directory), process), ended(process)
        os.killpg(process.pid, number)
        return ended(process)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run without a signal."""
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(new_run(directory, "sac-hpo", steps=STEPS, **OFF_SCHEDULE), directory.parent)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)],
)
def test_a_signal_ends_the_run_which_goes_on_exactly(
    number: int, code: int, uninterrupted: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "a run"  # the message quotes it
    arguments = new_run(directory, "sac-hpo", steps=STEPS, **OFF_SCHEDULE)
    returncode, out, err = stopped(arguments, directory, tmp_path, number, after=100)
    assert (returncode, err) == (code, ""), out
    (step,) = checkpoints(directory)
    assert 100 <= step < STEPS
    said = next(line for line in out.splitlines() if line.startswith("Stopped."))
    program, *again = shlex.split(said.partition(": ")[2])
    assert program == "rllib-hpo"
    assert again == ["train", "--resume", str(directory)]
    run([*again, "--wandb", "disabled"], tmp_path)
    assert_same_outcome(directory, uninterrupted)


class SignalledWhenReporting(Progress):
    """Signal while an evaluation is reported, in the middle of an iteration."""

    def __init__(self, at: int) -> None:
        super().__init__(Console(quiet=True))
        self._at = at

    def report(self, evaluation: Mapping[str, Any]) -> None:
        if evaluation["env_steps"] == self._at:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_iteration_is_cut_short_and_what_it_learned_is_saved(tmp_path: Path) -> None:
    values = {"hidden_units": 16, "warmup_steps": 40, "checkpoint_every": 1_000, "steps_per_iteration": 400}
    config = resolve({"algorithm": "sac", "task": "hopper", "steps": 800, "evaluation_every": 100, **values})
    options, files = WandbOptions("disabled"), RunFiles(tmp_path / "run")
    assert train(config, files, SignalledWhenReporting(100), wandb=options) == signal.SIGINT
    (step,) = checkpoints(files.directory)
    assert 100 <= step < 400
    assert train(config, files, SignalledWhenReporting(500), wandb=options) == signal.SIGINT
    assert checkpoints(files.directory)[0] == step


@pytest.mark.slow
def test_where_the_simulator_cannot_be_saved_a_stop_is_saved_all_the_same(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    arguments = new_run(
        directory, "sac", "humanoid-pybullet", steps=2_000, evaluation_every=150, steps_per_iteration=30
    )
    code, out, err = stopped(arguments, directory, tmp_path, signal.SIGTERM, after=150)
    assert (code, err) == (143, ""), out
    assert "--resume" in out
    last = checkpoints(directory)[-1]
    assert 150 <= last < 2_000
    manifest = read_manifest(directory / "checkpoints" / "last")
    assert manifest["env_steps"] == last
    assert last % 100 == 0 or manifest["environments"] == "rebuilt"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_is_noted_and_gives_the_exit_code(number: int) -> None:
    with stop_request() as request:
        request.can_save = True
        os.kill(os.getpid(), number)
        assert request.signal == number
        with pytest.raises(SystemExit) as ended_at_once:
            os.kill(os.getpid(), number)
        assert ended_at_once.value.code == exit_code(number) == (130 if number == signal.SIGINT else 143)


def test_a_second_signal_does_not_wait_for_the_iteration(tmp_path: Path) -> None:
    """The iteration would take days; the run ends without a traceback, and files on disk stay."""
    directory = tmp_path / "run"
    arguments = new_run(
        directory,
        "sac",
        steps=10**7,
        steps_per_iteration=10**7,
        checkpoint_every=10**7,
        replay_capacity=10**4,
        compile_update=False,
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


ENDLESS = """
import gymnasium as gym, numpy as np

class Endless(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}

gym.register("Endless-v0", Endless)
"""


def test_an_evaluation_without_an_end_is_stopped_and_owed(tmp_path: Path) -> None:
    """The signal is acknowledged, the evaluation writes no row, and the process ends by itself."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    directory = tmp_path / "run"
    arguments = [*new_run(directory, "sac", "Endless-v0"), "--import", "endless"]
    with life(arguments, tmp_path, PYTHONPATH=f"{REPOSITORY}{os.pathsep}{tmp_path}") as process:
        assert wait_for(lambda: "started" in events(directory), process), ended(process)
        process.send_signal(signal.SIGTERM)
        code, out, err = ended(process)
    assert (code, err) == (143, ""), out
    assert "SIGTERM: stopping and saving" in out
    assert events(directory)[-1] == "stopped"
    assert evaluated(directory) == []


def test_an_evaluation_that_was_stopped_is_made_up(tmp_path: Path) -> None:
    config = resolve(
        {"algorithm": "sac", "task": "Pendulum-v1", "steps": 80, "evaluation_every": 40, **TINY_RUN}
    )
    options, files = WandbOptions("disabled"), RunFiles(tmp_path / "run")
    with TrainingRun(config, files, wandb=options) as training:
        training.algorithm._play = stopping(training, training.algorithm._play, at=80)
        while not training.algorithm.stop_requested:
            training.iterate()
        assert not training.is_complete
        training.save()
    assert (evaluated(files.directory), checkpoints(files.directory)) == ([0, 40], [40, 80])
    with TrainingRun(config, files, wandb=options) as training:
        assert not training.is_complete
        training.iterate()
        assert training.is_complete
    assert evaluated(files.directory) == [0, 40, 80]
    whole = RunFiles(tmp_path / "whole")
    with TrainingRun(config, whole, wandb=options) as training:
        while not training.is_complete:
            training.iterate()
    assert_same_outcome(files.directory, whole.directory)


TINY_RUN = {
    "hidden_units": 8,
    "train_batch_size_per_learner": 8,
    "warmup_steps": 20,
    "evaluation_episodes": 1,
    "checkpoint_every": 40,
    "steps_per_iteration": 40,
}


def stopping(run: TrainingRun, play: Callable[..., Any], at: int) -> Callable[..., Any]:
    """Return `play` with a stop requested when the evaluation at step `at` begins."""

    def played(due: Any, watch: Any = None) -> Any:
        if due.env_steps == at:
            run.request_stop()
        return play(due, watch)

    return played


def events(directory: Path) -> list[str]:
    """Return the names of a run's events so far."""
    path = directory / EVENTS_FILE
    return [event["event"] for event in read_events(path)] if path.exists() else []


def test_nohup_is_respected(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request() as stop:
            stop.can_save = True
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.signal == signal.SIGUSR1
            with pytest.raises(SystemExit) as second:
                os.kill(os.getpid(), signal.SIGTERM)
        assert second.value.code == exit_code(signal.SIGUSR1) == 143
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)

"""Test that the end of a run and a stop by signal leave a checkpoint, for any environment, on or off the schedule."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from rich.console import Console

from rllib_hpo.experiments.config.run_config import resolve
from rllib_hpo.experiments.runs.evaluate import evaluate_checkpoint
from rllib_hpo.experiments.runs.files import RunFiles, open_run, start_run
from rllib_hpo.experiments.runs.train import train
from rllib_hpo.experiments.sweeps.plan import steps_done
from rllib_hpo.experiments.tracking.events import EVENTS_FILE, read_events
from rllib_hpo.experiments.tracking.progress import Progress
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.checkpointing import read_manifest
from tests.experiments.lives import checkpoints, evaluated

SETTINGS = {
    "algorithm": "sac",
    "hidden_units": 8,
    "train_batch_size_per_learner": 8,
    "warmup_steps": 20,
    "evaluation_every": 40,
    "evaluation_episodes": 1,
    "checkpoint_every": 1_000,
    "steps_per_iteration": 30,
}


class Drift(gym.Env[np.ndarray, np.ndarray]):
    """Simulate a user's environment with unknown state."""

    observation_space = Box(-1.0, 1.0, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._step += 1
        return self._observation(), float(action[0]), False, self._step == 15, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


gym.register("Drift-v0", entry_point=Drift)


def begun(directory: Path, task: str, steps: int, progress: Progress | None = None, **settings: Any) -> Any:
    """Train a new run until it ends or is stopped; return what `train` returned."""
    config = resolve({**SETTINGS, "task": task, "steps": steps, **settings}, None)
    files = start_run(config, directory)
    return train(config, files, progress or quiet(), wandb=WandbOptions("disabled"))


def gone_on_with(directory: Path, steps: int | None = None) -> str:
    """Resume the run and train to its end; return the output."""
    config, files = open_run(directory, steps, {})
    progress = quiet()
    assert train(config, files, progress, wandb=WandbOptions("disabled")) is None
    return " ".join(progress.console.file.getvalue().split())  # type: ignore[attr-defined]


def quiet() -> Progress:
    return Progress(Console(file=io.StringIO(), width=200))


class Stopping(Progress):
    """Signal the run, as Ctrl-C or a reclaimed machine does, after the iteration at `step`."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(quiet().console)
        self.step, self.number = step, number

    @contextmanager
    def running(self, algorithm: ActorCriticAlgorithm, steps: int) -> Iterator[None]:
        train = algorithm.train

        def train_and_stop() -> dict[str, Any]:
            result = train()
            if algorithm.env_steps == self.step:
                os.kill(os.getpid(), self.number)
            return result

        algorithm.train = train_and_stop
        with super().running(algorithm, steps):
            yield


def events(directory: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(directory / EVENTS_FILE) if event["event"] == name]


@pytest.mark.parametrize("task", ["humanoid-pybullet", "Drift-v0"])
def test_a_run_that_ends_off_schedule_is_saved_evaluated_and_extended(task: str, tmp_path: Path) -> None:
    if task == "humanoid-pybullet":
        pytest.importorskip("pybullet_envs_gymnasium")
    directory = tmp_path / "run"
    assert begun(directory, task, 70) is None
    assert checkpoints(directory) == [70]
    assert steps_done(RunFiles(directory)) == 70  # what tells a sweep that the trial is done
    assert read_manifest(directory / "checkpoints" / "last")["environments"] == "rebuilt"
    (saved,) = events(directory, "checkpoint")
    assert (saved["env_steps"], saved["environments"]) == (70, "rebuilt")
    played, _ = evaluate_checkpoint(directory, num_episodes=1)
    assert np.isfinite(played.returns).all()
    assert "Resumed at step 70, with rebuilt environments" in gone_on_with(directory, 130)
    (resumed,) = events(directory, "resumed")
    assert (resumed["env_steps"], resumed["environments"]) == (70, "rebuilt")
    assert checkpoints(directory)[-1] == 130
    assert {0, 40, 80, 120} <= set(evaluated(directory))


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stop_off_schedule_resumes_where_it_was(number: int, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert begun(directory, "Drift-v0", 90, Stopping(60, number)) == number
    assert checkpoints(directory) == [60]
    assert "Resumed at step 60" in gone_on_with(directory)
    assert checkpoints(directory)[-1] == 90


def test_the_old_api_stack_says_that_it_begins_new_episodes(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    begun(directory, "Pendulum-v1", 50, api_stack="old")
    assert read_manifest(directory / "checkpoints" / "last")["environments"] == "rebuilt"


@pytest.mark.slow
def test_with_remote_runners_too(tmp_path: Path) -> None:
    """No counted step is lost, and none is counted twice."""
    directory = tmp_path / "run"
    remote = {"num_env_runners": 2, "rollout_fragment_length": 5}
    begun(
        directory,
        "Pendulum-v1",
        50,
        env_config={"wrappers": ["tests.experiments.runs.test_always_saved:Own"]},
        **remote,
    )
    manifest = read_manifest(directory / "checkpoints" / "last")
    assert (manifest["env_steps"], manifest["environments"]) == (50, "rebuilt")
    assert "Resumed at step 50, with rebuilt environments" in gone_on_with(directory, 80)
    manifest = read_manifest(directory / "checkpoints" / "last")
    assert (manifest["env_steps"], manifest["replay"]["total_rows"]) == (80, 80)


class Own(gym.Wrapper[Any, Any, Any, Any]):
    """Simulate a user's wrapper, which may hold any state."""

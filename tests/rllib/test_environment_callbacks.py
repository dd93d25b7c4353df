"""Test that callbacks and curricula reach every environment: vectors, rebuilt ones, and those of evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_hpo.errors import SettingsError, UserError
from rllib_hpo.rllib.config import ActorCriticConfig
from tests.rllib.environments import CountingEnv
from tests.rllib.old_stack.test_policy_stack import old_config
from tests.rllib.tiny import loaded, running, tiny_config, train_to


class TaskEnv(CountingEnv):
    """Reward the task at each step; count resets before a task was set."""

    task, reset_with = 0, None

    def get_task(self) -> int:
        """Implement RLlib's TaskSettableEnv."""
        return self.task

    def set_task(self, task: int) -> None:
        """Implement RLlib's TaskSettableEnv."""
        self.task = task

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Record the task of the first episode."""
        self.reset_with = self.task if self.reset_with is None else self.reset_with
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Return the task as reward."""
        observation, _, *others = super().step(action)
        return observation, float(self.task), *others  # type: ignore[return-value]


class Noting(RLlibCallback):
    """Keep every created environment, and give it the task 2."""

    created: ClassVar[list[tuple[Any, Any, bool]]] = []

    def on_environment_created(self, *, env_runner: Any, env: Any, env_context: Any, **_: Any) -> None:
        Noting.created.append((env, env_context.vector_index, env_runner.config.in_evaluation))
        env.set_task(2)


class NotingOld(RLlibCallback):
    """Do the same on RLlib's old API stack."""

    def on_sub_environment_created(self, *, sub_environment: Any, **_: Any) -> None:
        Noting.created.append((sub_environment.unwrapped, 0, False))
        sub_environment.unwrapped.set_task(2)


def task_config(make: Any = tiny_config, **settings: Any) -> ActorCriticConfig:
    """Make a tiny config in which every fourth step ends an episode."""
    config: ActorCriticConfig = make(env=TaskEnv, **settings)
    return config.environment(env_config={})


def test_every_environment_is_announced_before_its_first_episode() -> None:
    Noting.created = []
    config = task_config().callbacks(Noting).env_runners(num_envs_per_env_runner=2)
    with running(config) as algorithm:
        result = train_to(algorithm, 40)  # where the two are built anew, after evaluations at 0 and 40
        envs = [env.unwrapped for env in algorithm.env_runner.envs]
        assert algorithm.env_runner.env.envs == algorithm.env_runner.envs
        with pytest.raises(AttributeError, match=r"There are 2 environments: read 'set_task' from each"):
            algorithm.env_runner.env.unwrapped.set_task(3)
    trained_in = [(env, index) for env, index, in_evaluation in Noting.created if not in_evaluation]
    assert [index for _, index in trained_in] == [0, 1, 0, 1]
    assert [env for env, _ in trained_in[-2:]] == envs
    assert sum(in_evaluation for *_, in_evaluation in Noting.created) == 4
    assert {env.reset_with for env, *_ in Noting.created} == {2}
    assert result["evaluation"]["env_runners"]["episode_return_mean"] == 8
    assert result["env_runners"]["episode_return_mean"] == 8


def test_on_the_old_stack_too() -> None:
    Noting.created = []
    with running(task_config(old_config).callbacks(NotingOld)) as algorithm:
        result = train_to(algorithm, 40)
    assert len(Noting.created) == 5  # one to train in, and twice two
    assert result["evaluation"]["env_runners"]["episode_return_mean"] == 8
    with pytest.raises(SettingsError, match=r"never be called on RLlib's old API stack\. Use on_sub_env"):
        task_config(old_config).callbacks(on_environment_created=print).validate()


def test_a_task_that_was_set_stays(tmp_path: Path) -> None:
    """It survives checkpoints, where such environments are rebuilt, and resumption."""
    with running(task_config()) as algorithm:
        runner = algorithm.env_runner
        algorithm.env_runner_group.foreach_env_runner(lambda r: r.env.unwrapped.set_task(5))
        assert (runner.env.task, runner.env.unwrapped.envs) == (5, [runner.envs[0].unwrapped])
        before = runner.envs[0]
        train_to(algorithm, 80)
        assert runner.envs[0] is not before
        assert (runner.envs[0].task, runner.env.unwrapped.task) == (5, 5)
        algorithm.save_to_path(tmp_path / "checkpoint")
        runner.config.environment(env_config={"length": 8})  # RLlib's other pattern for curricula
        runner.make_env()
        assert (runner.env.length, runner.env.task) == (8, 0)
    with loaded(tmp_path / "checkpoint") as resumed:
        assert resumed.env_runner.env.unwrapped.task == 5


class UnboundedEnv(CountingEnv):
    """Accept any number."""

    action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)


class ImageEnv(CountingEnv):
    """Observe a picture."""

    observation_space = gym.spaces.Dict({"camera": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)})  # type: ignore[assignment]


@pytest.mark.parametrize("make", [tiny_config, old_config], ids=["new", "old"])
@pytest.mark.parametrize(
    ("env", "phrase"),
    [
        ("CartPole-v1", "'CartPole-v1' has Discrete actions"),
        (UnboundedEnv, "'UnboundedEnv' has unbounded actions"),
        (ImageEnv, r"'ImageEnv' has image observations of shape \(8, 8, 3\)"),
    ],
)
def test_spaces_that_cannot_be_handled_are_refused(make: Any, env: Any, phrase: str) -> None:
    config = make(env=env)
    if not isinstance(env, str):
        config.environment(env_config={})
    with pytest.raises(UserError, match=phrase):
        config.build_algo()

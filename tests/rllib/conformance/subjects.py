"""Build the subjects of the calls: RLlib's SAC and this package's algorithms, each on both API stacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.sac import SACConfig
from ray.tune.registry import register_env

from tests.rllib.tiny import TINY, tiny_config

REFERENCE = "RLlib's SAC"
ENV = "short-pendulum"
STEPS = 40
"""Environment steps per iteration."""


def short_pendulum(_: Any) -> gym.Env[Any, Any]:
    """Make Pendulum with episodes of 20 steps."""
    return gym.make("Pendulum-v1", max_episode_steps=20, disable_env_checker=True)


class Raised(str):
    """Name of the error in which RLlib's SAC ends."""


class Subject:
    """Hold one algorithm on one API stack, a trained instance and its checkpoint, which the calls share.

    Args:
        name: `REFERENCE`, or a registered algorithm.
        is_new: Whether on RLlib's new API stack.
        folder: Folder for files.
    """

    def __init__(self, name: str, is_new: bool, folder: Path) -> None:
        self.name, self.is_new, self.folder = name, is_new, folder
        self._to_stop: list[Any] = []
        register_env(ENV, short_pendulum)

    @property
    def is_reference(self) -> bool:
        """Whether it is RLlib's SAC."""
        return self.name == REFERENCE

    def config(self) -> Any:
        """Make a config with tiny networks and short iterations."""
        if not self.is_reference:
            config: Any = tiny_config(self.name, ENV).environment(env_config={})
            return config.api_stack(self.is_new, self.is_new)
        config = SACConfig().api_stack(self.is_new, self.is_new).environment(ENV).debugging(seed=3)
        config.debugging(log_level="ERROR", log_sys_usage=False)
        config.env_runners(rollout_fragment_length=20)
        config.reporting(min_sample_timesteps_per_iteration=STEPS, min_time_s_per_iteration=0)
        config.evaluation(evaluation_interval=1, evaluation_duration=TINY["evaluation_episodes"])
        kind = "EpisodeReplayBuffer" if self.is_new else "MultiAgentReplayBuffer"
        config.training(
            num_steps_sampled_before_learning_starts=20,
            replay_buffer_config={"type": kind, "capacity": 1_000},
            **{"train_batch_size_per_learner" if self.is_new else "train_batch_size": 16},
        )
        if self.is_new:
            config.rl_module(model_config={"fcnet_hiddens": [16]})
        return config

    def build(self, config: Any = None) -> Any:
        """Build another algorithm, to be stopped at the end."""
        built = (self.config() if config is None else config).build_algo()
        self._to_stop.append(built)
        return built

    @cached_property
    def built(self) -> Any:
        """An algorithm after one iteration, whose result is `result`."""
        built = self.build()
        self.result: dict[str, Any] = built.train()
        return built

    @cached_property
    def checkpoint(self) -> str:
        """Checkpoint of `built`."""
        return str(self.built.save(str(self.folder / "checkpoint")).checkpoint.path)

    def keep(self, built: Any) -> Any:
        """Register an algorithm to be stopped at the end."""
        self._to_stop.append(built)
        return built

    def stop(self) -> None:
        """Stop all built algorithms."""
        for built in self._to_stop:
            built.stop()

    def facts(self, call: Callable[[Subject], Any]) -> Any:
        """Return the facts of a call; an error of RLlib's own counts as its type."""
        try:
            return call(self)
        except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
            if self.is_reference:
                return Raised(type(error).__name__)
            raise

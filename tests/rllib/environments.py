"""Define environments whose simulator state cannot be saved, and which fail on demand."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np


class StubbornError(Exception):
    """Error that cannot be unpickled, as happens to errors whose __init__ takes several arguments."""

    def __init__(self, whose: str, what: str) -> None:
        super().__init__(f"the user's {whose}, which no other process can {what}")


class CountingEnv(gym.Env[np.ndarray, np.ndarray]):
    """Observe [episode, step, last action]; odd episodes terminate after `length` steps, even ones are truncated.

    Options of the config: `length` of an episode, and `bad_step` (counted over the environment's lifetime) at which
    `bad` ("observation" or "reward") becomes `value`, or happens ("error", "slow", "dead"; or "hung", forever in the
    runner `hung_runner`, but only in the first process to make the file `hung`).
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(-3.0, 5.0, (1,), np.float32)

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.runner = dict(config), getattr(config, "worker_index", 0)
        self.length, self.episode, self.step_number, self.life = config.get("length", 4), -1, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the next episode."""
        super().reset(seed=seed)
        self.episode, self.step_number = self.episode + 1, 0
        return np.array([self.episode, 0, 0], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Count a step; the reward is its number within the episode."""
        self.step_number += 1
        self.life += 1
        observation = np.array([self.episode, self.step_number, action[0]], np.float64)
        reward = float(self.step_number)
        if self.life == self.config.get("bad_step"):
            observation[1], reward = self._fail(observation[1], reward)
        over = self.step_number == self.length
        even = self.episode % 2 == 0
        return observation, reward, over and not even, over and even, {}

    def _fail(self, observed: float, reward: float) -> tuple[float, float]:
        match self.config["bad"]:
            case "observation":
                observed = self.config["value"]
            case "reward":
                reward = self.config["value"]
            case "error":
                raise RuntimeError("the user's own mistake")
            case "stubborn error":
                raise StubbornError("own", "unpickle")
            case "slow":
                time.sleep(4)
            case "dead":
                os._exit(1)
            case "hung" if (
                self.runner == self.config["hung_runner"] and not Path(self.config["hung"]).exists()
            ):
                Path(self.config["hung"]).touch()
                time.sleep(1_000_000)
        return observed, reward


class NoisyEnv(gym.Env[np.ndarray, np.ndarray]):
    """Walk randomly; every step draws from the environment's generator. It has two asymmetric actions."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(np.array([-2.0, 0.5]), np.array([2.0, 4.0]), dtype=np.float64)

    def __init__(self, config: Any = None) -> None:
        self.length, self.position, self.step_number = 11, np.zeros(2), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start at a random position."""
        super().reset(seed=seed)
        self.position, self.step_number = self.np_random.normal(size=2), 0
        return self.position.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move by the action and noise; the episode ends outside of |x| < 6."""
        assert self.action_space.contains(np.asarray(action, np.float64)), action
        self.step_number += 1
        self.position = self.position + 0.3 * (action - 1) + 0.1 * self.np_random.normal(size=2)
        terminated = bool(np.abs(self.position).max() > 6)
        truncated = not terminated and self.step_number == self.length
        return self.position.astype(np.float32), float(self.position.sum()), terminated, truncated, {}


class GatedEnv(gym.Env[np.ndarray, np.ndarray]):
    """Reward actions; outside of the process `driver` an episode begins only when the file `gate` exists."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.position, self.step_number = dict(config), np.zeros(2), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Write the process id beside the gate, and wait for it to open."""
        super().reset(seed=seed)
        if os.getpid() != self.config["driver"]:
            gate = Path(self.config["gate"])
            gate.with_suffix(".waiting").write_text(str(os.getpid()))
            while not gate.exists():
                time.sleep(0.02)
        self.position, self.step_number = self.np_random.normal(size=2), 0
        return self.position.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step; an episode has five steps."""
        self.step_number += 1
        self.position = self.position + action[0]
        return self.position.astype(np.float32), float(action[0]), False, self.step_number == 5, {}


class UnhurriedEnv(CountingEnv):
    """Take `step_s` seconds per step; in the runner `gated_runner` the first step waits until `gate` exists."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Sleep, without CPU use."""
        time.sleep(self.config.get("step_s", 0.0))
        if self.life == 0 and self.runner == self.config.get("gated_runner"):
            while not Path(self.config["gate"]).exists():
                time.sleep(0.02)
        return super().step(action)

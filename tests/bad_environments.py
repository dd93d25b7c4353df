"""Define environments, for `--import`, that no algorithm can handle, or that fail after some steps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

FINITE = Box(-1.0, 1.0, (2,), np.float32)


class Still(gym.Env[Any, Any]):
    """Observe zeros, in episodes of 10 steps."""

    def __init__(
        self, observation_space: Box = FINITE, action_space: Box = FINITE, bad: str = "", **_: Any
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.bad, self.steps = bad, 0
        self._do("constructor")

    def _do(self, where: str) -> None:
        if self.bad == where:
            raise LookupError(f"no licence in the {where}")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._do("reset")
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        steps_taken[self.bad] += 1
        bad_now = self.bad if steps_taken[self.bad] > LIMIT else ""
        self._do("late step" if bad_now else "")
        obs = np.full(self.observation_space.shape, np.nan if bad_now == "observation" else 0.0, np.float32)
        return obs, float("nan") if bad_now == "reward" else 1.0, False, self.steps % 10 == 0, {}


LIMIT = 126
"""Steps of all instances before they fail, including those of evaluations and of the trial run at the start."""
steps_taken: Counter[str] = Counter()

SPACES = {
    "UnboundedActions-v0": {"action_space": Box(-np.inf, np.inf, (2,), np.float32)},
    "Images-v0": {"observation_space": Box(0, 255, (8, 8, 3), np.uint8)},
    "NaNObservation-v0": {"bad": "observation"},
    "NaNReward-v0": {"bad": "reward"},
    "RaisingConstructor-v0": {"bad": "constructor"},
    "RaisingReset-v0": {"bad": "reset"},
    "RaisingStep-v0": {"bad": "late step"},
}
for name, kwargs in SPACES.items():
    gym.register(name, entry_point=Still, kwargs=kwargs)

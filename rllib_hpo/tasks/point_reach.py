"""Define a point that must reach a goal, the smallest goal-conditioned task with a sparse reward.

It keeps to the interface of goal environments (Plappert et al. 2018, arXiv 1802.09464): a Dict of observation,
achieved_goal and desired_goal, and a reward that `compute_reward` gives for any pair of goals.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict
from numpy.typing import NDArray

Array = NDArray[np.float32]
ENV_ID = "PointReach-v0"
EPISODE_STEPS = 50
STEP = 0.1
"""Largest displacement per step and coordinate."""
REACHED = 0.1
"""Distance below which a goal is reached."""


class PointReach(gym.Env[dict[str, Array], Array]):
    """Move a point by actions in [-1, 1]^D, scaled by 0.1, within [-1, 1]^D.

    Every episode starts at the centre; the goal is uniform in the cube. The reward is 0 within 0.1 of the goal and -1
    elsewhere. Episodes end at their time limit alone, and `info["is_success"]` says whether the point is at the goal.

    Args:
        num_dims: Number of coordinates D.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (gymnasium's)

    def __init__(self, num_dims: int = 3, render_mode: str | None = None) -> None:
        cube = Box(-1.0, 1.0, (num_dims,), np.float32)
        self.observation_space = Dict({"observation": cube, "achieved_goal": cube, "desired_goal": cube})
        self.action_space = Box(-1.0, 1.0, (num_dims,), np.float32)
        self.render_mode = render_mode
        self.position, self.goal = np.zeros(num_dims, np.float32), np.zeros(num_dims, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start at the centre with another goal."""
        super().reset(seed=seed)
        self.position = np.zeros_like(self.position)
        self.goal = self.np_random.uniform(-1.0, 1.0, self.goal.shape).astype(np.float32)
        return self._observation(), {"is_success": self._is_reached(self.position, self.goal)}

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        """Move the point."""
        move = STEP * np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        self.position = np.clip(self.position + move, -1.0, 1.0)
        reward = self.compute_reward(self.position, self.goal, {})
        return self._observation(), reward, False, False, {"is_success": reward == 0.0}

    def compute_reward(self, achieved_goal: Array, desired_goal: Array, info: Any) -> float:
        """Return the reward of a step after which `achieved_goal` holds where `desired_goal` was wanted."""
        return 0.0 if self._is_reached(achieved_goal, desired_goal) else -1.0

    @staticmethod
    def _is_reached(achieved_goal: Array, desired_goal: Array) -> bool:
        return bool(np.linalg.norm(achieved_goal - desired_goal) < REACHED)

    def _observation(self) -> dict[str, Array]:
        return {
            "observation": self.position.copy(),
            "achieved_goal": self.position.copy(),
            "desired_goal": self.goal.copy(),
        }


def register() -> None:
    """Register the id with gymnasium."""
    if ENV_ID not in gym.registry:
        gym.register(ENV_ID, entry_point=f"{__name__}:PointReach", max_episode_steps=EPISODE_STEPS)

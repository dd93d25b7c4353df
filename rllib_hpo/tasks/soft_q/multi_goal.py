"""Define a point in the plane with four goals, the smallest task whose optimal policy is multimodal."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rllib_hpo.errors import SettingsError, shown

GOALS = np.array([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0], [0.0, -5.0]])
"""Positions, (4, 2), in the order of `info["goal"]`."""
REACHED = 1.0
"""Distance below which a goal counts as reached."""
HALF_WIDTH = 7.0
_MIXTURE_STD = 2.0
_MIXTURE_HEIGHT = 30.0
_ACTION_COST = 30.0
_BONUS = 10.0


class MultiGoal(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Move a point by actions (dx, dy) in [-1, 1]^2 within [-7, 7]^2.

    Args:
        reward: "official", as in the authors' later code: -30 |a|^2 - min_g |p' - g|^2 at the new position p', plus 10
            if the episode ends within 1 of a goal. "mixture", as in the paper: four Gaussians, here
            30 sum_g exp(-|p' - g|^2 / 8), and no end except the time limit; the paper gives neither height nor width.
        render_mode: "rgb_array" or None.
    """

    reports_outcome = True
    num_goals = len(GOALS)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  (gymnasium's)
    observation_space = gym.spaces.Box(-HALF_WIDTH, HALF_WIDTH, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(
        self, reward: Literal["official", "mixture"] = "official", render_mode: str | None = None
    ) -> None:
        if reward not in ("official", "mixture"):
            raise SettingsError(f"env_config: reward={shown(reward)} must be 'official' or 'mixture'.")
        self.reward, self.render_mode = reward, render_mode
        self.position, self.start = np.zeros(2), np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start at N(0, 0.1^2) in both coordinates."""
        super().reset(seed=seed)
        self.start = self.np_random.normal(0.0, 0.1, 2)
        self.position = self.start.copy()
        return self.position.astype(np.float32), self._info(-1)

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move the point; the reward is that of the new position."""
        move = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        self.position = np.clip(self.position + move, -HALF_WIDTH, HALF_WIDTH)
        squared = np.square(self.position - GOALS).sum(-1)
        nearest = int(squared.argmin())
        goal = nearest if squared[nearest] < REACHED**2 else -1
        if self.reward == "mixture":
            reward = _MIXTURE_HEIGHT * float(np.exp(-squared / (2 * _MIXTURE_STD**2)).sum())
            return self.position.astype(np.float32), reward, False, False, self._info(goal)
        reward = -_ACTION_COST * float(np.square(move).sum()) - float(squared[nearest])
        reached = goal >= 0
        reward += _BONUS * reached
        return self.position.astype(np.float32), reward, reached, False, self._info(goal)

    @property
    def xy(self) -> NDArray[np.float64]:
        """The position, (2,)."""
        return self.position.copy()

    def _info(self, goal: int) -> dict[str, Any]:
        distance = float(np.sqrt(np.square(self.position - GOALS).sum(-1).min()))
        return {
            "xy": self.xy,
            "progress": float(self.position[0] - self.start[0]),
            "displacement": float(np.hypot(*(self.position - self.start))),
            "goal_distance": distance,
            "goal": goal,
        }

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Render a picture (280, 280, 3): goals in red, the point in black; None without a render mode."""
        if self.render_mode is None:
            return None
        axis = np.linspace(-HALF_WIDTH, HALF_WIDTH, 280)
        x, y = np.meshgrid(axis, -axis)
        picture = np.full((280, 280, 3), 255, np.uint8)
        for goal in GOALS:
            picture[np.hypot(x - goal[0], y - goal[1]) < REACHED] = (220, 120, 120)
        picture[np.hypot(x - self.position[0], y - self.position[1]) < 0.2] = (0, 0, 0)
        return picture

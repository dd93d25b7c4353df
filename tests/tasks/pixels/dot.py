"""Define a small task from images: push a dot to the centre."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rllib_hpo.tasks.pixels import PixelObservation

SIZE, FRAMES = 21, 2
EPISODE = 20
STEP = 0.3


class Dot(gym.Env[np.ndarray, np.ndarray]):
    """Move a dot in the square [-1, 1]^2; the reward is minus its distance from the centre."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, render_mode: str | None = "rgb_array", size: int = SIZE) -> None:
        self.render_mode, self.size = render_mode, size
        self.position, self.number = np.zeros(2), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start anywhere."""
        super().reset(seed=seed)
        self.position, self.number = self.np_random.uniform(-1, 1, 2), 0
        return self.position.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move by the action."""
        self.number += 1
        self.position = np.clip(self.position + STEP * np.asarray(action, np.float64), -1, 1)
        reward = -float(np.linalg.norm(self.position))
        return self.position.astype(np.float32), reward, False, self.number >= EPISODE, {}

    def render(self) -> np.ndarray:
        """Draw a white square of 5 x 5 pixels on black."""
        image = np.zeros((self.size, self.size, 3), np.uint8)
        row, column = ((self.position + 1) / 2 * (self.size - 5)).round().astype(int)
        image[row : row + 5, column : column + 5] = 255
        return image


def make_dot(config: Any = None) -> gym.Env[Any, Any]:
    """Make the task with images of 21 x 21 pixels, two in a stack, as RLlib calls a creator."""
    return PixelObservation(Dot(), SIZE, FRAMES)

"""Define a swimming snake, rewarded for speed along x in either direction, and for passing a finish line."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_hpo.tasks.soft_q.mjcf import snake_xml
from rllib_hpo.tasks.soft_q.mujoco_env import DT, Array, CodedMujocoEnv

FINISH = 3.0
"""Metres forward of the start beyond which every step adds `_BONUS` to the reward."""
_BONUS = 1.0
_CONTROL_COST = 0.005
_NOISE = 0.1


class SnakeFinish(CodedMujocoEnv):
    """Reward |v_x| - 0.005 |a|^2 + [x - x_0 > 3 m], with v the centre of mass's velocity over one action.

    Observations (10,): metres forward since the start, cos and sin of the first link's angle, both bends, and the five
    velocities.

    Args:
        render_mode: See `CodedMujocoEnv`.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(snake_xml(), "body0", 10, render_mode, distance=12.0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start straight along x, with noise within 0.1 in positions and velocities."""
        super().reset(seed=seed)
        qpos = self.np_random.uniform(-_NOISE, _NOISE, self.model.nq)
        self.begin(qpos, self.np_random.uniform(-_NOISE, _NOISE, self.model.nv))
        return self._observation(), self.report()

    def step(self, action: NDArray[np.float32]) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Swim for 0.05 s."""
        moved = self.advance(action)
        info = self.report()
        reward = abs(float(moved[0])) / DT - _CONTROL_COST * float(np.square(action).sum())
        reward += _BONUS * (info["progress"] > FINISH)
        return self._observation(), reward, not self.is_finite(), False, info

    def _observation(self) -> Array:
        _, _, yaw, *bends = self.data.qpos
        forward = self.xy[0] - self.start_xy[0]
        return np.array([forward, np.cos(yaw), np.sin(yaw), *bends, *self.data.qvel])

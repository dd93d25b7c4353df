"""Step MuJoCo environments whose model is generated; gymnasium's base class requires a file."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from numpy.typing import NDArray

FRAME_SKIP = 5
"""Simulation steps of 0.01 s per action."""
DT = 0.01 * FRAME_SKIP
"""Seconds per action."""
Array = NDArray[np.float64]


class CodedMujocoEnv(gym.Env[Array, NDArray[np.float32]]):
    """Step a model with actions in [-1, 1]; subclasses define initial states, observations and rewards.

    Args:
        xml: The model.
        body: Name of the body whose subtree's centre of mass is the robot's position.
        obs_dim: Observation dimension S.
        render_mode: "rgb_array", "human", "depth_array" or None.
        distance: Distance of the camera, in metres.
    """

    reports_outcome = True
    metadata = {  # noqa: RUF012  (gymnasium's)
        "render_modes": ["human", "rgb_array", "depth_array"],
        "render_fps": round(1 / DT),
    }

    def __init__(self, xml: str, body: str, obs_dim: int, render_mode: str | None, distance: float) -> None:
        self.render_mode, self.width, self.height = render_mode, 480, 480
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.model.vis.global_.offwidth, self.model.vis.global_.offheight = self.width, self.height
        self.data = mujoco.MjData(self.model)
        self._body = self.model.body(body).id
        num_motors = self.model.nu
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (num_motors,), np.float32)
        camera = {"distance": distance, "elevation": -90.0, "azimuth": 90.0}
        self.mujoco_renderer = MujocoRenderer(self.model, self.data, camera, self.width, self.height)
        self.start_xy = np.zeros(2)

    @property
    def xy(self) -> Array:
        """The centre of mass of the whole robot, (2,), in metres."""
        position: Array = self.data.subtree_com[self._body][:2].copy()
        return position

    def begin(self, qpos: Array, qvel: Array) -> None:
        """Set the robot's state, from which progress is measured."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        mujoco.mj_forward(self.model, self.data)
        self.start_xy = self.xy

    def advance(self, action: NDArray[np.float32]) -> Array:
        """Apply an action for `DT` seconds; return the displacement of the centre of mass, (2,)."""
        before = self.xy
        self.data.ctrl[:] = np.clip(action, -1.0, 1.0)
        mujoco.mj_step(self.model, self.data, FRAME_SKIP)
        # A step leaves body positions as they were before its last integration.
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        return self.xy - before

    def is_finite(self) -> bool:
        """Whether all positions and velocities are finite."""
        return bool(np.isfinite(self.data.qpos).all() and np.isfinite(self.data.qvel).all())

    def report(self, **more: Any) -> dict[str, Any]:
        """Return the entries of `info`, which every step reports."""
        moved = self.xy - self.start_xy
        return {"xy": self.xy, "progress": float(moved[0]), "displacement": float(np.hypot(*moved)), **more}

    def render(self) -> Any:
        """Render a picture from above, according to the render mode."""
        return self.mujoco_renderer.render(self.render_mode)

    def close(self) -> None:
        """Close windows."""
        self.mujoco_renderer.close()

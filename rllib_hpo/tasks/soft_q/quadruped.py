"""Define a quadruped that is rewarded for speed, in the open and in hallways, or for nearness to a goal, in a maze."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_hpo.errors import SettingsError, shown
from rllib_hpo.tasks.soft_q import mjcf
from rllib_hpo.tasks.soft_q.mujoco_env import DT, Array, CodedMujocoEnv

MAZE_THRESHOLD = 3.5
"""Distance in metres to the goal of `QuadMaze`; only the open passage leads closer."""
_KNEE = np.deg2rad(55.0)
_NOISE = 0.1
_FASTEST = 10.0
_NUM_JOINTS = 8


class Quadruped(CodedMujocoEnv):
    """Reward the speed of the centre of mass, or nearness to a goal; terminate on the back.

    Observations (29,): 0.1 x and 0.1 y of the centre of mass, height and quaternion of the torso, eight joint angles,
    and 14 velocities clipped to +-10.

    Args:
        walls: Walls, as boxes.
        goal: Position of the goal, in metres; None to reward metres per second instead.
        goal_std: sigma of the reward exp(-d^2 / (2 sigma^2)) at distance d from the goal.
        speed_window: Number of actions over which speed is measured; more of them reward shaking less.
        render_mode: See `CodedMujocoEnv`.
    """

    def __init__(
        self,
        walls: Sequence[mjcf.Wall] = (),
        goal: tuple[float, float] | None = None,
        goal_std: float = 1.0,
        speed_window: int = 1,
        render_mode: str | None = None,
    ) -> None:
        if type(speed_window) is not int or speed_window < 1:
            raise SettingsError(
                f"env_config: speed_window={shown(speed_window)} must be an integer of at least 1."
            )
        super().__init__(mjcf.quadruped_xml(walls), "torso", 29, render_mode, distance=25.0)
        self.goal = None if goal is None else np.array(goal)
        self._goal_std = goal_std
        self._positions: deque[Array] = deque(maxlen=speed_window + 1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start at the origin with bent knees, with noise within 0.1 rad in joints and within 0.1 in velocities."""
        super().reset(seed=seed)
        qpos = self.model.qpos0.copy()
        knees = np.tile([0.0, _KNEE], _NUM_JOINTS // 2)
        qpos[7:] = knees + self.np_random.uniform(-_NOISE, _NOISE, _NUM_JOINTS)
        self.begin(qpos, self.np_random.uniform(-_NOISE, _NOISE, self.model.nv))
        self._positions.clear()
        self._positions.append(self.xy)
        return self._observation(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Move for 0.05 s."""
        self.advance(action)
        self._positions.append(self.xy)
        info = self._info()
        reward = self._speed() if self.goal is None else self._nearness(info["goal_distance"])
        return self._observation(), reward, self.is_flipped() or not self.is_finite(), False, info

    def is_flipped(self) -> bool:
        """Whether the torso's up axis points down."""
        return bool(self.data.xmat[self._body][8] < 0)

    def _speed(self) -> float:
        moved = self._positions[-1] - self._positions[0]
        return float(np.hypot(*moved)) / (DT * (len(self._positions) - 1))

    def _nearness(self, distance: float) -> float:
        return float(np.exp(-(distance**2) / (2 * self._goal_std**2)))

    def _info(self) -> dict[str, Any]:
        if self.goal is None:
            return self.report()
        return self.report(goal_distance=float(np.hypot(*(self.xy - self.goal))))

    def _observation(self) -> Array:
        velocities = np.clip(self.data.qvel, -_FASTEST, _FASTEST)
        return np.concatenate([0.1 * self.xy, self.data.qpos[2:], velocities])


class QuadOpen(Quadruped):
    """Reward speed in any direction: the pretraining task."""

    def __init__(self, speed_window: int = 1, render_mode: str | None = None) -> None:
        super().__init__(speed_window=speed_window, render_mode=render_mode)


class QuadMaze(Quadruped):
    """Place a goal behind a block with two passages, of which a barrier closes the upper one."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(mjcf.maze(), (10.0, 0.0), goal_std=3.0, render_mode=render_mode)


class QuadHallWide(Quadruped):
    """Reward speed in a corridor 6 m wide."""

    def __init__(self, speed_window: int = 1, render_mode: str | None = None) -> None:
        super().__init__(mjcf.hallway(6.0), speed_window=speed_window, render_mode=render_mode)


class QuadHallNarrow(Quadruped):
    """Reward speed in a corridor 3 m wide; the robot spans 2.2 m."""

    def __init__(self, speed_window: int = 1, render_mode: str | None = None) -> None:
        super().__init__(mjcf.hallway(3.0), speed_window=speed_window, render_mode=render_mode)


class QuadU(Quadruped):
    """Place a goal at the other end of a U of corridors, 18 m away."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(mjcf.u_shape(), (0.0, 6.0), goal_std=2.0, render_mode=render_mode)

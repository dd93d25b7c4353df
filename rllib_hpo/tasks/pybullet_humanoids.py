"""Define the three PyBullet humanoids of benelot's pybullet-gym, on their port `pybullet-envs-gymnasium`.

Dynamics, observations (44), actions (17) and rewards equal the original's bit for bit, including the jump of the
reward when the flag moves (tests/tasks/golden). Only the connection to the simulator differs. Torques are clipped to
[-1, 1], but the electricity cost uses the unclipped action, so callers must clip actions.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_hpo.errors import UserError


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Discard output of C code; Bullet prints its build time on import and `argv[0]=` on connection."""
    _flush()
    saved = [os.dup(1), os.dup(2)]
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        _flush()
        for descriptor, original in enumerate(saved, start=1):
            os.dup2(original, descriptor)
            os.close(original)


def _flush() -> None:
    """Empty Python's and the C library's buffers, so that each line goes to its intended target."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)


try:
    with _silence():
        import pybullet
        from pybullet_envs_gymnasium import gym_locomotion_envs as bullet_envs
        from pybullet_envs_gymnasium import robot_bases, robot_locomotors
        from pybullet_utils.bullet_client import BulletClient
except ImportError as error:
    raise UserError(
        f"The PyBullet tasks need packages that are not installed ({error}); for Python 3.11 on Linux: "
        "pip install pybullet pybullet-envs-gymnasium==0.6.0."
    ) from error


class _Joint(robot_bases.Joint):
    """Round a joint's position as the original does."""

    def current_relative_position(self) -> tuple[float, float]:
        """Return the position in [-1, 1] between the limits, and a tenth of the speed."""
        position, velocity = self.get_state()
        # The port computes 2 (position - lower) / range - 1, which near the middle sometimes rounds to another float32.
        middle = 0.5 * (self.lowerLimit + self.upperLimit)
        return 2 * (position - middle) / (self.upperLimit - self.lowerLimit), 0.1 * velocity


class _OriginalJoints(robot_bases.MJCFBasedRobot):
    """Give a robot joints of `_Joint`."""

    def addToScene(self, bullet_client: BulletClient, bodies: Any) -> tuple[Any, ...]:
        """Find the parts and joints of loaded bodies."""
        found: tuple[Any, ...] = super().addToScene(bullet_client, bodies)
        for joint in found[2]:
            joint.__class__ = _Joint
        return found


class _Humanoid(_OriginalJoints, robot_locomotors.Humanoid):
    pass


class _HumanoidFlagrun(_OriginalJoints, robot_locomotors.HumanoidFlagrun):
    pass


class _HumanoidFlagrunHarder(_OriginalJoints, robot_locomotors.HumanoidFlagrunHarder):
    pass


class _OwnSimulator(bullet_envs.WalkerBaseBulletEnv):
    """Give each environment its own simulator, and allow a reset after it was closed."""

    robot_class: type[_OriginalJoints]
    robot: Any

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self._new_robot()

    def _new_robot(self) -> None:
        self.robot = self.robot_class()
        self.robot.np_random = self.np_random

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode; connect first if there is no simulator (new or closed)."""
        if self.physicsClientId < 0:
            self._connect()
        observation, info = super().reset(seed=seed, options=options)
        return observation, info

    def _connect(self) -> None:
        # The original joins any shared-memory server on the host, even of another user, before it starts its own.
        mode = pybullet.GUI if self.should_render else pybullet.DIRECT
        with _silence():
            self._p = BulletClient(connection_mode=mode)
        # Bullet's default broadphase orders its tree by node addresses, which sometimes changes the order in which
        # contacts are solved. The simple one finds the same pairs without a tree.
        self._p.resetSimulation(flags=pybullet.RESET_USE_SIMPLE_BROADPHASE)
        self._p.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
        self._p.configureDebugVisualizer(pybullet.COV_ENABLE_GUI, 0)
        self.physicsClientId = self._p._client
        self.ownsPhysicsClient = True

    def close(self) -> None:
        """Disconnect and drop everything that belongs to the simulator; the random generator keeps its state."""
        super().close()
        self.scene = None
        self.stateId = -1
        self._new_robot()


class HumanoidPyBulletEnv(_OwnSimulator, bullet_envs.HumanoidBulletEnv):
    """Run straight ahead."""

    robot_class = _Humanoid


class HumanoidFlagrunPyBulletEnv(_OwnSimulator, bullet_envs.HumanoidFlagrunBulletEnv):
    """Run to a flag that moves."""

    robot_class = _HumanoidFlagrun


class HumanoidFlagrunHarderPyBulletEnv(_OwnSimulator, bullet_envs.HumanoidFlagrunHarderBulletEnv):
    """Run to a flag that moves, while cubes are thrown at the robot."""

    robot_class = _HumanoidFlagrunHarder

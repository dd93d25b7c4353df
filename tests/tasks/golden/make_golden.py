"""Record golden rollouts of the three PyBullet humanoids by the original code, benelot's pybullet-gym, unchanged.

    git clone https://github.com/benelot/pybullet-gym
    git -C pybullet-gym checkout bc68201c8101c4e30dde95f425647a0709ee2f29
    OPENBLAS_CORETYPE=Haswell python -m tests.tasks.golden.make_golden pybullet-gym

It runs in this repository's environment (Python 3.11, pybullet 3.2.7, gymnasium 1.2.2, numpy 2.4.6). It replaces `gym`
and `pkg_resources`, which the original imports: `gym.Env` by `object`, `register` by nothing, `gym.spaces` and
`gym.utils` by gymnasium's. With `gym.utils.seeding` the original draws from the generator that gymnasium seeds; these
three environments call only its `uniform`, so no old method needs a stand-in.

Its simulators are connected as in this package: DIRECT instead of joining a shared-memory server, and with
`deterministicOverlappingPairs=1` and Bullet's simple broadphase. The default broadphase, as in the original
(`--default-broadphase`), mostly gives the same bits: 60 of 60 processes with either wrote these rollouts. But
of 600 environments in two processes with PYTHONMALLOC=malloc, which shuffles addresses, 13 diverged from the others
in 60 steps with the default one, and none of 300 with the simple one.

The numbers depend on the machine: Linux on x86-64 with FMA and glibc 2.36. OpenBLAS sums the products of two vectors in
another order on some processors, hence the kernel named above (its SkylakeX changes rewards by up to 1.5e-11); without
FMA, which glibc uses in sines, the last bits differ too.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

PATH = Path(__file__).with_name("pybullet_humanoids.npz")


class Plan(NamedTuple):
    """One environment object, and the actions to take in it."""

    env_id: str
    seed: int
    steps: int
    onward: bool  # steps on after a fall instead of resetting


PLANS = tuple(
    Plan(f"{name}PyBulletEnv-v0", seed, steps, onward)
    for name in ("Humanoid", "HumanoidFlagrun", "HumanoidFlagrunHarder")
    for seed, steps, onward in ((0, 220, False), (1, 60, False), (2, 190, True))
)
LOCOMOTION = "pybulletgym.envs.roboschool.envs.locomotion"
ORIGINALS = {
    "HumanoidPyBulletEnv-v0": ("humanoid_env", "HumanoidBulletEnv"),
    "HumanoidFlagrunPyBulletEnv-v0": ("humanoid_flagrun_env", "HumanoidFlagrunBulletEnv"),
    "HumanoidFlagrunHarderPyBulletEnv-v0": ("humanoid_flagrun_env", "HumanoidFlagrunHarderBulletEnv"),
}


def play(env: Any, plan: Plan, actions: NDArray[np.int8]) -> dict[str, NDArray[Any]]:
    """Play actions (in units of 1/64) in a new `env`, and return what it reports.

    Returns:
        Observations at the resets (R, 44) and after each step (T, 44), rewards and terminations (T,).
    """
    start, _ = env.reset(seed=plan.seed)
    starts, observations, rewards, terminations = [start], [], [], []
    for row in actions:
        if plan.onward and "Harder" in plan.env_id:
            # Cubes are thrown at a robot that stands: one that is never counted as lying sees them.
            env.unwrapped.robot.on_ground_frame_counter = 0
        observation, reward, terminated, _, _ = env.step(row.astype(np.float32) / 64)
        observations.append(observation)
        rewards.append(reward)
        terminations.append(terminated)
        if terminated and not plan.onward:
            starts.append(env.reset()[0])
    env.close()
    return {
        "starts": np.stack(starts),
        "observations": np.stack(observations),
        "rewards": np.array(rewards),
        "terminations": np.array(terminations),
    }


def place_near_middle(env: Any, offsets: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return observations (N, 44) of a Humanoid with joints at these offsets from mid-range (N, 17).

    Near the middle the last bits of a position depend on the order in which it is scaled and shifted.
    """
    env.reset(seed=0)
    robot = env.unwrapped.robot
    observations = []
    for row in offsets:
        for joint, offset in zip(robot.ordered_joints, row, strict=True):
            joint.reset_position(0.5 * (joint.lowerLimit + joint.upperLimit) + offset, 0.0)
        observations.append(robot.calc_state())
    env.close()
    return np.stack(observations)


def rollouts(make: Callable[[str], Any], given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return all rollouts under the given actions and offsets, in environments that `make` makes from their ids."""
    arrays = {"middle/observations": place_near_middle(make(PLANS[0].env_id), given["middle/offsets"])}
    for index, plan in enumerate(PLANS):
        played = play(make(plan.env_id), plan, given[f"{index}/actions"])
        arrays |= {f"{index}/{key}": array for key, array in played.items()}
    return arrays


class Original:
    """Wrap an environment of the old `gym` in gymnasium's calls."""

    def __init__(self, env: Any) -> None:
        self.unwrapped = env

    def reset(self, seed: int | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        if seed is not None:
            self.unwrapped.seed(seed)
        return self.unwrapped.reset(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, ...]:
        observation, reward, done, info = self.unwrapped.step(action)
        return observation, reward, done, False, info

    def close(self) -> None:
        self.unwrapped.close()


def make_original(env_id: str) -> Original:
    module, name = ORIGINALS[env_id]
    return Original(getattr(importlib.import_module(f"{LOCOMOTION}.{module}"), name)())


def stand_in_for_gym() -> None:
    """Replace the modules that the original imports and that no longer exist."""
    gym = types.ModuleType("gym")
    gym.__version__ = "0.17.3"
    gym.Env = object
    gym.spaces = gymnasium.spaces
    gym.utils = gymnasium.utils
    registration = types.ModuleType("gym.envs.registration")
    registration.register = lambda **_: None
    resources = types.ModuleType("pkg_resources")
    resources.parse_version = lambda version: tuple(map(int, version.split(".")))
    sys.modules |= {
        "gym": gym,
        "gym.spaces": gymnasium.spaces,
        "gym.utils": gymnasium.utils,
        "gym.utils.seeding": gymnasium.utils.seeding,
        "gym.envs": types.ModuleType("gym.envs"),
        "gym.envs.registration": registration,
        "pkg_resources": resources,
    }


def connect_as_we_do(simple_broadphase: bool = True) -> None:
    """Give each of the original's simulators its own connection, with overlapping pairs in a fixed order."""
    import pybullet
    from pybullet_utils import bullet_client

    connect = bullet_client.BulletClient

    def own_client() -> Any:
        client = connect(pybullet.DIRECT)
        client.resetSimulation(flags=pybullet.RESET_USE_SIMPLE_BROADPHASE if simple_broadphase else 0)
        client.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
        return client

    bullet_client.BulletClient = own_client


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="where benelot's repository lies")
    parser.add_argument("--out", type=Path, default=PATH)
    parser.add_argument("--default-broadphase", action="store_true", help="to see whether it matters")
    arguments = parser.parse_args()
    stand_in_for_gym()
    connect_as_we_do(not arguments.default_broadphase)
    sys.path.insert(0, str(arguments.checkout))
    given: dict[str, NDArray[Any]] = {
        "middle/offsets": np.random.default_rng(0).uniform(-1e-6, 1e-6, (20, 17)),
    }
    for index, plan in enumerate(PLANS):
        actions = np.random.default_rng(plan.seed).integers(-64, 65, (plan.steps, 17))
        given[f"{index}/actions"] = actions.astype(np.int8)
    np.savez_compressed(arguments.out, **given, **rollouts(make_original, given))


if __name__ == "__main__":
    main()

"""Find the goals in the observations of an environment, and ask it what a step is worth for another goal.

Goal environments (gymnasium-robotics, panda-gym) observe a Dict with `achieved_goal` and `desired_goal`, and have
`compute_reward(achieved_goal, desired_goal, info)`; some have `compute_terminated` with the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rllib_hpo.errors import UserError
from rllib_hpo.tasks.boundary import Boundary, env_name
from rllib_hpo.tasks.observations import FlatSpace, Part
from rllib_hpo.tasks.wrappers import ActionRepeat

ACHIEVED, DESIRED = "achieved_goal", "desired_goal"
REWARD, TERMINATED = "compute_reward", "compute_terminated"
_NEEDED = (
    "replay=her needs a goal environment: a Dict observation with Boxes achieved_goal and desired_goal of one shape, "
    "and compute_reward(achieved_goal, desired_goal, info)"
)


def check_goals(env: gym.Env[Any, Any]) -> None:
    """Reject an environment whose transitions cannot be relabelled.

    Raises:
        UserError: Saying what is missing, or naming a wrapper that changes rewards.
    """
    name = env_name(env)
    space = env.observation_space
    found = {part.name: part.space for part in space.parts} if isinstance(space, FlatSpace) else {}
    goals = [found.get(goal) for goal in (ACHIEVED, DESIRED)]
    if (
        not all(isinstance(goal, spaces.Box) for goal in goals)
        or len({goal.shape for goal in goals if goal}) != 1
    ):
        raise UserError(f"Environment '{name}' has no such goals: {_NEEDED}.")
    if _method(env, REWARD) is None:
        raise UserError(f"Environment '{name}' has no compute_reward: {_NEEDED}.")
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, (gym.RewardWrapper, gym.wrappers.NormalizeReward, ActionRepeat)):
            raise UserError(
                f"replay=her asks the environment for rewards of other goals, which the wrapper {type(layer).__name__} "
                "would not change: leave it out (normalize_rewards=true scales rewards)."
            )
        layer = layer.env


def part_of(env: gym.Env[Any, Any], goal: str) -> Part:
    """Return the part of a flat observation that holds a goal of an environment that passed `check_goals`."""
    space = env.observation_space
    assert isinstance(space, FlatSpace)
    return next(part for part in space.parts if part.name == goal)


def outcome_of(env: gym.Env[Any, Any], boundary: Boundary) -> Callable[..., tuple[float, bool]]:
    """Return a function that asks `env` for reward and `terminated` of a step, had another goal been desired.

    The function takes the goal achieved by the step (G,), the desired goal (G,), and the `terminated` of the step,
    which it returns unless the environment has `compute_terminated`. Both methods get an empty info.
    """
    space = part_of(env, ACHIEVED).space
    reward, terminated = _method(env, REWARD), _method(env, TERMINATED)
    shape, dtype = space.shape, space.dtype

    def outcome(
        achieved: NDArray[np.float32], desired: NDArray[np.float32], was_terminated: bool
    ) -> tuple[float, bool]:
        goals = [goal.reshape(shape).astype(dtype) for goal in (achieved, desired)]
        return (
            boundary.reward_of(lambda: reward(*goals, {}), REWARD),
            was_terminated
            if terminated is None
            else boundary.flag_of(lambda: terminated(*goals, {}), TERMINATED),
        )

    return outcome


def _method(env: gym.Env[Any, Any], name: str) -> Any:
    """Return a method of the environment or of one of its wrappers, None if there is none."""
    return env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else None

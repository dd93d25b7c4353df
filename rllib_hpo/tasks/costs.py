"""Wrap an environment so that `info` reports the cost of each step; it is the innermost wrapper."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_hpo.costs import Cost, InfoCost, SpeedCost
from rllib_hpo.errors import SettingsError, shown

Env = gym.Env[Any, Any]
COST = "cost"
"""The key of a step's cost in `info`."""


class CostWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """Write the cost of each step into `info["cost"]`.

    Args:
        env: An environment whose actions are a bounded Box.
        cost: Definition of a step's cost.
    """

    def __init__(self, env: Env, cost: Cost) -> None:
        super().__init__(env)
        self._kind = cost.kind
        self._of_step = lambda action, info: step_cost(cost, env.action_space, action, info)

    def step(self, action: Any) -> Any:
        """Step the environment, and add the cost to its info.

        Raises:
            SettingsError: If the environment reports nothing to compute the cost from, or an invalid cost.
        """
        result: Any = self.env.step(action)
        if not isinstance(result, (tuple, list)) or len(result) != 5:
            return result  # the boundary rejects that
        *others, info = result
        reported = info if isinstance(info, Mapping) else {}
        return *others, {**reported, COST: self._of_step(action, reported)}


def step_cost(cost: Cost, space: gym.Space[Any], action: Any, info: Any) -> float:
    """Return the cost of one step.

    Args:
        cost: Definition of the cost.
        space: The environment's action space.
        action: The executed action, (A,), within the bounds.
        info: The step's info.

    Raises:
        SettingsError: If the info lacks a number for it; names the setting, the key and the keys found.
    """
    if isinstance(cost, SpeedCost):
        velocity = _number(cost, info, "x_velocity")
        if cost.axis == "xy":
            velocity = math.hypot(velocity, _number(cost, info, "y_velocity"))
        return float((abs(velocity) if cost.absolute else velocity) > cost.limit)
    if isinstance(cost, InfoCost):
        value = _number(cost, info, cost.key)
        if value < 0:
            raise SettingsError(
                f"cost={_shown(cost)}: the environment reported {cost.key}={value:g}, but a cost must be at least "
                "0."
            )
        return value
    assert isinstance(space, gym.spaces.Box)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    unit = (np.asarray(action, np.float64) - (low + high) / 2) / ((high - low) / 2)
    return float(np.abs(np.clip(unit, -1, 1)).mean())


def _number(cost: Cost, info: Any, key: str) -> float:
    if not isinstance(info, Mapping) or key not in info:
        keys = ", ".join(sorted(map(str, info))) if isinstance(info, Mapping) and info else "none"
        raise SettingsError(
            f"cost={_shown(cost)}: the environment does not report '{key}' in the info of step(); it reports: "
            f"{keys}."
        )
    try:
        value = float(np.asarray(info[key], np.float64).item())
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise SettingsError(
            f"cost={_shown(cost)}: the environment reported {key}={shown(info[key])}, but a finite number is "
            "required."
        )
    return value


def _shown(cost: Cost) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in cost.model_dump().items()) + "}"

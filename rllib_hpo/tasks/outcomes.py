"""Record an episode's outcome besides its return: distances covered, goal distance and goal.

Any environment may report `is_success` in `info`: whether an episode that ends at this step has succeeded.
Environments whose class sets `reports_outcome = True` report these values in `info` at every step: `progress`, metres
forward; `displacement`, metres from the start; `goal_distance`; and `goal`, the index of the goal reached, or -1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

Outcome = dict[str, float]
"""Outcome of one episode, where known.

Keys: forward_max, forward_min, displacement, displacement_max, goal_distance_min and goal.
"""

SUCCESS = "is_success"
"""Key of `info` that says whether an episode has succeeded, as in goal environments and Stable-Baselines3."""

_LARGEST = ("forward_max", "displacement_max")
_SMALLEST = ("forward_min", "goal_distance_min")


def reports_outcome(env: gym.Env[Any, Any]) -> bool:
    """Return whether an environment reports outcomes in its info."""
    return bool(getattr(type(env.unwrapped), "reports_outcome", False))


def observe(outcome: Outcome, info: Mapping[str, Any]) -> None:
    """Update an outcome from one step's info, in place."""
    seen = {
        "forward_max": info.get("progress"),
        "forward_min": info.get("progress"),
        "displacement_max": info.get("displacement"),
        "goal_distance_min": info.get("goal_distance"),
    }
    _widen(outcome, {name: float(value) for name, value in seen.items() if value is not None})
    if "displacement" in info:
        outcome["displacement"] = float(info["displacement"])
    if "goal" in info:
        outcome["goal"] = max(float(info["goal"]), outcome.get("goal", -1.0))


def widen(extremes: Outcome, outcome: Mapping[str, float]) -> None:
    """Merge one episode into the extremes of all training, in place; each changes in one direction only."""
    _widen(extremes, {name: outcome[name] for name in (*_LARGEST, *_SMALLEST) if name in outcome})


def _widen(extremes: Outcome, found: Mapping[str, float]) -> None:
    for name, value in found.items():
        pick = max if name in _LARGEST else min
        extremes[name] = pick(value, extremes.get(name, value))


def summary(outcomes: Sequence[Outcome], num_goals: int = 0) -> dict[str, float]:
    """Summarise the outcomes of an evaluation; empty if there are none.

    Args:
        outcomes: Outcome of each episode, at least one.
        num_goals: Number of goals of the environment.

    Returns:
        net_displacement_mean, forward_mean (farthest forward, mean over episodes), goal_distance_mean (nearest), and
        the shares of episodes that reached a goal (goal_reached) and each goal (goal_reached_0, ...), where known.
    """
    means = {
        "net_displacement_mean": "displacement",
        "forward_mean": "forward_max",
        "goal_distance_mean": "goal_distance_min",
    }
    numbers = {
        name: float(np.mean([outcome[source] for outcome in outcomes]))
        for name, source in means.items()
        if all(source in outcome for outcome in outcomes)
    }
    if all("goal" in outcome for outcome in outcomes):
        goals = np.array([outcome["goal"] for outcome in outcomes])
        numbers["goal_reached"] = float((goals >= 0).mean())
        numbers |= {f"goal_reached_{k}": float((goals == k).mean()) for k in range(num_goals)}
    return numbers

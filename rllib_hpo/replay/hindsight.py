"""Relabel transitions with goals achieved later in their episode: hindsight experience replay.

Andrychowicz et al. 2017, arXiv 1707.01495, Algorithm 1, lines 11 to 16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rllib_hpo.replay.layout import RowLayout

Strategy = Literal["future", "final", "episode"]
Rows = npt.NDArray[np.float32]


class GoalPlaces(NamedTuple):
    """Where the goals stand in a flat observation."""

    achieved: slice
    desired: slice


class Hindsight:
    """Make copies of an episode's transitions that wanted what the episode achieved.

    Args:
        layout: Layout of a transition.
        places: Where the goals stand in an observation.
        outcome: Returns reward and `terminated` of a step for the goal achieved by it, the desired goal, and the
            `terminated` that the step had.
        ratio: Copies of each transition.
        strategy: Where goals come from: "future", the same or a later step of the episode; "episode", any step;
            "final", the last.
    """

    def __init__(
        self,
        layout: RowLayout,
        places: GoalPlaces,
        outcome: Callable[[Rows, Rows, bool], tuple[float, bool]],
        ratio: int,
        strategy: Strategy,
    ) -> None:
        self._layout, self._outcome = layout, outcome
        self._ratio, self._strategy = ratio, strategy
        self._reward = layout.obs_dim + layout.action_dim
        next_obs = self._reward + 2
        self._desired, self._next_desired, self._next_achieved = (
            places.desired,
            _shifted(places.desired, next_obs),
            _shifted(places.achieved, next_obs),
        )

    def relabel(self, episode: Rows, generator: np.random.Generator) -> Rows:
        """Return `ratio` relabelled copies of each transition (T, width) of an episode, (ratio T, width)."""
        which = np.repeat(np.arange(len(episode)), self._ratio)
        rows, achieved = episode[which], episode[:, self._next_achieved]
        goals = achieved[self._steps(which, len(episode), generator)]
        rows[:, self._desired] = rows[:, self._next_desired] = goals
        for row, goal in zip(rows, goals, strict=True):
            reached = row[self._next_achieved]
            row[self._reward], row[self._reward + 1] = self._outcome(
                reached, goal, bool(row[self._reward + 1])
            )
        return rows

    def _steps(
        self, which: npt.NDArray[np.int64], length: int, generator: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """Return the steps (N,) whose achieved goals the copies of the steps `which` (N,) get."""
        if self._strategy == "final":
            return np.full_like(which, length - 1)
        return generator.integers(which if self._strategy == "future" else 0, length, len(which))


def _shifted(place: slice, offset: int) -> slice:
    return slice(place.start + offset, place.stop + offset)

"""Sum the costs of training: those of the last episodes, and the total."""

from __future__ import annotations

from collections import deque
from typing import Any

from rllib_hpo.algorithms.base import Episode

LATEST_EPISODES = 10
"""Number of episodes over which `train_cost_mean` is averaged."""


class TrainingCosts:
    """Sum the costs of finished training episodes."""

    def __init__(self) -> None:
        self._latest: deque[tuple[float, float]] = deque(maxlen=LATEST_EPISODES)
        self._total = 0.0
        self._has_any = False

    def add(self, episode: Episode) -> None:
        """Count a finished episode; one cut by an error enters the total alone."""
        self._total += episode.cost
        self._has_any = True
        if not episode.failed:
            self._latest.append((episode.cost, episode.cost_discounted))

    def numbers(self) -> dict[str, float]:
        """Costs by the names in rows and results; none before the first episode has ended."""
        if not self._has_any:
            return {}
        numbers = {"train_cost_total": self._total}
        if self._latest:
            sums, discounted = zip(*self._latest, strict=True)
            numbers["train_cost_mean"] = sum(sums) / len(sums)
            numbers["train_cost_discounted_mean"] = sum(discounted) / len(discounted)
        return numbers

    def get_state(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {"latest": list(self._latest), "total": self._total, "has_any": self._has_any}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `get_state`; start from nothing with an empty state."""
        self._latest = deque(state.get("latest", []), maxlen=LATEST_EPISODES)
        self._total, self._has_any = state.get("total", 0.0), state.get("has_any", False)

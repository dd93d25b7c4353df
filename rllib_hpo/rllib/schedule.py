"""The schedule of a run in environment steps: warm-up, updates, evaluations, iterations, checkpoints."""

from __future__ import annotations

import math
from fractions import Fraction

from rllib_hpo.settings import Settings


class Schedule:
    """Compute what is due from the number of environment steps taken so far."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        # A fraction, so that 0.1 updates a step are 1 in 10 exactly, after any number of steps.
        self._update_to_data = Fraction(str(settings.update_to_data))

    def is_warmup(self, env_steps: int) -> bool:
        """Whether the next step is of the warm-up, after which nothing is learned yet."""
        return env_steps < self.settings.warmup_steps

    def acts_at_random(self, env_steps: int) -> bool:
        """Whether the next step's action is uniformly random."""
        return self.settings.warmup_policy == "uniform" and self.is_warmup(env_steps)

    def updates_due(self, env_steps: int) -> int:
        """Updates that should have been made after `env_steps`: update_to_data for each after the warm-up."""
        return math.floor(max(0, env_steps - self.settings.warmup_steps) * self._update_to_data)

    def evaluation_due(self, env_steps: int) -> bool:
        """Whether `env_steps`, 0 included, is a boundary of evaluations."""
        return env_steps % self.settings.evaluation_every == 0

    def checkpoint_due(self, env_steps: int) -> bool:
        """Whether `env_steps` is a scheduled checkpoint."""
        return env_steps % self.settings.checkpoint_every == 0

    def next_stop(self, env_steps: int, end: int) -> int:
        """The next number of steps that a fragment must not cross, at most `end`."""
        stops = [end, _next_multiple(env_steps, self.settings.evaluation_every)]
        if self.is_warmup(env_steps):
            stops.append(self.settings.warmup_steps)
        return min(stops)

    def iteration_end(self, env_steps: int) -> int:
        """The last step of an iteration that begins at `env_steps`."""
        return min(
            _next_multiple(env_steps, self.settings.steps_per_iteration),
            _next_multiple(env_steps, self.settings.checkpoint_every),
        )


def _next_multiple(number: int, step: int) -> int:
    return (number // step + 1) * step

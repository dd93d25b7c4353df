"""Gauges of a run for the operators of a cluster; Ray exports them to Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm

METRICS = {
    "rllib_hpo_env_steps_per_second": "Environment steps per second over the last iteration, including evaluations",
    "rllib_hpo_updates_per_second": "Updates per second over the last iteration, including evaluations",
    "rllib_hpo_env_steps": "Environment steps of the run so far",
    "rllib_hpo_replay_rows": "Transitions in the replay",
    "rllib_hpo_policy_lag_updates": "Policy lag: updates made since the weights that the last rollouts used",
    "rllib_hpo_gpu_memory_bytes": "Peak GPU memory allocated by torch in the learner's process",
    "rllib_hpo_evaluation_return": "Mean return of the latest evaluation",
}
"""Descriptions by name; Ray puts `ray_` before each name."""

TAGS = ("sweep", "trial", "algorithm", "task", "seed")


class OperatorMetrics:
    """Set the gauges of one run; do nothing outside of a Ray cluster.

    Args:
        tags: A value for each of `TAGS`.
        algorithm: Whose iterations are measured, as it is before the first.
    """

    def __init__(self, tags: Mapping[str, str], algorithm: ActorCriticAlgorithm) -> None:
        self._algorithm, self._gauges = algorithm, {}
        self._env_steps, self._updates = algorithm.env_steps, algorithm.num_updates
        if ray.is_initialized():
            from ray.util.metrics import Gauge

            for name, description in METRICS.items():
                self._gauges[name] = Gauge(name, description, tag_keys=TAGS)
                self._gauges[name].set_default_tags(dict(tags))

    def iteration(self, metrics: Mapping[str, float], seconds: float) -> None:
        """Set all gauges after an iteration.

        Args:
            metrics: What it reported, flat.
            seconds: How long it took.
        """
        if not self._gauges:
            return
        algorithm = self._algorithm
        values: dict[str, Any] = {
            "rllib_hpo_env_steps_per_second": (algorithm.env_steps - self._env_steps) / seconds,
            "rllib_hpo_updates_per_second": (algorithm.num_updates - self._updates) / seconds,
            "rllib_hpo_env_steps": algorithm.env_steps,
            "rllib_hpo_replay_rows": metrics["learner/replay_rows"],
            "rllib_hpo_policy_lag_updates": algorithm.stack.policy_lag,
            "rllib_hpo_gpu_memory_bytes": metrics.get("learner/gpu_memory_bytes"),
            # A stop may cut the first evaluation.
            "rllib_hpo_evaluation_return": metrics.get("evaluation/return_mean"),
        }
        self._env_steps, self._updates = algorithm.env_steps, algorithm.num_updates
        for name, value in values.items():
            if value is not None:
                self._gauges[name].set(value)

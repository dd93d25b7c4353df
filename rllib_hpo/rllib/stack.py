"""Interface of RLlib's two API stacks, as the algorithm uses them: act, learn, report, save."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from rllib_hpo.algorithms.base import Actor
from rllib_hpo.learning.replay_learner import ReplayLearner

if TYPE_CHECKING:
    from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
    from rllib_hpo.rllib.new_stack.messages import Weights

RUNNER_TIMEOUT_S = 300.0
"""Timeout in seconds for samples when every runner is dead or too slow, and for any other reply of a runner."""

STOP_TIMEOUT_S = 10.0
"""The same timeout once a stop is requested: Kubernetes, for one, kills the process after 30 seconds."""


class Stack(ABC):
    """The workers of one algorithm; the algorithm counts the steps and holds the schedule.

    Args:
        algorithm: The algorithm that owns the workers; RLlib has built them.
    """

    def __init__(self, algorithm: ActorCriticAlgorithm) -> None:
        self.algorithm, self.config = algorithm, algorithm.config
        self.policy_lag = 0
        """Most updates made since the weights that a block of the last iteration acted with, its own included."""

    @property
    @abstractmethod
    def actor(self) -> Actor:
        """The actor of evaluations."""

    @property
    @abstractmethod
    def core(self) -> ReplayLearner:
        """The replay and its updates, if the learner is in this process."""

    @abstractmethod
    def collect_and_learn(self, stop: int) -> None:
        """Take environment steps, up to step `stop` of the run at most, and make the updates that become due."""

    @abstractmethod
    def call_core(self, method: str, *args: Any) -> Any:
        """Call a method of the `ReplayLearner`, local or remote."""

    @abstractmethod
    def join(self, env_steps: int) -> None:
        """Explore with the streams of a run joined at `env_steps`, which repeat no earlier draws."""

    @abstractmethod
    def reseed(self, seed: int, env_steps: int) -> None:
        """Continue from step `env_steps` with streams of `seed`, and begin new episodes where possible."""

    def apply_settings(self) -> None:
        """Apply this run's settings after a checkpoint has restored its own."""
        self.call_core("apply_settings")

    def on_weights_changed(self) -> None:
        """Send the learner's weights to the runners, after something other than an update has changed them."""
        self.apply_settings()

    @abstractmethod
    def refresh_actor(self) -> None:
        """Load the newest weights into `actor`, unless it is the learner's own."""

    def frozen_weights(self) -> Weights:
        """An immutable copy of the newest weights; only for stacks with evaluation runners."""
        raise NotImplementedError

    def wrapper_state(self) -> list[tuple[str, Any]]:
        """State of the environment's wrappers; only the local runner may have wrappers with state."""
        return []

    @abstractmethod
    def rebuild_unsavable_envs(self) -> None:
        """Rebuild the environments whose simulator cannot be saved."""

    @abstractmethod
    def is_savable(self) -> bool:
        """Whether a checkpoint taken now holds the exact state of every environment; a restore rebuilds the others."""

    @abstractmethod
    def stop(self) -> None:
        """Kill workers that RLlib would wait for without a limit."""

    @abstractmethod
    def report(self, learner_metrics: dict[str, float]) -> dict[str, Any] | None:
        """Report an iteration in the way of the stack; returns the result of `training_step`."""

    @abstractmethod
    def complete(self, result: dict[str, Any]) -> None:
        """Complete RLlib's result of an iteration, so that both stacks have the same keys."""

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """State to save beside that of RLlib's own components."""

    @abstractmethod
    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a result of `get_state`."""

"""What the two API stacks of RLlib have to do for an algorithm: act, learn, and say where they stand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from rllib_hpo.algorithms.base import Actor
from rllib_hpo.learning.replay_learner import ReplayLearner

if TYPE_CHECKING:
    from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
    from rllib_hpo.rllib.new_stack.messages import Weights

RUNNER_TIMEOUT_S = 300.0
"""How long training waits for samples when every runner is dead or too slow, and for any other answer of a runner."""

STOP_TIMEOUT_S = 10.0
"""The same once a stop is requested: who asks may end the process after 30 seconds."""


class Stack(ABC):
    """The workers of one algorithm, which counts steps and decides when what happens.

    Args:
        algorithm: Whose workers these are; RLlib has built them.
    """

    def __init__(self, algorithm: ActorCriticAlgorithm) -> None:
        self.algorithm, self.config = algorithm, algorithm.config
        self.policy_lag = 0
        """Most updates made since the weights that a block of the last iteration acted with, its own included."""

    @property
    @abstractmethod
    def actor(self) -> Actor:
        """What acts in evaluations."""

    @property
    @abstractmethod
    def core(self) -> ReplayLearner:
        """What learns, where it lives in this process."""

    @abstractmethod
    def collect_and_learn(self, stop: int) -> None:
        """Takes environment steps, at most up to step `stop` of the run, and makes the updates then due."""

    @abstractmethod
    def call_core(self, method: str, *args: Any) -> Any:
        """Calls a method of what learns, wherever it lives."""

    @abstractmethod
    def join(self, env_steps: int) -> None:
        """Explores from here on as one that joins a run at `env_steps`, repeating no draws of its beginning."""

    @abstractmethod
    def reseed(self, seed: int, env_steps: int) -> None:
        """Acts and learns from step `env_steps` on with streams of `seed`, and begins new episodes where it can."""

    def apply_settings(self) -> None:
        """Makes the settings hold again where a checkpoint brought those it was saved with."""
        self.call_core("apply_settings")

    def on_weights_changed(self) -> None:
        """Lets runners act with the learner's weights, which something other than an update has set."""
        self.apply_settings()

    @abstractmethod
    def refresh_actor(self) -> None:
        """Brings the newest weights to `actor`, where it is not the learner's own."""

    def frozen_weights(self) -> Weights:
        """The newest weights, as an object that does not change; only for stacks with evaluation runners."""
        raise NotImplementedError

    def wrapper_state(self) -> list[tuple[str, Any]]:
        """What the environment's wrappers have gathered; only a runner in this process may have any that do."""
        return []

    @abstractmethod
    def rebuild_unsavable_envs(self) -> None:
        """Makes anew the environments whose simulator a checkpoint cannot hold."""

    @abstractmethod
    def is_savable(self) -> bool:
        """Whether a checkpoint taken now holds every environment as it is; those that it lacks are rebuilt."""

    @abstractmethod
    def stop(self) -> None:
        """Ends workers that RLlib would wait for without a limit."""

    @abstractmethod
    def report(self, learner_metrics: dict[str, float]) -> dict[str, Any] | None:
        """Reports an iteration as the stack does it; returns what `training_step` has to."""

    @abstractmethod
    def complete(self, result: dict[str, Any]) -> None:
        """Adds to RLlib's result of an iteration what it lacks, so that all stacks' results read alike."""

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the state of RLlib's own components."""

    @abstractmethod
    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called."""

"""The new API stack for an algorithm: EnvRunners that fill rows, and Learners that own the replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    ENV_RUNNER_RESULTS,
    EPISODE_DURATION_SEC_MEAN,
    EPISODE_LEN_MAX,
    EPISODE_LEN_MEAN,
    EPISODE_LEN_MIN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
)

from rllib_hpo.algorithms.base import Actor, Episode
from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.results.schema import SUCCESS_RATE
from rllib_hpo.rllib import stack
from rllib_hpo.rllib._private import local_learner
from rllib_hpo.rllib.environment import stateful_wrappers
from rllib_hpo.rllib.new_stack.feeding import Feeding, LocalFeeding, RemoteFeeding
from rllib_hpo.rllib.new_stack.learners import Learners
from rllib_hpo.rllib.new_stack.messages import Weights
from rllib_hpo.rllib.new_stack.pipeline import Pipeline
from rllib_hpo.rllib.new_stack.sampling import LocalSampling, RemoteSampling
from rllib_hpo.rllib.remote import Call

PIPELINE_RESULTS = "pipeline"
"""The key of results that holds `Pipeline.flush_metrics`."""


class ModuleStack(stack.Stack):
    """Act with RLModules and learn with Learners, in this process or in actors."""

    def __init__(self, algorithm: Any) -> None:
        super().__init__(algorithm)
        watches_rows = make_method(self.config.settings()).watches_rows
        self.learners = Learners(algorithm.learner_group, all_see_rows=watches_rows)
        self._is_local = self.config.num_env_runners == 0 and self.config.num_learners == 0
        if self._is_local:  # the runner acts with the learner's own module: no copies, no policy lag
            algorithm.env_runner.module = self._learner.module[DEFAULT_MODULE_ID].unwrapped()
        self.pipeline = self._make_pipeline()

    def _make_pipeline(self) -> Pipeline:
        config, algorithm = self.config, self.algorithm
        is_remote = config.num_learners > 0
        # Statistics that wrappers gather must be of the counted steps at every stop.
        takes_turns = bool(stateful_wrappers(config))
        sampling = (
            RemoteSampling(algorithm, fetches_rows=not is_remote)
            if config.num_env_runners > 0
            else LocalSampling(algorithm.env_runner)
        )
        return Pipeline(
            algorithm,
            sampling,
            self._remote_feeding if is_remote else self._local_feeding,
            fragment=self._fragment,
            max_lead_steps=0 if takes_turns else config.get_max_lead_steps(),
        )

    def _local_feeding(self, meanwhile: Callable[[], None]) -> Feeding:
        return LocalFeeding(self.core, self._acting_state, meanwhile)

    def _remote_feeding(self, meanwhile: Callable[[], None]) -> Feeding:
        return RemoteFeeding(self.learners, lambda: self.algorithm.num_updates)

    @property
    def _learner(self) -> Any:
        return local_learner(self.algorithm.learner_group)

    @property
    @override(stack.Stack)
    def actor(self) -> Actor:
        actor: Actor = self.algorithm.env_runner.module.model
        return actor

    @property
    @override(stack.Stack)
    def core(self) -> ReplayLearner:
        core: ReplayLearner = self._learner.core
        return core

    @override(stack.Stack)
    def collect_and_learn(self, stop: int) -> None:
        if self._is_local:
            self.pipeline.learn_from_queue(stop)
            self._learn_locally(stop)
        else:
            self.pipeline.advance(stop)

    def _learn_locally(self, stop: int) -> None:
        """Alternate between a fragment and its updates, in this process."""
        algorithm, runner, core = self.algorithm, self.algorithm.env_runner, self.core
        random_actions = algorithm.schedule.acts_at_random(algorithm.env_steps)
        while algorithm.env_steps < stop and not algorithm.stop_requested:
            num_steps = min(self._fragment, stop - algorithm.env_steps)
            block = runner.sample(num_steps=num_steps, random_actions=random_actions)
            episodes = algorithm.dated(block.episodes)
            core.add_transitions(block.rows, episodes, num_relabelled=block.num_relabelled)
            algorithm.log_callbacks(block.metrics)
            core.update_from_replay(algorithm.count(block.num_steps, episodes))

    @property
    def _fragment(self) -> int:
        """Steps of one runner between two updates of its weights."""
        return int(self.config.get_rollout_fragment_length() * self.config.num_envs_per_env_runner)

    @override(stack.Stack)
    def call_core(self, method: str, *args: Any) -> Any:
        return self.learners.call(method, *args)

    def _acting_state(self) -> dict[str, Any]:
        return self.learners.acting_state()

    @override(stack.Stack)
    def frozen_weights(self) -> Weights:
        return self.pipeline.feeding.weights()

    @override(stack.Stack)
    def join(self, env_steps: int) -> None:
        self.algorithm.env_runner.join(env_steps, self.algorithm.run_seed)

    def _call_runners(self, call: Call) -> list[Any]:
        """Results of a call to every runner, that of the local one first."""
        return [call(self.algorithm.env_runner), *self.pipeline.call_remote_runners(call).values()]

    @override(stack.Stack)
    def reseed(self, seed: int, env_steps: int) -> None:
        self.call_core("reseed", seed, env_steps)
        self._call_runners(Call("reseed", seed, env_steps))

    @override(stack.Stack)
    def on_weights_changed(self) -> None:
        super().on_weights_changed()
        self.pipeline.feeding.forget()

    @override(stack.Stack)
    def refresh_actor(self) -> None:
        """See `Stack`. Weights that the local runner already has are not sent again."""
        if not self._is_local:
            self.pipeline.feeding.weights().give_to(self.algorithm.env_runner)

    @override(stack.Stack)
    def wrapper_state(self) -> list[tuple[str, Any]]:
        state: list[tuple[str, Any]] = self.algorithm.env_runner.wrapper_state()
        return state

    @override(stack.Stack)
    def rebuild_unsavable_envs(self) -> None:
        self._call_runners(Call("rebuild_unsavable_envs"))

    @override(stack.Stack)
    def is_savable(self) -> bool:
        """Whether every simulator can be saved or was just built, so that a resumed run is the same."""
        return all(self._call_runners(Call("is_savable")))

    @override(stack.Stack)
    def stop(self) -> None:
        self.pipeline.stop()

    @override(stack.Stack)
    def report(self, learner_metrics: dict[str, float]) -> None:
        """Log counters, episodes and the learner's metrics with RLlib's metrics logger."""
        algorithm, log = self.algorithm, self.algorithm.metrics.log_value
        steps = (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)
        new_steps = algorithm.env_steps - algorithm.metrics.peek(steps, default=0)
        log(steps, new_steps, reduce="lifetime_sum")
        log((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED), new_steps, reduce="sum")
        num_trained = algorithm.num_updates * self.config.train_batch_size_per_learner
        num_trained *= max(1, self.config.num_learners)
        trained = (LEARNER_RESULTS, ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME)
        log(trained, num_trained - algorithm.metrics.peek(trained, default=0), reduce="lifetime_sum")
        self._report_episodes(algorithm.episodes_done)
        for name, value in learner_metrics.items():
            log((LEARNER_RESULTS, DEFAULT_MODULE_ID, name), value, window=1)
        if not self._is_local:
            measured = self.pipeline.flush_metrics()
            self.policy_lag = int(measured.get("policy_lag_max", 0))
            for name, value in measured.items():
                log((PIPELINE_RESULTS, name), value, window=1)

    def _report_episodes(self, episodes: list[Episode]) -> None:
        log, window = self.algorithm.metrics.log_value, self.config.metrics_num_episodes_for_smoothing
        log((ENV_RUNNER_RESULTS, NUM_EPISODES), len(episodes), reduce="sum")
        log((ENV_RUNNER_RESULTS, NUM_EPISODES_LIFETIME), len(episodes), reduce="lifetime_sum")
        for episode in episodes:
            log((ENV_RUNNER_RESULTS, EPISODE_DURATION_SEC_MEAN), episode.seconds, window=window)
            if episode.success is not None:
                log((ENV_RUNNER_RESULTS, SUCCESS_RATE), episode.success, window=window)
            for value, mean, least, most in (
                (episode.episode_return, EPISODE_RETURN_MEAN, EPISODE_RETURN_MIN, EPISODE_RETURN_MAX),
                (episode.length, EPISODE_LEN_MEAN, EPISODE_LEN_MIN, EPISODE_LEN_MAX),
            ):
                log((ENV_RUNNER_RESULTS, mean), value, window=window)
                log((ENV_RUNNER_RESULTS, least), value, reduce="min", window=window)
                log((ENV_RUNNER_RESULTS, most), value, reduce="max", window=window)

    @override(stack.Stack)
    def complete(self, result: dict[str, Any]) -> None:
        """Do nothing: the logger has everything."""

    @override(stack.Stack)
    def get_state(self) -> dict[str, Any]:
        """Queued blocks, streams and simulators of remote runners, and the state of several learners."""
        blocks = self.pipeline.get_state()
        runners = self.pipeline.call_remote_runners(
            lambda runner: runner.get_state(not_components=COMPONENT_RL_MODULE)
        )
        return {"blocks": blocks, "runners": runners, **self.learners.get_state()}

    @override(stack.Stack)
    def set_state(self, state: dict[str, Any]) -> None:
        self.pipeline.set_state(state.get("blocks", []))
        self.learners.set_state(state, state["env_steps"])
        if state["runners"] and self.config.num_env_runners > 0:  # otherwise nobody would fetch them
            states = ray.put(state["runners"])
            self.pipeline.call_remote_runners(
                lambda runner: runner.set_state(ray.get(states).get(runner.worker_index, {}))
            )

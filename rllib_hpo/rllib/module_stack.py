"""RLlib's new API stack: EnvRunners that fill rows, and a Learner that owns the replay."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EPISODE_LEN_MEAN,
    EPISODE_RETURN_MEAN,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES_LIFETIME,
    WEIGHTS_SEQ_NO,
)

from rllib_hpo.errors import UserError
from rllib_hpo.learning.actor_critic import Actor
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.rllib import stack
from rllib_hpo.rllib.env_runner import Rollout
from rllib_hpo.rllib.learners import Learners
from rllib_hpo.rllib.remote import Call, SampleRequest, rollouts_of, share_out


class ModuleStack(stack.Stack):
    """Acts with RLModules and learns with a Learner; either lives here or in actors."""

    def __init__(self, algorithm: Any) -> None:
        super().__init__(algorithm)
        self.learners = Learners(algorithm.learner_group)
        self.weights_seq_no = 0
        self._updates_after: dict[int, int] = {}
        """Updates that followed weights of a number, since those that the last rollouts acted with."""
        self._is_local = self.config.num_env_runners == 0 and self.config.num_learners == 0
        if self._is_local:  # the runner acts with the learner's own module: no copies, no policy lag
            algorithm.env_runner.module = self._learner.module[DEFAULT_MODULE_ID].unwrapped()

    @property
    def _learner(self) -> Any:
        return self.algorithm.learner_group._learner

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
            self._learn_locally(stop)
        else:
            self._learn_in_rounds(stop)

    def _learn_locally(self, stop: int) -> None:
        """Everything in this process: a fragment, its updates, the next fragment."""
        algorithm, runner, core = self.algorithm, self.algorithm.env_runner, self.core
        random_actions = algorithm.schedule.is_warmup(algorithm.env_steps)
        while algorithm.env_steps < stop:
            num_steps = min(self._fragment, stop - algorithm.env_steps)
            rollout = runner.sample(num_steps=num_steps, random_actions=random_actions)
            core.add_transitions(rollout.rows)
            core.update_from_replay(self._count(rollout))

    def _learn_in_rounds(self, stop: int) -> None:
        """Remote runners sample one fragment each, then the learners make the updates that are due."""
        rollouts = self.sample_remotely(stop)
        updates = [self._count(rollout) for rollout in rollouts]
        self.call_core("train_on", [rollout.rows for rollout in rollouts], updates)
        self._updates_after[self.weights_seq_no] = sum(updates)
        acted_with = min(rollout.weights_seq_no for rollout in rollouts)
        self._updates_after = {n: made for n, made in self._updates_after.items() if n >= acted_with}
        self.policy_lag = sum(self._updates_after.values())
        if sum(updates):
            self.weights_seq_no += 1

    def _count(self, rollout: Rollout) -> int:
        """Counts a rollout; the updates that it makes due."""
        return self.algorithm.count(len(rollout.rows), rollout.episodes)

    @property
    def _fragment(self) -> int:
        """Steps of one runner between two updates of its weights."""
        return int(self.config.get_rollout_fragment_length() * self.config.num_envs_per_env_runner)

    def sample_remotely(self, stop: int) -> list[Rollout]:
        """One rollout of each healthy runner, all with the newest weights; together they do not cross `stop`.

        Raises:
            UserError: If no runner hands on anything for five minutes.
        """
        if self.config.num_env_runners == 0:  # with a remote learner
            return [self._sample_here(stop)]
        group, deadline = self.algorithm.env_runner_group, time.monotonic() + stack.RUNNER_PATIENCE_S
        while time.monotonic() < deadline:
            self.algorithm.restore_runners()
            healthy = list(group.healthy_env_runner_ids())
            if not healthy:
                time.sleep(1.0)
            elif rollouts := self._ask_runners(healthy, stop):
                return rollouts
        raise UserError(
            f"None of {self.config.num_env_runners} environment runners handed on samples for "
            f"{stack.RUNNER_PATIENCE_S:.0f} seconds: they died and did not come back, or they take longer "
            f"than sample_timeout_s={self.config.sample_timeout_s} for a fragment."
        )

    def _ask_runners(self, runners: list[int], stop: int) -> list[Rollout]:
        """What those of `runners` hand on that live and answer in time."""
        algorithm = self.algorithm
        quotas = share_out(min(stop - algorithm.env_steps, self._fragment * len(runners)), len(runners))
        asked = [(runner, quota) for runner, quota in zip(runners, quotas, strict=True) if quota]
        state = {COMPONENT_RL_MODULE: ray.put(self._acting_state()), WEIGHTS_SEQ_NO: self.weights_seq_no}
        random_actions = algorithm.schedule.is_warmup(algorithm.env_steps)
        # Asks the actors without EnvRunnerGroup's wrapper, which would swallow a runner's error.
        results = algorithm.env_runner_group._worker_manager.foreach_actor(
            [
                SampleRequest(state, quota, random_actions, algorithm.env_steps, algorithm.run_seed)
                for _, quota in asked
            ],
            remote_actor_ids=[runner for runner, _ in asked],
            timeout_seconds=self.config.sample_timeout_s,
        )
        return rollouts_of(results, self.config)

    def _sample_here(self, stop: int) -> Rollout:
        algorithm, runner = self.algorithm, self.algorithm.env_runner
        runner.set_state({COMPONENT_RL_MODULE: self._acting_state(), WEIGHTS_SEQ_NO: self.weights_seq_no})
        rollout: Rollout = runner.sample(
            num_steps=min(self._fragment, stop - algorithm.env_steps),
            random_actions=algorithm.schedule.is_warmup(algorithm.env_steps),
        )
        return rollout

    @override(stack.Stack)
    def call_core(self, method: str, *args: Any) -> Any:
        return self.learners.call(method, *args)

    def _acting_state(self) -> dict[str, Any]:
        return self.learners.acting_state()

    @override(stack.Stack)
    def join(self, env_steps: int) -> None:
        self.algorithm.env_runner.join(env_steps, self.algorithm.run_seed)

    @override(stack.Stack)
    def reseed(self, seed: int, env_steps: int) -> None:
        self.call_core("reseed", seed, env_steps)
        self.algorithm.env_runner_group.foreach_env_runner(Call("reseed", seed, env_steps))

    @override(stack.Stack)
    def refresh_actor(self) -> None:
        if not self._is_local:
            self.algorithm.env_runner.module.set_state(self._acting_state())

    @override(stack.Stack)
    def wrapper_state(self) -> list[tuple[str, Any]]:
        state: list[tuple[str, Any]] = self.algorithm.env_runner.wrapper_state()
        return state

    @override(stack.Stack)
    def rebuild_unsavable_envs(self) -> None:
        self.algorithm.env_runner_group.foreach_env_runner(Call("rebuild_unsavable_envs"))

    @override(stack.Stack)
    def is_savable(self) -> bool:
        """Whether every simulator can be saved, or was just built: the resumed run is then the same."""
        return all(self.algorithm.env_runner_group.foreach_env_runner(Call("is_savable")))

    @override(stack.Stack)
    def report(self, learner_metrics: dict[str, float]) -> None:
        """Counters, episodes and what the learner measured go to RLlib's metrics logger."""
        algorithm, log = self.algorithm, self.algorithm.metrics.log_value
        steps = (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)
        new_steps = algorithm.env_steps - algorithm.metrics.peek(steps, default=0)
        log(steps, new_steps, reduce="lifetime_sum")
        episodes = algorithm.episodes_done
        log((ENV_RUNNER_RESULTS, NUM_EPISODES_LIFETIME), len(episodes), reduce="lifetime_sum")
        window = self.config.metrics_num_episodes_for_smoothing
        for episode in episodes:
            log((ENV_RUNNER_RESULTS, EPISODE_RETURN_MEAN), episode.episode_return, window=window)
            log((ENV_RUNNER_RESULTS, EPISODE_LEN_MEAN), episode.length, window=window)
        for name, value in learner_metrics.items():
            log((LEARNER_RESULTS, DEFAULT_MODULE_ID, name), value, window=1)

    @override(stack.Stack)
    def complete(self, result: dict[str, Any]) -> None:
        """Nothing: the logger has it all."""

    @override(stack.Stack)
    def get_state(self) -> dict[str, Any]:
        """The number of the weights, and the streams and simulators of remote runners and of several learners."""
        runners = self.algorithm.env_runner_group.foreach_env_runner(
            lambda runner: (runner.worker_index, runner.get_state(not_components=COMPONENT_RL_MODULE)),
            local_env_runner=False,
        )
        return {
            "weights_seq_no": self.weights_seq_no,
            "runners": dict(runners),
            **self.learners.get_state(),
        }

    @override(stack.Stack)
    def set_state(self, state: dict[str, Any]) -> None:
        self.weights_seq_no = state["weights_seq_no"]
        self.learners.set_state(state, state["env_steps"])
        if state["runners"]:
            states = ray.put(state["runners"])
            self.algorithm.env_runner_group.foreach_env_runner(
                lambda runner: runner.set_state(ray.get(states).get(runner.worker_index, {})),
                local_env_runner=False,
            )

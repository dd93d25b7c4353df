"""The old API stack for an algorithm: RolloutWorkers that fill SampleBatches, and a Policy that learns."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID, MultiAgentBatch, SampleBatch
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    NUM_AGENT_STEPS_SAMPLED,
    NUM_AGENT_STEPS_TRAINED,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_EPISODES_LIFETIME,
)
from ray.rllib.utils.metrics.learner_info import LEARNER_STATS_KEY

from rllib_hpo.algorithms.base import Actor
from rllib_hpo.errors import NonFiniteError, UserError
from rllib_hpo.learning.memory import explain_out_of_memory
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.replay.layout import Batch
from rllib_hpo.rllib import stack
from rllib_hpo.rllib._private import actor_manager
from rllib_hpo.rllib.new_stack.sampling import GRACE_S
from rllib_hpo.rllib.old_stack.policy import ActorCriticTorchPolicy, as_sample_batch
from rllib_hpo.rllib.remote import check_any_alive, live_results
from rllib_hpo.streams import numpy_generator


class PolicyStack(stack.Stack):
    """Act with Policies, in this process or in RolloutWorkers, and learn with the local one.

    Sampling and learning alternate; only the new stack overlaps them, and runs evaluations beside them.
    """

    def __init__(self, algorithm: Any) -> None:
        super().__init__(algorithm)
        with explain_out_of_memory():
            self._core = ReplayLearner(self.policy.trainer, self._learn_on_batch)
        self._ahead = np.empty((0, self._core.replay.layout.width), np.float32)
        """Rows that were sampled but are not counted yet, since a fragment went beyond a stop."""
        self._num_episodes = self._steps_reported = 0

    @property
    def policy(self) -> ActorCriticTorchPolicy:
        """The policy that learns."""
        policy: ActorCriticTorchPolicy = self.algorithm.get_policy()
        return policy

    @property
    @override(stack.Stack)
    def actor(self) -> Actor:
        actor: Actor = self.policy.model.model
        return actor

    @property
    @override(stack.Stack)
    def core(self) -> ReplayLearner:
        return self._core

    @override(stack.Stack)
    def collect_and_learn(self, stop: int) -> None:
        algorithm = self.algorithm
        rows = self._ahead if len(self._ahead) else self._sample()
        room = stop - algorithm.env_steps
        rows, self._ahead = rows[:room], rows[room:]
        self._core.add_transitions(rows)
        due = algorithm.count(len(rows), ())
        self._core.update_from_replay(due)
        if due:
            algorithm.env_runner_group.sync_weights(global_vars={"timestep": algorithm.env_steps})
        if self.config.num_env_runners > 0:
            self.policy_lag += due

    def _learn_on_batch(self, batch: Batch) -> None:
        """Learn through the policy, so that RLlib's callbacks and a subclass's `learn_on_batch` are called."""
        self.policy.learn_on_batch(as_sample_batch(batch))

    def _sample(self) -> npt.NDArray[np.float32]:
        """Rows (N, width) of one fragment of each worker.

        Raises:
            NonFiniteError: If an observation or reward is NaN or infinite.
        """
        batches = [_single(batch) for batch in self._sample_batches()]
        rows = np.concatenate([self._as_rows(batch) for batch in batches])
        if not np.isfinite(rows).all():
            raise NonFiniteError(f"An observation or a reward of {self.config.env} is not finite")
        return rows

    def _sample_batches(self) -> list[Any]:
        """A fragment of each worker.

        Raises:
            WorkerDiedError: If all are dead for good.
            UserError: If none has delivered samples for `stack.RUNNER_TIMEOUT_S`.
        """
        self.policy_lag = 0
        request = FragmentRequest(self.algorithm.schedule.acts_at_random(self.algorithm.env_steps))
        group = self.algorithm.env_runner_group
        if self.config.num_env_runners == 0:
            return _raise_errors([request(group.local_env_runner)])
        deadline = time.monotonic() + stack.RUNNER_TIMEOUT_S
        while time.monotonic() < deadline:
            # Asks the actors without EnvRunnerGroup's wrapper, which would swallow a worker's error.
            results = actor_manager(group).foreach_actor(
                request, timeout_seconds=self.config.sample_timeout_s
            )
            if batches := live_results(results, self.config):
                return _raise_errors(batches)
            check_any_alive(actor_manager(group), self.config)
            self.algorithm.restore_runners()
            time.sleep(1.0)
        raise UserError(
            f"None of {self.config.num_env_runners} rollout workers returned samples for "
            f"{stack.RUNNER_TIMEOUT_S:.0f} seconds."
        )

    def _as_rows(self, batch: SampleBatch) -> npt.NDArray[np.float32]:
        layout = self._core.replay.layout
        rows = np.empty((batch.count, layout.width), np.float32)
        layout.pack(
            batch[SampleBatch.OBS],
            batch[SampleBatch.ACTIONS],
            batch[SampleBatch.REWARDS],
            batch[SampleBatch.TERMINATEDS],
            batch[SampleBatch.NEXT_OBS],
            out=rows,
        )
        return rows

    @override(stack.Stack)
    def call_core(self, method: str, *args: Any) -> Any:
        return getattr(self._core, method)(*args)

    @override(stack.Stack)
    def join(self, env_steps: int) -> None:
        self.policy.join(env_steps)

    @override(stack.Stack)
    def reseed(self, seed: int, env_steps: int) -> None:
        self.call_core("reseed", seed, env_steps)
        self.algorithm.env_runner_group.foreach_env_runner(Reseeding(seed, env_steps))

    @override(stack.Stack)
    def apply_settings(self) -> None:
        super().apply_settings()
        if self.config.num_env_runners > 0:  # they have the checkpoint's weights already
            self.algorithm.env_runner_group.sync_weights()

    @override(stack.Stack)
    def refresh_actor(self) -> None:
        """Do nothing: the actor is the one that learns."""

    @override(stack.Stack)
    def rebuild_unsavable_envs(self) -> None:
        """Do nothing: RolloutWorkers cannot save a simulator, so a resumed run begins new episodes."""

    @override(stack.Stack)
    def is_savable(self) -> bool:
        """False: see `rebuild_unsavable_envs`."""
        return False

    @override(stack.Stack)
    def stop(self) -> None:
        """Kill workers that hang in a step of their environment, which RLlib would wait for."""
        actors = actor_manager(self.algorithm.env_runner_group).actors().values()
        pings = {actor.ping.remote(): actor for actor in actors}
        if pings:
            for ref in ray.wait(list(pings), num_returns=len(pings), timeout=GRACE_S)[1]:
                ray.kill(pings[ref])

    @override(stack.Stack)
    def report(self, learner_metrics: dict[str, float]) -> dict[str, Any]:
        algorithm = self.algorithm
        for name in (NUM_ENV_STEPS_SAMPLED, NUM_AGENT_STEPS_SAMPLED):
            algorithm.old_stack_counters[name] = algorithm.env_steps
        trained = self.policy.trainer.num_updates * algorithm.settings.train_batch_size_per_learner
        for name in (NUM_ENV_STEPS_TRAINED, NUM_AGENT_STEPS_TRAINED):
            algorithm.old_stack_counters[name] = trained
        return {DEFAULT_POLICY_ID: {LEARNER_STATS_KEY: learner_metrics}}

    @override(stack.Stack)
    def complete(self, result: dict[str, Any]) -> None:
        """Add the new stack's metrics under the same names, and drop means over no episodes."""
        learned = result["info"]["learner"][DEFAULT_POLICY_ID][LEARNER_STATS_KEY]
        trained = self.algorithm.old_stack_counters[NUM_ENV_STEPS_TRAINED]
        result["learners"] = {
            DEFAULT_POLICY_ID: learned,
            ALL_MODULES: {NUM_ENV_STEPS_TRAINED_LIFETIME: trained},
        }
        runners = result["env_runners"]
        self._num_episodes += runners["num_episodes"]
        for name, value in list(runners.items()):
            if isinstance(value, float) and math.isnan(value):
                del runners[name]
        runners[NUM_ENV_STEPS_SAMPLED] = self.algorithm.env_steps - self._steps_reported
        runners[NUM_ENV_STEPS_SAMPLED_LIFETIME] = self._steps_reported = self.algorithm.env_steps
        runners[NUM_EPISODES_LIFETIME] = self._num_episodes

    @override(stack.Stack)
    def get_state(self) -> dict[str, Any]:
        return {"num_episodes": self._num_episodes}

    @override(stack.Stack)
    def set_state(self, state: dict[str, Any]) -> None:
        self._num_episodes, self._steps_reported = state["num_episodes"], state["env_steps"]


class FragmentRequest:
    """A request for one fragment, executed in a RolloutWorker."""

    def __init__(self, random_actions: bool) -> None:
        self.random_actions = random_actions

    def __call__(self, worker: Any) -> SampleBatch | MultiAgentBatch | UserError:
        """Sample a fragment; return a user's error, since RLlib would restart a worker that raises."""
        worker.get_policy().random_actions = self.random_actions
        try:
            batch: SampleBatch | MultiAgentBatch = worker.sample()
        except UserError as error:
            return error
        return batch


class Reseeding:
    """A request to use streams of another seed, executed in a RolloutWorker."""

    def __init__(self, seed: int, env_steps: int) -> None:
        self.seed, self.env_steps = seed, env_steps

    def __call__(self, worker: Any) -> None:
        """Reseed the policy and the environments."""
        worker.get_policy().reseed(self.seed, self.env_steps)
        for i, env in enumerate(worker.foreach_env(lambda env: env)):
            owner = ("worker", worker.worker_index, self.env_steps, "environment", i)
            # A reset would leave RLlib's sampler in the middle of an episode that is over.
            env.unwrapped.np_random = numpy_generator(self.seed, *owner)


def _raise_errors(batches: list[Any]) -> list[Any]:
    """Return the batches, or raise the first error among them."""
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
    return batches


def _single(batch: SampleBatch | MultiAgentBatch) -> SampleBatch:
    return batch[DEFAULT_POLICY_ID] if isinstance(batch, MultiAgentBatch) else batch

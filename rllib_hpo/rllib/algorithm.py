"""The Algorithm. RLlib builds, checkpoints and reports it; the training step is our own."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EVALUATION_RESULTS,
)
from ray.tune import PlacementGroupFactory

from rllib_hpo.algorithms.base import Episode
from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.errors import NonFiniteError, SettingsError, UserError
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.moved import moved_names
from rllib_hpo.rllib.auth_token import keep_token_private
from rllib_hpo.rllib.capacity import ray_for_actors
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.rllib.environment import EvaluationEnvironments, WorkerEnvCreator, label, probe_environment
from rllib_hpo.rllib.evaluating import EvaluatedAlgorithm
from rllib_hpo.rllib.evaluation import (
    EvaluationStopped,
)
from rllib_hpo.rllib.initializing import initial_weights
from rllib_hpo.rllib.new_stack.evaluation_runners import EvaluationRunners
from rllib_hpo.rllib.new_stack.stack import PIPELINE_RESULTS, ModuleStack
from rllib_hpo.rllib.old_stack.policy import POLICIES, ActorCriticTorchPolicy
from rllib_hpo.rllib.old_stack.stack import PolicyStack
from rllib_hpo.rllib.remote import without_object_store
from rllib_hpo.rllib.saving import SavedAlgorithm
from rllib_hpo.rllib.schedule import Schedule
from rllib_hpo.rllib.stack import Stack
from rllib_hpo.rllib.torch_options import set_torch_options
from rllib_hpo.rllib.training_costs import TrainingCosts
from rllib_hpo.tasks import outcomes
from rllib_hpo.tasks.env_config import not_recorded, recorded
from rllib_hpo.tasks.observations import order_of

ENV_RESTARTS = "num_env_restarts_lifetime"
"""The key of results that counts environments rebuilt after an error."""
EXTREMES = "outcome"
"""The key of results that holds `extremes`."""
_logger = logging.getLogger(__name__)


class ActorCriticAlgorithm(EvaluatedAlgorithm):
    """An off-policy algorithm of RLlib around one of this package's methods.

    One `train()` is a fixed number of environment steps (never a span of time), cut so that warm-up, evaluations and
    checkpoints fall exactly on their steps.
    """

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> ActorCriticConfig:
        return ActorCriticConfig()

    @classmethod
    @override(Algorithm)
    def get_default_policy_class(cls, config: ActorCriticConfig) -> type[ActorCriticTorchPolicy]:
        """The TorchPolicy of the old API stack."""
        return POLICIES.get(config.algorithm, ActorCriticTorchPolicy)

    @staticmethod
    @override(SavedAlgorithm)
    def label_and_creator(env: Any, config: ActorCriticConfig) -> tuple[str, Any]:
        return label(env), WorkerEnvCreator(config)

    @override(Algorithm)
    def __repr__(self) -> str:
        """RLlib's name; without a configuration, RLlib's would fail and hide why that was refused."""
        has_config = isinstance(getattr(self, "config", None), AlgorithmConfig)
        return str(super().__repr__()) if has_config else type(self).__name__

    def _begin_state(self, config: ActorCriticConfig) -> None:
        """Set the state of a run that has made no step."""
        self.settings = config.settings()
        self.schedule = Schedule(self.settings)
        self.env_steps, self._num_updates = 0, 0
        self.env_restarts = 0
        """Number of environments that were rebuilt after an error."""
        self.extremes: outcomes.Outcome = {}
        """How far training episodes have come, where the environment says; see `rllib_hpo.tasks.outcomes`."""
        self.run_seed: int = config.seed
        """The seed of this run's random streams: the config's, or a new one in a clone with its donor's seed."""
        self._began = time.perf_counter()
        self.episodes_done: list[Episode] = []
        self.training_costs = TrainingCosts()
        """Costs of training episodes so far, where the task defines the cost of a step."""
        self.max_env_steps: int | None = None
        """Environment step at which an iteration ends early; None for no limit."""
        self.latest_evaluation: dict[str, Any] | None = None
        self.on_row: Callable[[Path], None] | None = None
        """Function to call with the file of every row that is written."""
        self.on_warning: Callable[[str, int], None] | None = None
        """Function to call with each warning on diagnostics and the step of the evaluation that it came with."""
        self._has_warned_of_cut = False
        self._warned_of: set[str] = set()
        self.lacks_evaluation = False
        """Whether the evaluation of this step was due and was stopped; the next iteration plays it."""
        self.evaluation_steps = 0
        """Steps that the current evaluation in this process has played; 0 between evaluations."""
        self.waits_for_evaluations = self.is_trial
        """Whether an iteration ends with all evaluations that are due; any result of a Tune trial may be its last."""
        self.is_stopped = False
        """Whether `stop` was called; there are no workers then."""
        self.stop_requested = False
        """Set it from any thread to end the iteration at the next step; clear it to continue training."""

    @override(Algorithm)
    def setup(self, config: ActorCriticConfig) -> None:
        self._validate_local_hardware(config)
        set_torch_options(config.num_torch_threads)
        self._begin_state(config)
        self._warn_of_unrecorded_options(config)
        if config.num_env_runners + config.evaluation_num_env_runners > 0:
            self.env_creator.spaces = probe_environment(config)
        if not self._is_local(config):
            keep_token_private()
        with ray_for_actors(config):
            with without_object_store(self._is_local(config)):
                super().setup(config)
            self.stack: Stack = PolicyStack(self) if config.is_old_stack else ModuleStack(self)
            make_method(self.settings).check(self.actor)
            if (order := self.observation_order) is not None:
                _logger.info("%s", order)
            self._initialize()
            self._evaluation_environments = EvaluationEnvironments(config)
            self.evaluation_runners = EvaluationRunners(config, self._watch)

    def _initialize(self) -> None:
        """Begins with the networks of another run, where the config names one."""
        self.origin_digest = ""
        """Digest of the networks that initialised the run; empty if the seed did."""
        self._lacks_origin: UserError | None = None
        if self.config.initialize_from is None:
            return
        networks = make_method(self.settings).networks(self._model())
        try:
            weights, digest = initial_weights(self.get_weights(), networks, Path(self.config.initialize_from))
        except UserError as error:  # which is none for a run that is restored from a checkpoint of its own
            self._lacks_origin = error
            return
        self.set_weights(weights)
        self.origin_digest = digest

    def _model(self) -> Any:
        """A model like the learner's."""
        return make_method(self.settings).make_model(self.actor.obs_dim, self.actor.action_dim, seed=0)

    def refuse_without_origin(self) -> None:
        """Does nothing unless this is a new run whose `initialize_from` cannot be used.

        Raises:
            UserError: Saying why.
        """
        if self._lacks_origin is not None:
            raise self._lacks_origin

    @staticmethod
    def _validate_local_hardware(config: ActorCriticConfig) -> None:
        """Check settings that depend on this machine; configs may be built on another one."""
        if config.env is None:
            raise SettingsError("No environment is set: set one, for example with .environment('Hopper-v4').")
        option = "num_gpus" if config.is_old_stack else "num_gpus_per_learner"
        num_gpus = getattr(config, option)
        if config.num_learners == 0 and num_gpus > 0 and not torch.cuda.is_available():
            raise SettingsError(f"{option}={num_gpus}, but torch finds no CUDA device on this machine.")

    @staticmethod
    def _warn_of_unrecorded_options(config: ActorCriticConfig) -> None:
        for name, kind in not_recorded(recorded(config.env_config)).items():
            _logger.warning(
                "env_config: '%s' is a %s, which rows and checkpoints cannot record: `evaluate`, `convert` and "
                "`train --config` will not be able to recreate this environment.",
                name,
                kind,
            )

    @property
    def local_learner(self) -> ReplayLearner:
        """The replay and its updates, if the learner is in this process."""
        return self.stack.core

    @property
    def observation_order(self) -> str | None:
        """A sentence on how observations are flattened; None if the environment's are flat."""
        owner = self.get_policy() if self.config.is_old_stack else self.env_runner.module
        return order_of(owner.observation_space)

    @property
    def num_updates(self) -> int:
        """Number of updates due after the steps so far; all are made by the end of an iteration."""
        return self._num_updates

    @staticmethod
    @override(SavedAlgorithm)
    def _is_local(config: ActorCriticConfig) -> bool:
        return not (config.num_env_runners or config.num_learners or config.evaluation_num_env_runners)

    @staticmethod
    def _overlaps(config: ActorCriticConfig) -> bool:
        """Whether `max_lead_steps` affects the run's numbers."""
        return not config.is_old_stack and config.num_env_runners + config.num_learners > 0

    @classmethod
    @override(Algorithm)
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        """RLlib's request, and a CPU for each evaluation runner."""
        request = super().default_resource_request(config)
        number = cls.get_default_config().update_from_dict(config).evaluation_num_env_runners
        return PlacementGroupFactory([*request.bundles, *[{"CPU": 1.0}] * number], strategy=request.strategy)

    @override(Algorithm)
    def cleanup(self) -> None:
        """Wait for pending evaluations, unless an error is being raised or a stop was requested."""
        self.is_stopped = True
        if not hasattr(self, "evaluation_runners"):  # setup has failed
            super().cleanup()
            return
        try:
            # Without runners, the pending evaluations are a checkpoint's, for the run that continues.
            if len(self.evaluation_runners) and sys.exc_info()[0] is None and not self.stop_requested:
                self._collect_evaluations(at_least=self.evaluation_runners.num_pending)
        finally:
            self.evaluation_runners.stop()
            try:
                self.stack.stop()
            finally:
                super().cleanup()

    @override(Algorithm)
    def step(self) -> dict[str, Any]:
        """Add the latest evaluation to every result, since Tune's schedulers need it between evaluations, too.

        Raises:
            UserError: If `stop` was called before.
            NonFiniteError: If an observation, a reward or a loss is NaN or infinite, saying which and when.
        """
        if self.is_stopped:
            raise UserError(
                "This algorithm was stopped and cannot continue training: build it again with build_algo(), or "
                "load its checkpoint with from_checkpoint()."
            )
        try:
            results: dict[str, Any] = super().step()
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}, after {self.env_steps} environment steps.") from error
        self.stack.complete(results)
        results[ENV_RUNNER_RESULTS][ENV_RESTARTS] = self.env_restarts
        results[ENV_RUNNER_RESULTS] |= self.training_costs.numbers()
        if self.extremes:
            results[ENV_RUNNER_RESULTS][EXTREMES] = dict(self.extremes)
        if self.latest_evaluation is not None:
            results[EVALUATION_RESULTS] = self.latest_evaluation
        return results

    @override(Algorithm)
    def training_step(self) -> dict[str, Any] | None:
        """Act, store and update (Algorithm 1 of arXiv 2103.12020), in place of RLlib's sample-and-train."""
        self._check_replay_loaded()
        self.refuse_without_origin()
        end = self.schedule.iteration_end(self.env_steps)
        if self.max_env_steps is not None:
            end = min(end, self.max_env_steps)
        with suppress(EvaluationStopped):
            self._train_and_evaluate(end)
        if self.schedule.checkpoint_due(self.env_steps):
            self.stack.rebuild_unsavable_envs()
        report = self.stack.report(self.stack.call_core("flush_metrics"))
        if len(self.evaluation_runners):
            self.metrics.log_value(
                (PIPELINE_RESULTS, "evaluations_waited_s"), self.evaluation_runners.waited_s, window=1
            )
            self.evaluation_runners.waited_s = 0.0
        self.episodes_done.clear()
        return report

    def _train_and_evaluate(self, end: int) -> None:
        """Train up to step `end`, or until a stop is requested, with the evaluations that are due.

        Raises:
            EvaluationStopped: If a stop was requested before an evaluation had ended.
        """
        is_new = self.env_steps == 0 and self.latest_evaluation is None
        if self.lacks_evaluation or (is_new and not self.evaluation_runners.num_pending):
            self._evaluate_and_record()
        while self.env_steps < end and not self.stop_requested:
            stop = self.schedule.next_stop(self.env_steps, end)
            self.stack.collect_and_learn(stop)
            is_last = self.env_steps == self.max_env_steps
            if self.env_steps == stop and (is_last or self.schedule.evaluation_due(self.env_steps)):
                self._evaluate_and_record()
            self._collect_evaluations()
        is_first, is_last = self.latest_evaluation is None, self.env_steps == self.max_env_steps
        waits_for_all = is_last or self.waits_for_evaluations
        self._collect_evaluations(
            at_least=self.evaluation_runners.num_pending if waits_for_all else int(is_first)
        )

    def dated(self, episodes: Iterable[Episode], start: int = 0) -> list[Episode]:
        """Episodes with the step of the run at which each ended; `start` is the block's row to be counted next."""
        return [e._replace(ended_at=e.ended_at + self.env_steps - start) for e in episodes]

    def count(self, num_steps: int, episodes: Iterable[Episode]) -> int:
        """Count environment steps and ended episodes; returns the number of updates that become due."""
        self.env_steps += num_steps
        for episode in episodes:
            if self.settings.cost is not None:
                self.training_costs.add(episode)
            if episode.failed:
                self.env_restarts += 1
            else:
                self.episodes_done.append(episode)
                outcomes.widen(self.extremes, episode.outcome or {})
        due = self.schedule.updates_due(self.env_steps) - self._num_updates
        self._num_updates += due
        return due

    def log_callbacks(self, metrics: dict[str, Any] | None) -> None:
        """Add what callbacks have logged at a runner to the results of this iteration, below "env_runners"."""
        if metrics:
            self.metrics.aggregate([metrics], key=ENV_RUNNER_RESULTS)

    def restore_runners(self) -> None:
        """Restore replaced runners, and call the callbacks of those."""
        if restored := self.restore_env_runners(self.env_runner_group):
            self.announce_restored_runners(restored)

    def announce_restored_runners(self, restored: list[int]) -> None:
        """Call the callbacks of runners that were replaced."""
        self.call_runners_recreated(restored)

    @override(Algorithm)
    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Restore replaced runners.

        On the old stack RLlib does, and waits for them; on the new one `RemoteSampling` does, without waiting.
        """
        if self.config.is_old_stack:
            return list(super().restore_env_runners(env_runner_group))
        return []

    def run_config(self) -> dict[str, Any]:
        """All values that determine this run's numbers; `rllib-hpo train --config` accepts them."""
        env = label(self.config.env)
        return {
            "algorithm": self.config.algorithm,
            "task": self.config.task or env,
            "env": env,
            "api_stack": "old" if self.config.is_old_stack else "new",
            "env_config": recorded(self.config.env_config),
            "seed": self.run_seed,
            "num_env_runners": self.config.num_env_runners,
            "num_envs_per_env_runner": self.config.num_envs_per_env_runner,
            "rollout_fragment_length": self.config.rollout_fragment_length,
            "num_learners": self.config.num_learners,
            **({"max_lead_steps": self.config.max_lead_steps} if self._overlaps(self.config) else {}),
            **self._origin(),
            **self.settings.model_dump(),
        }

    def _origin(self) -> dict[str, str]:
        if self.config.initialize_from is None:
            return {}
        return {"initialize_from": self.config.initialize_from, "initialize_digest": self.origin_digest}

    def take_over(self, other: ActorCriticAlgorithm) -> None:
        """Continue from the state of `other`, an algorithm in this process, with new exploration and episodes."""
        self.stack.core.take_over(other.stack.core)
        self.env_steps, self._num_updates = other.env_steps, other._num_updates
        self.latest_evaluation, self._began = other.latest_evaluation, other._began
        self.extremes, self.origin_digest = dict(other.extremes), other.origin_digest
        self.stack.join(self.env_steps)

    def is_savable(self) -> bool:
        """Whether a checkpoint taken now holds the exact state of every environment; a restore rebuilds the others."""
        return self.stack.is_savable()

    @override(SavedAlgorithm)
    def _progress(self) -> dict[str, Any]:
        return {
            "env_steps": self.env_steps,
            "num_updates": self._num_updates,
            "env_restarts": self.env_restarts,
            "training_costs": self.training_costs.get_state(),
            "origin_digest": self.origin_digest,
            "extremes": dict(self.extremes),
            "latest_evaluation": self.latest_evaluation,
            "owes_evaluation": self.lacks_evaluation,
            "evaluations": self.evaluation_runners.get_state(),
            "wall_time_s": time.perf_counter() - self._began,
            "total_rows": self.stack.call_core("total_rows"),
            **self.stack.get_state(),
        }

    @override(SavedAlgorithm)
    def _set_progress(self, progress: dict[str, Any]) -> None:
        if len(self.evaluation_runners):  # their rows belong to the state that is replaced
            self._collect_evaluations(at_least=self.evaluation_runners.num_pending)
        self.env_steps, self._num_updates = progress["env_steps"], progress["num_updates"]
        self.env_restarts = progress.get("env_restarts", 0)
        self.training_costs.set_state(progress.get("training_costs", {}))
        self.extremes = dict(progress.get("extremes", {}))
        self.origin_digest, self._lacks_origin = progress.get("origin_digest", ""), None
        self.latest_evaluation = progress["latest_evaluation"]
        self.lacks_evaluation = progress.get("owes_evaluation", False)
        self.evaluation_runners.set_state(progress.get("evaluations", []))
        self._began = time.perf_counter() - progress["wall_time_s"]
        self.stack.set_state(progress)
        expected = progress.get("total_rows", int(self.env_steps > 0))  # earlier versions did not say
        self.lacks_replay = self.stack.call_core("total_rows") < expected


ActorCriticConfig.default_algo_class = ActorCriticAlgorithm
__getattr__ = moved_names(__name__)

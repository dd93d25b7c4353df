"""Evaluate an algorithm on schedule: play episodes, report results, and write one row for each evaluation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EPISODE_LEN_MEAN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
    NUM_EPISODES,
)

from rllib_hpo.algorithms.base import Actor
from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.results.provenance import provenance
from rllib_hpo.results.schema import (
    COST_COLUMNS,
    SUCCESS_RATE,
    EvaluationRow,
    canonical_json,
    config_hash,
    episode_statistics,
)
from rllib_hpo.results.writer import write_row
from rllib_hpo.rllib.environment import EvaluationEnvironments, label
from rllib_hpo.rllib.evaluation import (
    Evaluation,
    EvaluationStopped,
    Watch,
    cost_columns,
    cost_gamma,
    episode_seeds,
    evaluate,
    off_schedule_seeds,
    outcome_columns,
    success_columns,
    warn_truncated,
)
from rllib_hpo.rllib.new_stack.evaluation_runners import EvaluationRequest
from rllib_hpo.rllib.saving import SavedAlgorithm
from rllib_hpo.rllib.training_costs import TrainingCosts
from rllib_hpo.settings import Settings

_logger = logging.getLogger(__name__)


class EvaluatedAlgorithm(SavedAlgorithm):
    """An RLlib Algorithm that plays its evaluations on schedule, now or beside training."""

    settings: Settings
    training_costs: TrainingCosts
    env_restarts: int
    evaluation_steps: int
    extremes: dict[str, float]
    lacks_evaluation: bool
    latest_evaluation: dict[str, Any] | None
    on_row: Callable[[Path], None] | None
    on_warning: Callable[[str, int], None] | None
    stop_requested: bool
    _began: float
    _evaluation_environments: EvaluationEnvironments
    _has_warned_of_cut: bool
    _num_updates: int
    _warned_of: set[str]

    @property
    def actor(self) -> Actor:
        """The actor of evaluations; it has the newest weights after an `evaluate()`."""
        return self.stack.actor

    def run_config(self) -> dict[str, Any]:
        """All values that determine this run's numbers."""
        raise NotImplementedError

    def _evaluate_and_record(self) -> None:
        """Play the evaluation of this step: now, or beside training if there are evaluation runners.

        Raises:
            EvaluationStopped: If a stop was requested before; then `lacks_evaluation` is set.
        """
        self.lacks_evaluation = True
        if not len(self.evaluation_runners):
            self._watch(0)
            due = self._request_evaluation()
            self._record_evaluation(due, self._play(due, self._watch))
        else:
            if not self.evaluation_runners.has_room:
                self._collect_evaluations(at_least=1)
            if not self.evaluation_runners.has_room:
                raise EvaluationStopped
            self._run_callbacks("on_evaluate_start")
            self.evaluation_runners.begin(self._request_evaluation(), self.stack.frozen_weights().state)
        self.lacks_evaluation = False

    def _watch(self, num_steps: int) -> None:
        """Follow an evaluation that has played `num_steps`; raise EvaluationStopped if a stop was requested."""
        self.evaluation_steps = num_steps
        if self.stop_requested:
            raise EvaluationStopped

    def _collect_evaluations(self, *, at_least: int = 0) -> None:
        for due, played in self.evaluation_runners.concluded(at_least=at_least):
            self._record_evaluation(due, played)

    def _record_evaluation(self, due: EvaluationRequest, played: Evaluation) -> None:
        """Report an evaluation to schedulers, and write its row before training continues."""
        self._warn_of_concerns(due)
        statistics = self._statistics(played)
        self.latest_evaluation = self._result(due, played, statistics)
        if self.config.results_dir is not None:
            self._write_row(due, played, statistics, Path(self.config.results_dir))

    def _warn_of_concerns(self, due: EvaluationRequest) -> None:
        """Log what the method finds worrying in the diagnostics, each concern once."""
        for name, sentence in make_method(self.settings).concerns(due.diagnostics).items():
            if name in self._warned_of:
                continue
            self._warned_of.add(name)
            _logger.warning("%s", sentence)
            if self.on_warning is not None:
                self.on_warning(sentence, due.env_steps)

    @override(Algorithm)
    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Play noise-free episodes now, in this process, with the newest weights, without writing a row.

        Replaces RLlib's evaluation, whose deterministic actions skip the tanh and whose seeds repeat.
        """
        due = self._request_evaluation()
        played = self._play(due)
        return self._result(due, played, self._statistics(played))

    def _statistics(self, played: Evaluation) -> dict[str, Any]:
        """Columns of the row that follow from returns, lengths and costs of the episodes."""
        return {
            **episode_statistics(played.returns, played.lengths),
            **cost_columns(played, self.settings),
            **success_columns(played),
        }

    def _request_evaluation(self) -> EvaluationRequest:
        """The evaluation of the current weights."""
        number, rest = divmod(self.env_steps, self.settings.evaluation_every)
        seed, episodes = self.run_seed, self.settings.evaluation_episodes
        return EvaluationRequest(
            env_steps=self.env_steps,
            updates=self._num_updates,
            seeds=off_schedule_seeds(seed, self.env_steps, episodes)
            if rest
            else episode_seeds(seed, number, episodes),
            wrapper_state=self.stack.wrapper_state(),
            diagnostics={
                **self.stack.call_core("latest_diagnostics"),
                **self.training_costs.numbers(),
                **self.extremes,
            },
        )

    def _play(self, due: EvaluationRequest, watch: Watch | None = None) -> Evaluation:
        self._run_callbacks("on_evaluate_start")
        self.stack.refresh_actor()
        make = self._evaluation_environments
        make.module = None if self.config.is_old_stack else self.env_runner.module
        try:
            played = evaluate(
                self.actor,
                make,
                due.seeds,
                due.wrapper_state,
                max_episode_steps=self.settings.evaluation_max_episode_steps,
                watch=watch,
                cost_gamma=cost_gamma(self.settings),
                callbacks=None if self.config.is_old_stack else make.callbacks,
            )
        finally:
            self.evaluation_steps = 0
        return played._replace(logged=make.pop_metrics())

    def _result(
        self, due: EvaluationRequest, played: Evaluation, statistics: dict[str, Any]
    ) -> dict[str, Any]:
        """The entry of RLlib's results for an evaluation. Warn of the first one whose episodes were cut."""
        if not self._has_warned_of_cut:
            limit = self.settings.evaluation_max_episode_steps
            self._has_warned_of_cut = warn_truncated(played, label(self.config.env), limit)
        evaluation = {
            ENV_RUNNER_RESULTS: {
                **played.logged,
                NUM_EPISODES: len(played.returns),
                EPISODE_RETURN_MEAN: statistics["return_mean"],
                EPISODE_RETURN_MIN: min(played.returns),
                EPISODE_RETURN_MAX: max(played.returns),
                EPISODE_LEN_MEAN: statistics["episode_length_mean"],
                "episode_return_std": statistics["return_std"],
                "episodes_cut": played.episodes_cut,
                **{name: statistics[name] for name in (SUCCESS_RATE, *COST_COLUMNS) if name in statistics},
            },
            "env_steps": due.env_steps,
        }
        if outcome := outcome_columns(played, due.env_steps):
            evaluation["outcome"] = outcome
        self._run_callbacks("on_evaluate_end", evaluation_metrics=evaluation)
        return evaluation

    def _run_callbacks(self, name: str, **kwargs: Any) -> None:
        make_callback(
            name,
            callbacks_objects=self.callbacks,
            callbacks_functions=getattr(self.config, f"callbacks_{name}"),
            kwargs={"algorithm": self, "metrics_logger": self.metrics, **kwargs},
        )

    def _write_row(
        self, due: EvaluationRequest, played: Evaluation, statistics: dict[str, Any], results_dir: Path
    ) -> None:
        config = self.run_config()
        columns = {**statistics, **provenance(self._device_name())}
        row = EvaluationRow(
            sweep=self.config.sweep or "none",
            algorithm=self.config.algorithm,
            variant=self.config.variant or "default",
            task=config["task"],
            env_id=str(config["env"]),
            seed=self.run_seed,
            env_steps=due.env_steps,
            weights_env_steps=due.env_steps,
            updates=due.updates,
            diagnostics={**due.diagnostics, **outcome_columns(played, due.env_steps)},
            episodes_cut=played.episodes_cut,
            env_restarts=self.env_restarts,
            eval_sampler=self.settings.evaluation_sampler(),
            config_json=canonical_json(config),
            config_hash=config_hash(config),
            wall_time_s=time.perf_counter() - self._began,
            trial_id=self.config.trial_id or config_hash(config),
            **columns,
        )
        path = write_row(results_dir, row)
        if self.on_row is not None:
            self.on_row(path)

    def _device_name(self) -> str:
        name: str = self.stack.call_core("device_name")
        return name

"""Evaluations that run beside training, on CPU actors of their own, with frozen weights.

One runs on each evaluation runner at a time, whole, so its numbers are bitwise those of an evaluation in the
driver; except where the driver's learner is on a GPU, whose arithmetic differs in the last digits.
None is skipped: when one is due and all runners are at work, training waits for the oldest, and a run that stops or
goes back to a checkpoint waits for all. A checkpoint holds those that are pending: where the run is killed instead,
whoever goes on with it makes them up, and a row that was written already is replaced by the same one.
They are concluded in the order of their steps. A runner that dies is replaced by Ray, and its evaluation repeated.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES

from rllib_hpo.errors import NonFiniteError, UserError
from rllib_hpo.rllib import stack
from rllib_hpo.rllib.environment import EvaluationEnvironments, environment_maker
from rllib_hpo.rllib.evaluation import Evaluation, EvaluationStopped, Watch, cost_gamma, evaluate
from rllib_hpo.rllib.remote import fetch
from rllib_hpo.rllib.torch_options import set_torch_options
from rllib_hpo.tasks import boundary

_logger = logging.getLogger(__name__)
MAX_RETRIES = 3
"""How often an evaluation whose process died is repeated."""
_WATCH_INTERVAL_S = 0.5
"""How often a wait for an evaluation checks whether a stop was requested."""


class DueEvaluation(NamedTuple):
    """An evaluation, and where the run was when it was due."""

    env_steps: int
    updates: int
    """Behind the weights."""
    seeds: list[int]
    """Of the episodes."""
    wrapper_state: list[tuple[str, Any]]
    """See `rllib_hpo.tasks.wrappers`."""
    diagnostics: dict[str, float]
    """The sampler's latest."""


class EvaluationRunner:
    """Plays noise-free episodes with the weights that it is given."""

    def __init__(self, config: Any, worker_index: int = 0) -> None:
        set_torch_options(config.num_torch_threads)
        settings = config.settings()
        self._max_episode_steps = settings.evaluation_max_episode_steps
        self._cost_gamma = cost_gamma(settings)
        self._failure: UserError | None = None
        try:
            self._build(config, worker_index)
        except UserError as error:
            self._failure = error  # Ray would hand on its text only

    def _build(self, config: Any, worker_index: int) -> None:
        self._make = EvaluationEnvironments(config, worker_index)
        env = environment_maker(config, training=False)()
        spaces = (env.observation_space, env.action_space)
        spec = config.get_rl_module_spec(
            spaces={INPUT_ENV_SPACES: spaces, INPUT_ENV_SINGLE_SPACES: spaces, DEFAULT_MODULE_ID: spaces},
            inference_only=True,
        )
        self._module = spec.build()
        boundary.close(env)

    def ping(self) -> None:
        """Answers once the constructor is done; raises what it raised."""
        if self._failure is not None:
            raise self._failure

    def evaluate(self, weights: dict[str, Any], due: DueEvaluation, watch: Watch | None = None) -> Evaluation:
        """As `rllib_hpo.rllib.evaluation.evaluate`."""
        self.ping()
        self._module.set_state(weights)
        return evaluate(
            self._module.model,
            self._make,
            due.seeds,
            due.wrapper_state,
            max_episode_steps=self._max_episode_steps,
            watch=watch,
            cost_gamma=self._cost_gamma,
        )


@dataclass
class _Pending:
    due: DueEvaluation
    weights: ray.ObjectRef | dict[str, Any]
    runner: Any = None
    played: ray.ObjectRef | None = None


class EvaluationRunners:
    """The actors, and what they are at work on. Without any, it holds what a checkpoint left to be made up.

    Args:
        config: Of the algorithm; `evaluation_num_env_runners` is their number.
        watch: Called with the steps played while an evaluation is waited for; may raise `EvaluationStopped`.

    Raises:
        UserError: If there are not as many after `stack.RUNNER_PATIENCE_S`, or one cannot be made.
    """

    def __init__(self, config: Any, watch: Watch | None = None) -> None:
        self._config, self._watch = config, watch
        runner = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=MAX_RETRIES)(EvaluationRunner)
        self._runners = [runner.remote(config, i + 1) for i in range(config.evaluation_num_env_runners)]
        self._pending: deque[_Pending] = deque()
        self.waited_s = 0.0
        """How long training has waited for evaluations since this was last set to 0."""
        try:
            self._wait_for_all()
        except BaseException:
            self.stop()
            raise

    def _wait_for_all(self) -> None:
        """Else the first evaluation would be waited for instead, without a limit."""
        if not self._runners:
            return
        pings, number = [runner.ping.remote() for runner in self._runners], len(self._runners)
        in_silence = stack.RUNNER_PATIENCE_S / 20
        there, missing = ray.wait(pings, num_returns=number, timeout=in_silence)
        if missing:
            _logger.warning("Waiting for %d of %d evaluation runners: %s", len(missing), number, _free_cpus())
            there, missing = ray.wait(pings, num_returns=number, timeout=stack.RUNNER_PATIENCE_S - in_silence)
        for ping in there:
            try:
                fetch(ping)
            except RayActorError as error:  # its text has the traceback of what the constructor raised
                raise UserError(f"An evaluation runner could not be made: {error}") from error
        if missing:
            raise UserError(
                f"Of evaluation_num_env_runners={number} only {len(there)} started within "
                f"{stack.RUNNER_PATIENCE_S:.0f} seconds: {_free_cpus()}"
            )

    def __len__(self) -> int:
        return len(self._runners)

    @property
    def num_pending(self) -> int:
        """Evaluations that were begun and are not concluded."""
        return len(self._pending)

    @property
    def has_room(self) -> bool:
        """Whether one more can be begun."""
        return len(self._pending) < len(self._runners)

    def begin(self, due: DueEvaluation, weights: ray.ObjectRef) -> None:
        """Begins an evaluation on a runner that has none; `has_room` says if there is one."""
        self._pending.append(_Pending(due, weights))
        self._assign()

    def _assign(self) -> None:
        """Gives those without a runner to runners without one, oldest first."""
        free = [runner for runner in self._runners if all(p.runner is not runner for p in self._pending)]
        waiting = [pending for pending in self._pending if pending.runner is None]
        for pending, runner in zip(waiting, free, strict=False):
            pending.runner = runner
            pending.played = runner.evaluate.remote(pending.weights, pending.due)

    def concluded(self, *, at_least: int = 0) -> Iterator[tuple[DueEvaluation, Evaluation]]:
        """Those that have ended, in the order of their steps; waits for `at_least` so many.

        Raises:
            NonFiniteError: If an observation or reward is not finite.
            UserError: If an evaluation ended its process again and again.
        """
        while self._pending and (at_least > 0 or self._is_ready(self._pending[0])):
            ended = self._pending.popleft()  # also one that failed
            try:
                played = self._played(ended)
            except EvaluationStopped:
                self._pending.appendleft(ended)
                return
            at_least -= 1
            self._assign()
            yield ended.due, played

    def _is_ready(self, pending: _Pending) -> bool:
        # Without runners: what is left to be made up is made up here, now.
        return pending.played is None or bool(ray.wait([pending.played], timeout=0)[0])

    def _played(self, pending: _Pending) -> Evaluation:
        began, steps = time.perf_counter(), pending.due.env_steps
        try:
            if pending.played is None:
                runner = EvaluationRunner(self._config)
                return runner.evaluate(_at_hand(pending.weights), pending.due, self._watch)
            while self._watch and not ray.wait([pending.played], timeout=_WATCH_INTERVAL_S)[0]:
                self._watch(0)
            played: Evaluation = fetch(pending.played)
        except RayActorError as error:
            if error.actor_init_failed:
                raise UserError(f"An evaluation runner could not be made again: {error}") from error
            raise UserError(
                f"The evaluation of the weights of step {steps} ended its process {MAX_RETRIES + 1} times: {error}"
            ) from error
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} of the weights of step {steps}") from error
        finally:
            self.waited_s += time.perf_counter() - began
        return played

    def get_state(self) -> list[dict[str, Any]]:
        """What is pending, weights and all: where a run is killed, the one that goes on with it makes it up."""
        return [{"due": p.due._asdict(), "weights": _at_hand(p.weights)} for p in self._pending]

    def set_state(self, state: list[dict[str, Any]]) -> None:
        """Begins what was pending again; what is pending here is given up."""
        old, self._pending = self._pending, deque()
        for pending in old:
            if pending.played is not None:
                ray.cancel(pending.played)
        for entry in state:
            due, weights = DueEvaluation(**entry["due"]), entry["weights"]
            self._pending.append(_Pending(due, ray.put(weights) if self._runners else weights))
        self._assign()

    def stop(self) -> None:
        """Ends the actors, and gives up what is pending."""
        self._pending.clear()
        for runner in self._runners:
            ray.kill(runner)
        self._runners = []


def _free_cpus() -> str:
    has, free = (
        resources.get("CPU", 0) for resources in (ray.cluster_resources(), ray.available_resources())
    )
    return f"each needs a CPU, and of the {has:g} CPUs of the Ray cluster {free:g} are free."


def _at_hand(weights: ray.ObjectRef | dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights
    return state

"""Run evaluations beside training, on CPU actors, with frozen weights.

Each runner plays one whole evaluation at a time, so its numbers are bitwise those of an evaluation in the driver
(except where the driver's learner is on a GPU, whose arithmetic differs in the last digits). No evaluation is skipped:
when one is due and all runners are busy, training waits for the oldest; a run that stops or is restored waits for all.
A checkpoint holds the pending evaluations. If the run is killed, the resumed run repeats them, and a row that was
already written is replaced by an equal one. Results come in the order of their steps. Ray replaces a runner that dies,
and its evaluation is repeated.
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
"""How often an evaluation is repeated after its process died."""
_WATCH_INTERVAL_S = 0.5
"""Seconds between checks for a requested stop, while waiting for an evaluation."""


class EvaluationRequest(NamedTuple):
    """An evaluation to play, and the state of the run when it was due."""

    env_steps: int
    updates: int
    """Number of updates made before."""
    seeds: list[int]
    """One seed for each episode."""
    wrapper_state: list[tuple[str, Any]]
    """State of the environment's wrappers: see `rllib_hpo.tasks.wrappers`."""
    diagnostics: dict[str, float]
    """The sampler's latest diagnostics."""


class EvaluationRunner:
    """Play noise-free episodes with given weights."""

    def __init__(self, config: Any, worker_index: int = 0) -> None:
        set_torch_options(config.num_torch_threads)
        settings = config.settings()
        self._max_episode_steps = settings.evaluation_max_episode_steps
        self._cost_gamma = cost_gamma(settings)
        self._failure: UserError | None = None
        try:
            self._build(config, worker_index)
        except UserError as error:
            self._failure = error  # Ray would pass on only its text

    def _build(self, config: Any, worker_index: int) -> None:
        self._make = EvaluationEnvironments(config, worker_index)
        env = environment_maker(config, training=False)()
        spaces = (env.observation_space, env.action_space)
        spec = config.get_rl_module_spec(
            spaces={INPUT_ENV_SPACES: spaces, INPUT_ENV_SINGLE_SPACES: spaces, DEFAULT_MODULE_ID: spaces},
            inference_only=True,
        )
        self._module = self._make.module = spec.build()
        boundary.close(env)

    def ping(self) -> None:
        """Return when the constructor is done; raise the error that it stored."""
        if self._failure is not None:
            raise self._failure

    def evaluate(
        self, weights: dict[str, Any], due: EvaluationRequest, watch: Watch | None = None
    ) -> Evaluation:
        """Play an evaluation: see `rllib_hpo.rllib.evaluation.evaluate`."""
        self.ping()
        self._module.set_state(weights)
        played = evaluate(
            self._module.model,
            self._make,
            due.seeds,
            due.wrapper_state,
            max_episode_steps=self._max_episode_steps,
            watch=watch,
            cost_gamma=self._cost_gamma,
            callbacks=self._make.callbacks,
        )
        return played._replace(logged=self._make.pop_metrics())


@dataclass
class _Pending:
    due: EvaluationRequest
    weights: ray.ObjectRef | dict[str, Any]
    runner: Any = None
    played: ray.ObjectRef | None = None


class EvaluationRunners:
    """Evaluation actors and pending evaluations. Without actors, it holds those that a checkpoint left pending.

    Args:
        config: The algorithm's config; `evaluation_num_env_runners` is the number of actors.
        watch: Function to call while waiting, with the steps played; it may raise `EvaluationStopped`.

    Raises:
        UserError: If not all actors have started after `stack.RUNNER_TIMEOUT_S`, or one cannot be made.
    """

    def __init__(self, config: Any, watch: Watch | None = None) -> None:
        self._config, self._watch = config, watch
        runner = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=MAX_RETRIES)(EvaluationRunner)
        self._runners = [runner.remote(config, i + 1) for i in range(config.evaluation_num_env_runners)]
        self._pending: deque[_Pending] = deque()
        self.waited_s = 0.0
        """Seconds that training has waited for evaluations since this was last set to 0."""
        try:
            self._wait_for_all()
        except BaseException:
            self.stop()
            raise

    def _wait_for_all(self) -> None:
        """Wait for all actors with a timeout; otherwise the first evaluation would block without one."""
        if not self._runners:
            return
        pings, number = [runner.ping.remote() for runner in self._runners], len(self._runners)
        in_silence = stack.RUNNER_TIMEOUT_S / 20
        there, missing = ray.wait(pings, num_returns=number, timeout=in_silence)
        if missing:
            _logger.warning("Waiting for %d of %d evaluation runners: %s", len(missing), number, _free_cpus())
            there, missing = ray.wait(pings, num_returns=number, timeout=stack.RUNNER_TIMEOUT_S - in_silence)
        for ping in there:
            try:
                fetch(ping)
            except RayActorError as error:  # its text has the traceback of what the constructor raised
                raise UserError(f"An evaluation runner could not be created: {error}") from error
        if missing:
            raise UserError(
                f"Only {len(there)} of evaluation_num_env_runners={number} evaluation runners started within "
                f"{stack.RUNNER_TIMEOUT_S:.0f} seconds: {_free_cpus()}"
            )

    def __len__(self) -> int:
        return len(self._runners)

    @property
    def num_pending(self) -> int:
        """Number of evaluations without a result."""
        return len(self._pending)

    @property
    def has_room(self) -> bool:
        """Whether another evaluation can begin."""
        return len(self._pending) < len(self._runners)

    def begin(self, due: EvaluationRequest, weights: ray.ObjectRef) -> None:
        """Begin an evaluation on an idle runner; check `has_room` before."""
        self._pending.append(_Pending(due, weights))
        self._assign()

    def _assign(self) -> None:
        """Assign pending evaluations to idle runners, oldest first."""
        free = [runner for runner in self._runners if all(p.runner is not runner for p in self._pending)]
        waiting = [pending for pending in self._pending if pending.runner is None]
        for pending, runner in zip(waiting, free, strict=False):
            pending.runner = runner
            pending.played = runner.evaluate.remote(pending.weights, pending.due)

    def concluded(self, *, at_least: int = 0) -> Iterator[tuple[EvaluationRequest, Evaluation]]:
        """Results in the order of their steps; wait for at least `at_least` of them.

        Raises:
            NonFiniteError: If an observation or reward is not finite.
            UserError: If the process of an evaluation died too often.
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
        # Without runners, pending evaluations run now, in this process.
        return pending.played is None or bool(ray.wait([pending.played], timeout=0)[0])

    def _played(self, pending: _Pending) -> Evaluation:
        began, steps = time.perf_counter(), pending.due.env_steps
        try:
            if pending.played is None:
                runner = EvaluationRunner(self._config)
                return runner.evaluate(_fetched(pending.weights), pending.due, self._watch)
            while self._watch and not ray.wait([pending.played], timeout=_WATCH_INTERVAL_S)[0]:
                self._watch(0)
            played: Evaluation = fetch(pending.played)
        except RayActorError as error:
            if error.actor_init_failed:
                raise UserError(f"An evaluation runner could not be restarted: {error}") from error
            raise UserError(
                f"The process of the evaluation at step {steps} died {MAX_RETRIES + 1} times: {error}"
            ) from error
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}, with the weights of step {steps}") from error
        finally:
            self.waited_s += time.perf_counter() - began
        return played

    def get_state(self) -> list[dict[str, Any]]:
        """Pending evaluations with their weights, for the run that resumes this one."""
        return [{"due": p.due._asdict(), "weights": _fetched(p.weights)} for p in self._pending]

    def set_state(self, state: list[dict[str, Any]]) -> None:
        """Replace the pending evaluations by those of a state, and begin them again."""
        old, self._pending = self._pending, deque()
        for pending in old:
            if pending.played is not None:
                ray.cancel(pending.played)
        for entry in state:
            due, weights = EvaluationRequest(**entry["due"]), entry["weights"]
            self._pending.append(_Pending(due, ray.put(weights) if self._runners else weights))
        self._assign()

    def stop(self) -> None:
        """Kill the actors and discard pending evaluations."""
        self._pending.clear()
        for runner in self._runners:
            ray.kill(runner)
        self._runners = []


def _free_cpus() -> str:
    has, free = (
        resources.get("CPU", 0) for resources in (ray.cluster_resources(), ray.available_resources())
    )
    return f"each needs a CPU, and {free:g} of the Ray cluster's {has:g} CPUs are free."


def _fetched(weights: ray.ObjectRef | dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights
    return state

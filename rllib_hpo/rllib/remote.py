"""Calls to runners and learners, wherever they live, and what is made of their failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError, UnserializableException
from ray.rllib.utils.actor_manager import RemoteCallResults

from rllib_hpo.errors import LearnerLostError, UserError
from rllib_hpo.rllib.env_runner import ColumnarEnvRunner, Rollout


@contextmanager
def without_object_store(local: bool) -> Iterator[None]:
    """Keeps RLlib from starting a Ray cluster for an algorithm without actors (`local`).

    EnvRunnerGroup puts its config and weights into the object store even if no actor will ever fetch them;
    where Ray does not run yet, that starts eight processes that listen on the network, for nothing.
    """
    put = ray.put
    if local and not ray.is_initialized():
        ray.put = lambda value, **_: value
    try:
        yield
    finally:
        ray.put = put


class Call:
    """A method call that travels to an actor."""

    def __init__(self, method: str, *args: Any) -> None:
        self.method, self.args = method, args

    def __call__(self, target: Any, **_: Any) -> Any:
        """Runs where the actor is."""
        return getattr(target, self.method)(*self.args)


class CoreCall(Call):
    """A method call that travels to what learns inside an RLlib Learner."""

    def __call__(self, target: Any, **_: Any) -> Any:
        """Runs where the learner is."""
        return super().__call__(target.core)


class SampleRequest:
    """A request for samples that travels to a runner, with the weights to act with."""

    def __init__(
        self, state: dict[str, Any], num_steps: int, random_actions: bool, env_steps: int, seed: int
    ) -> None:
        self.state, self.num_steps, self.random_actions = state, num_steps, random_actions
        self.env_steps, self.seed = env_steps, seed

    def __call__(self, runner: ColumnarEnvRunner) -> Rollout:
        """Runs where the runner is."""
        runner.join(self.env_steps, self.seed)
        runner.set_state(self.state)
        return runner.sample(num_steps=self.num_steps, random_actions=self.random_actions)


def successes(results: RemoteCallResults) -> list[Any]:
    """The results that arrived. Actors that died are left out; an error in our code or the user's is raised.

    RLlib's own handling would log such an error and go on without the runner.
    """
    arrived = []
    for result in results:
        if result.ok:
            arrived.append(result.get())
        elif isinstance(result.get(), RayTaskError):
            raise result.get().cause from result.get()  # whose text is the traceback over there
        elif isinstance(result.get(), UnserializableException):  # the user's, too, and holds its traceback
            raise result.get()
    return arrived


def rollouts_of(results: RemoteCallResults, config: Any) -> list[Any]:
    """What the runners handed on that live.

    Raises:
        UserError: If one died and the config does not tolerate it.
    """
    arrived = successes(results)  # an error of the user's says more than a death
    tolerant = config.restart_failed_env_runners or config.ignore_env_runner_failures
    if not (tolerant or all(result.ok for result in results)):
        raise UserError("An environment runner died, and restart_failed_env_runners is off.")
    return arrived


def only_success(results: RemoteCallResults) -> Any:
    """The one learner's result.

    Raises:
        LearnerLostError: If the learner's process is gone.
    """
    arrived = successes(results)
    if not arrived:
        raise LearnerLostError("The remote learner died; resume the run from its last checkpoint.")
    return arrived[0]


def share_out(total: int, num: int) -> list[int]:
    """`total` in `num` whole parts that differ by at most one."""
    return [int(part) for part in np.diff(np.linspace(0, total, num + 1).astype(int))]

"""Calls to runners and learners, wherever they live, and what is made of their failures."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayTaskError, UnserializableException
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.utils.actor_manager import RemoteCallResults
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_hpo.algorithms.base import Episode
from rllib_hpo.errors import UserError, WorkerDiedError
from rllib_hpo.optim.replicas import ONE_LOST
from rllib_hpo.rllib import _private
from rllib_hpo.rllib.new_stack.env_runner import ColumnarEnvRunner


@contextmanager
def without_object_store(local: bool) -> Iterator[None]:
    """Keeps RLlib from starting a Ray cluster for an algorithm without actors (`local`)."""
    with _private.without_object_store() if local and not ray.is_initialized() else nullcontext():
        yield


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


class Weights(NamedTuple):
    """What acts, numbered by the updates behind it."""

    number: int
    state: ray.ObjectRef
    """Of `ActorCriticLearner.acting_state`."""
    num_bytes: int
    """Of the state, pickled; taken where it was made, once."""

    def give_to(self, runner: ColumnarEnvRunner) -> int:
        """Runs where the runner is, and fetches nothing that it has already; the bytes it fetched."""
        if runner.weights_id == self.state.hex():
            return 0
        runner.set_state({COMPONENT_RL_MODULE: self.state, WEIGHTS_SEQ_NO: self.number})
        runner.weights_id = self.state.hex()
        return self.num_bytes


class Sampled(NamedTuple):
    """What the driver hears of a rollout; its rows travel beside it, and not through the driver's Python."""

    num_rows: int
    episodes: list[Episode]
    weights_seq_no: int
    """Number of the weights that acted."""
    waited_s: float
    """How long the runner had nothing to do before."""
    weights_bytes: int
    """Of the weights that it fetched for this; 0 where it had them."""
    num_bytes: int
    """Of the rows and all that travels with them, pickled."""


class SampleRequest(NamedTuple):
    """A request for samples that travels to a runner."""

    weights: Weights
    num_steps: int
    random_actions: bool
    joins_at: int
    """Where the run is for a runner that takes part for the first time: see `ColumnarEnvRunner.join`."""
    seed: int

    def __call__(self, runner: ColumnarEnvRunner) -> tuple[Sampled, npt.NDArray[np.float32]]:
        """Runs where the runner is."""
        waited_s = since(runner.idle_since)
        runner.join(self.joins_at, self.seed)
        weights_bytes = 0 if self.random_actions else self.weights.give_to(runner)
        rollout = runner.sample(num_steps=self.num_steps, random_actions=self.random_actions)
        sampled = Sampled(
            len(rollout.rows), rollout.episodes, rollout.weights_seq_no, waited_s, weights_bytes, num_bytes=0
        )
        num_bytes = pickled_bytes(rollout.rows) + pickled_bytes(sampled)
        runner.idle_since = time.perf_counter()
        return sampled._replace(num_bytes=num_bytes), rollout.rows


class Learned(NamedTuple):
    """What the driver hears of a block that was learned from; new weights travel beside it."""

    waited_s: float
    """How long the learner had nothing to do before."""
    weights_bytes: int
    """Of the weights beside it, pickled; 0 without any."""


class TrainCall(NamedTuple):
    """Rows and their updates that travel to a remote learner; the rows come beside it."""

    rows: slice
    num_updates: int
    gives_weights: bool = True
    """Whether the weights are wanted if they move; of several learners, one's are enough."""
    episodes: Sequence[Episode] = ()
    """That ended in the rows; every learner is told of them."""
    keeps_rows: bool = True
    """Whether the replay there gets the rows; else they are for the method to see."""

    def __call__(
        self, learner: Any, rows: npt.NDArray[np.float32] | None = None
    ) -> tuple[Learned, dict[str, Any] | None]:
        """Runs where the learner is; rows that it need not have are None here.

        Returns:
            What the driver hears, and the weights if they are wanted and moved.
        """
        waited_s = since(learner.idle_since)
        own = None if rows is None else rows[self.rows]
        learner.core.add_transitions(own, self.episodes, keep=self.keeps_rows)
        learner.core.update_from_replay(self.num_updates)
        learner.idle_since = time.perf_counter()
        weights = learner.acting_state() if self.gives_weights and self.num_updates else None
        return Learned(waited_s, 0 if weights is None else pickled_bytes(weights)), weights


def since(moment: float | None) -> float:
    """Seconds from `moment` of `time.perf_counter()` to now; none have passed since None."""
    return 0.0 if moment is None else time.perf_counter() - moment


def pickled_bytes(value: Any) -> int:
    """Bytes of `value` as Ray sends it: the pickle and the buffers beside it."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return len(pickled) + sum(buffer.raw().nbytes for buffer in buffers)


def fetch(ref: ray.ObjectRef) -> Any:
    """What a call to an actor that is over returned; an error in our code or the user's is raised as it was.

    Raises:
        RayActorError: If the actor died instead.
    """
    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise error.cause from error  # whose text is the traceback over there


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
    if not all(result.ok for result in results):
        check_tolerated(config)
    return arrived


def check_tolerated(
    config: Any, what: str = "An environment runner died", error: BaseException | None = None
) -> None:
    """Does nothing about the loss of a runner where the config tolerates it.

    Args:
        config: Of the algorithm.
        what: Became of the runner.
        error: By which that was found.

    Raises:
        UserError: Where it does not.
    """
    if not (config.restart_failed_env_runners or config.ignore_env_runner_failures):
        raise UserError(f"{what}, and restart_failed_env_runners is off.") from error


def refuse_all_dead(manager: Any, config: Any) -> None:
    """Does nothing as long as one runner lives, or Ray will start one again.

    Args:
        manager: RLlib's manager of the runners.
        config: Of the algorithm.

    Raises:
        WorkerDiedError: If all are dead for good.
    """
    actors = manager.actors().values()
    if manager.num_healthy_actors() or not all(_private.is_dead_for_good(actor) for actor in actors):
        return
    why = "restart_failed_env_runners is off"
    if config.restart_failed_env_runners:
        why = f"max_num_env_runner_restarts={config.max_num_env_runner_restarts} is used up"
    raise WorkerDiedError(
        f"All {len(actors)} environment runners died, and {why}; Ray's logs say why they died; resume the run from its "
        "last checkpoint."
    )


def only_success(results: RemoteCallResults) -> Any:
    """The one learner's result.

    Raises:
        WorkerDiedError: If the learner's process is gone.
    """
    arrived = successes(results)
    if not arrived:
        raise WorkerDiedError(ONE_LOST)
    return arrived[0]


def share_out(total: int, num: int) -> list[int]:
    """`total` in `num` whole parts that differ by at most one."""
    return [int(part) for part in np.diff(np.linspace(0, total, num + 1).astype(int))]

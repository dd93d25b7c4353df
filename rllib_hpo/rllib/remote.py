"""Calls to runners and learners, and the handling of their failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray.exceptions import RayTaskError, UnserializableException
from ray.rllib.utils.actor_manager import RemoteCallResults

from rllib_hpo.errors import UserError, WorkerDiedError
from rllib_hpo.rllib import _private


@contextmanager
def without_object_store(local: bool) -> Iterator[None]:
    """Keeps RLlib from starting a Ray cluster for an algorithm without actors (`local`)."""
    with _private.without_object_store() if local and not ray.is_initialized() else nullcontext():
        yield


class Call:
    """A method call that an actor executes."""

    def __init__(self, method: str, *args: Any) -> None:
        self.method, self.args = method, args

    def __call__(self, target: Any, **_: Any) -> Any:
        """Call the method in the actor's process."""
        return getattr(target, self.method)(*self.args)


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


def check_any_alive(manager: Any, config: Any) -> None:
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

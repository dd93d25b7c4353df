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
    """Keep RLlib from starting a Ray cluster for an algorithm without actors (`local`)."""
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
    """The result of a finished call to an actor; the actor's error is raised as it was.

    Raises:
        RayActorError: If the actor died instead.
    """
    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise error.cause from error  # its text has the actor's traceback


def successes(results: RemoteCallResults) -> list[Any]:
    """Results without those of dead actors; an actor's error is raised.

    RLlib would log such an error and continue without the runner.
    """
    arrived = []
    for result in results:
        if result.ok:
            arrived.append(result.get())
        elif isinstance(result.get(), RayTaskError):
            raise result.get().cause from result.get()  # its text has the actor's traceback
        elif isinstance(result.get(), UnserializableException):  # a user's, with its traceback
            raise result.get()
    return arrived


def live_results(results: RemoteCallResults, config: Any) -> list[Any]:
    """Results of the runners that live.

    Raises:
        UserError: If one died and the config does not tolerate it.
    """
    arrived = successes(results)  # a user's error is more informative than a death
    if not all(result.ok for result in results):
        check_tolerated(config)
    return arrived


def check_tolerated(
    config: Any, what: str = "An environment runner died", error: BaseException | None = None
) -> None:
    """Check that the config tolerates the loss of a runner.

    Args:
        config: The algorithm's config.
        what: The loss, as the beginning of a sentence.
        error: The error that revealed it.

    Raises:
        UserError: If it does not.
    """
    if not (config.restart_failed_env_runners or config.ignore_env_runner_failures):
        raise UserError(f"{what}, and restart_failed_env_runners is off.") from error


def check_any_alive(manager: Any, config: Any) -> None:
    """Check that a runner is alive, or will be restarted by Ray.

    Args:
        manager: RLlib's manager of the runners.
        config: The algorithm's config.

    Raises:
        WorkerDiedError: If all are dead for good.
    """
    actors = manager.actors().values()
    if manager.num_healthy_actors() or not all(_private.is_dead_for_good(actor) for actor in actors):
        return
    why = "restart_failed_env_runners is off"
    if config.restart_failed_env_runners:
        why = f"max_num_env_runner_restarts={config.max_num_env_runner_restarts} is exhausted"
    raise WorkerDiedError(
        f"All {len(actors)} environment runners died, and {why}; see Ray's logs for the cause, and resume the run "
        "from its last checkpoint."
    )

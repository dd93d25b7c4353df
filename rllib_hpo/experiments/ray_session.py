"""Ray, for as long as something needs it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
import ray._private.services
import ray._private.utils

from rllib_hpo.errors import UserError
from rllib_hpo.experiments.signals import children_spared, owns_signals
from rllib_hpo.rllib.auth_token import keep_token_private
from rllib_hpo.rllib.cluster_address import refuse_dead_address

_ATTEMPTS = 2
"""On a busy machine Ray's parts may need longer than the 30 s that Ray gives them; then they are in memory."""


@contextmanager
def ray_session(*, log_to_driver: bool = True, **options: Any) -> Iterator[None]:
    """The cluster that RAY_ADDRESS names, or Ray on this machine; where this process has it, nothing is to do.

    Args:
        log_to_driver: Whether a cluster's workers print here, too; those on this machine do not.
        options: Of `ray.init`, for this machine only.

    Raises:
        UserError: If there is no such cluster, or Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    keep_token_private()
    if address := os.environ.get("RAY_ADDRESS"):
        refuse_dead_address()  # Ray itself tries for minutes
        _start(
            1, f"Cannot reach the Ray cluster {address} that RAY_ADDRESS names", log_to_driver=log_to_driver
        )
    else:
        options = {"address": "local", "include_dashboard": False, "log_to_driver": False, **options}
        _start(_ATTEMPTS, "Ray does not start on this machine", **options)
    try:
        yield
    finally:
        ray.shutdown()


def _start(attempts: int, trouble: str, **options: Any) -> None:
    for attempt in range(1, attempts + 1):
        try:
            with _without_handlers(), _own_process_groups(), children_spared():
                ray.init(logging_level=logging.ERROR, **options)
            return
        except (KeyboardInterrupt, SystemExit):  # a signal: what has started must not stay
            ray.shutdown()
            raise
        except Exception as error:  # what Ray raises then is of no kind of its own
            ray.shutdown()
            if attempt == attempts:
                said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
                tried = f" (tried {attempts} times)" if attempts > 1 else ""
                raise UserError(f"{trouble}{tried}: {said}.") from error


@contextmanager
def _without_handlers() -> Iterator[None]:
    """Keeps Ray from replacing our handler of SIGTERM: its own ends this process before anything is saved."""
    if not owns_signals():
        yield
        return
    utils, before = ray._private.utils, ray._private.utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before


@contextmanager
def _own_process_groups() -> Iterator[None]:
    """Give each process of Ray a group of its own: `timeout` signals the driver's, and trials are still to be saved."""
    services, before = ray._private.services, ray._private.services.ConsolePopen
    services.ConsolePopen = partial(before, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = before

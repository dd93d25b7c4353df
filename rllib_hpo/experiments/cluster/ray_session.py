"""Start Ray or connect to it while a context lasts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from rllib_hpo.errors import UserError
from rllib_hpo.experiments.process.signals import children_spared, owns_signals
from rllib_hpo.rllib._private import processes_in_own_groups, without_sigterm_handler
from rllib_hpo.rllib.auth_token import keep_token_private
from rllib_hpo.rllib.cluster_address import check_cluster_address

_ATTEMPTS = 2
"""On a busy machine Ray's processes may exceed its timeout of 30 s; the second attempt finds them in memory."""


@contextmanager
def ray_session(*, log_to_driver: bool = True, **options: Any) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine; do nothing if Ray is initialized.

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
        check_cluster_address()  # Ray itself tries for minutes
        _start(
            1, f"Cannot reach the Ray cluster {address} that RAY_ADDRESS names", log_to_driver=log_to_driver
        )
    else:
        options = {"address": "local", "include_dashboard": False, "log_to_driver": False, **options}
        _start(_ATTEMPTS, "Ray cannot start on this machine", **options)
    try:
        yield
    finally:
        ray.shutdown()


def quiet_ray() -> None:
    """Silence the log messages of Ray and RLlib; errors are still raised."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    # A dead actor is reported by an error or by a warning of this package.
    logging.getLogger("ray.rllib.utils.actor_manager").setLevel(logging.CRITICAL)
    # A dead trial is reported in one line, or in the file of its error.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    # A sweep does not resume from Tune's state; other errors report a full disk.
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)


def _start(attempts: int, trouble: str, **options: Any) -> None:
    for attempt in range(1, attempts + 1):
        try:
            with _without_handlers(), processes_in_own_groups(), children_spared():
                ray.init(logging_level=logging.ERROR, **options)
            return
        except (KeyboardInterrupt, SystemExit):  # a signal: what has started must not stay
            ray.shutdown()
            raise
        except Exception as error:  # Ray has no class for these errors
            ray.shutdown()
            if attempt == attempts:
                said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
                tried = f" (tried {attempts} times)" if attempts > 1 else ""
                raise UserError(f"{trouble}{tried}: {said}.") from error


@contextmanager
def _without_handlers() -> Iterator[None]:
    """Keep Ray from replacing this process's handler of SIGTERM by one that ends it before saving."""
    if not owns_signals():
        yield
        return
    with without_sigterm_handler():
        yield

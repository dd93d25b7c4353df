"""Check that RAY_ADDRESS can be reached; Ray itself would retry for minutes."""

from __future__ import annotations

import os
import re
import socket

from rllib_hpo.errors import UserError

TIMEOUT_S = 10.0
_HOST_AND_PORT = re.compile(r"(?:ray://)?(?:[^@/]*@)?(\[[^\]]+\]|[^:/\[\]]+):(\d+)(?:/.*)?")


def check_cluster_address() -> None:
    """Try to connect to the cluster of RAY_ADDRESS, `HOST:PORT` or `ray://HOST:PORT`.

    "auto" and "local" name no machine, so Ray itself finds out about them.

    Raises:
        UserError: Nothing answers there, or the address has another form.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "auto", "local"):
        return
    found = _HOST_AND_PORT.fullmatch(address)
    if found is None or int(found[2]) > 65_535:
        raise UserError(
            f"RAY_ADDRESS={address} must be HOST:PORT, ray://HOST:PORT, auto or local; unset it to use Ray on this "
            "machine."
        )
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=TIMEOUT_S).close()
    except OSError as error:
        reason = (
            f"no response within {TIMEOUT_S:g} s"
            if isinstance(error, TimeoutError)
            else error.strerror or error
        )
        raise UserError(
            f"Cannot reach the Ray cluster {address} that RAY_ADDRESS names: {reason}. Start that cluster, or unset "
            "RAY_ADDRESS to use Ray on this machine."
        ) from error

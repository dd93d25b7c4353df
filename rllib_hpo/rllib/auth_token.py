"""Keep the token of Ray's clusters private: Ray writes `~/.ray/auth_token` readable for everybody."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import ray

from rllib_hpo.durable import sync


def keep_token_private() -> None:
    """Set Ray's token file to mode 0600, or create it so if Ray would; call this before Ray starts.

    A home that cannot be written is left to Ray, which says so, and to `rllib-hpo doctor`.
    """
    with suppress(OSError, RuntimeError):  # a user without a home
        token = Path.home() / ".ray" / "auth_token"
        if token.exists():
            if stat.S_IMODE(token.stat().st_mode) & 0o077:
                token.chmod(0o600)
        elif _is_ray_to_make_one():
            _create(token)


def _is_ray_to_make_one() -> bool:
    """Whether Ray would create a token on this machine: it uses one by default, and none is given."""
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        return False
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    return mode == "token" and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()


def _create(token: Path) -> None:
    """Write a new token atomically and privately; keep one that another process has just made."""
    token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=token.parent, prefix=".auth_token.")
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(secrets.token_hex(32))
            file.flush()
            sync(file.fileno())
        try:
            os.link(temporary, token)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            os.replace(temporary, token)
    finally:
        Path(temporary).unlink(missing_ok=True)

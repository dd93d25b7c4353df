"""Check MuJoCo's version where a result depends on it: in the tasks of the papers."""

from __future__ import annotations

import importlib.metadata

from rllib_hpo.errors import UserError
from rllib_hpo.tasks import soft_q

MUJOCO_BELOW = (3, 5)
"""MuJoCo 3.5 sums contact margins, which changes the physics of Ant, Hopper and Humanoid."""

_GYMNASIUM_IDS = frozenset(
    f"{name}-v4" for name in ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid", "Swimmer")
)


def check_mujoco(env_id: str) -> None:
    """Check that MuJoCo is one that simulates a paper's environment as the paper had it.

    Args:
        env_id: Any gymnasium id; those of no paper, and the papers' without MuJoCo, pass.

    Raises:
        UserError: If MuJoCo is too new for it; says what to install.
    """
    if env_id not in _GYMNASIUM_IDS and not (env_id in soft_q.ENVIRONMENTS and env_id != "MultiGoal-v0"):
        return
    installed = _installed()
    if installed is None or is_papers(installed):
        return
    below = ".".join(map(str, MUJOCO_BELOW))
    other = f", or train in {env_id.removesuffix('4')}5" if env_id in _GYMNASIUM_IDS else ""
    raise UserError(
        f"Environment '{env_id}' is a paper's task, which needs MuJoCo below {below}, since later versions changed its "
        f"physics; {installed} is installed: `pip install 'mujoco<{below}'`{other}."
    )


def is_papers(version: str) -> bool:
    """Return whether a version of MuJoCo simulates the papers' tasks as the papers had them."""
    return tuple(map(int, version.split(".")[:2])) < MUJOCO_BELOW


def _installed() -> str | None:
    try:
        return importlib.metadata.version("mujoco")
    except importlib.metadata.PackageNotFoundError:
        return None

"""Find the code, versions and machine of a row, from metadata and git, without importing the libraries."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_DISTRIBUTIONS = {
    "rllib_hpo": "rllib-hpo",
    "ray": "ray",
    "torch": "torch",
    "numpy": "numpy",
    "gymnasium": "gymnasium",
    "mujoco": "mujoco",
    "pybullet": "pybullet",
}


def provenance(device: str) -> dict[str, str]:
    """Columns device, git_commit and versions of a row measured by this process.

    Args:
        device: what trained, in the caller's words ("cpu", "NVIDIA H100 80GB HBM3").
    """
    return {"device": device, "git_commit": git_commit(), "versions": json.dumps(versions(), sort_keys=True)}


def versions() -> dict[str, str]:
    """Version of Python, of the platform, and of every library of interest that is installed."""
    return dict(_versions())


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name, distribution in _DISTRIBUTIONS.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found.items())


@functools.cache
def git_commit(package: Path = _PACKAGE) -> str:
    """Commit of the checkout that holds the `package` folder, as it was at the first call.

    "-dirty" follows where files in `package` differ from that commit; "" where the package is not under
    version control: git must track it, so a virtual environment inside another repository does not count.
    """
    if not _git(package, "ls-files", "."):
        return ""
    commit = _git(package, "rev-parse", "HEAD")
    if not commit:  # tracked, but nothing was ever committed
        return ""
    changed = _git(package, "--no-optional-locks", "status", "--porcelain", "--", ".")
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    """Output of a git command in `folder`, or "" if git is missing, slow, or fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()

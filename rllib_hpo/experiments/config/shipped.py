"""Find files that come with the package: sweep files, templates of clusters, the zoo.

A wheel carries these folders in `rllib_hpo/shipped`. In a checkout they are beside the package.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import NamedTuple

import rllib_hpo
from rllib_hpo.errors import UserError, unknown_name
from rllib_hpo.results.paths import absolute

PACKAGE = Path(rllib_hpo.__file__).parent
SWEEPS, CLUSTERS = "tune_configs", "cluster"
COSTS_FILE = "costs.json"
PROJECT_FILES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE")
"""What an installation of the package from its source needs beside the code."""


class SweepCost(NamedTuple):
    """Measured cost of a sweep file."""

    trials: int
    env_steps: int
    """Environment steps of all trials."""
    core_hours: float
    """Hours of one core, with one process per trial."""


def shipped_folder(name: str) -> Path:
    """Return a folder that comes with the package.

    Raises:
        UserError: If this installation lacks it.
    """
    for folder in (PACKAGE / "shipped" / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise UserError(
        f"This installation of rllib-hpo has no folder {name}; install its wheel, or use a checkout."
    )


def sweep_files() -> dict[str, Path]:
    """Return the sweep files that come with the package, by name."""
    return {path.stem: path for path in sorted(shipped_folder(SWEEPS).glob("*.yaml"))}


def find_sweep_file(given: str) -> Path:
    """Return the path of a sweep file, given as a path or as the name of one that comes with the package.

    A file of that path goes before a name, and a name before a folder: a checkout has a folder `zoo`.

    Raises:
        UserError: If a name is unknown, with the nearest one.
    """
    path, known = absolute(given), sweep_files()
    if path.exists() and not (path.is_dir() and given in known):
        return path
    name = path.name.removesuffix(".yaml")
    if "/" not in given and name in known:
        return known[name]
    if name in known:
        raise UserError(
            f"There is no file {path}; a sweep of that name comes with the package: `rllib-hpo sweep {name}`."
        )
    if "/" not in given:
        raise unknown_name("sweep", given, known)
    return path


def sweep_costs() -> dict[str, SweepCost]:
    """Return what sweep files cost, by name, as `python -m benchmarks.sweep_costs` measured it."""
    path = shipped_folder(SWEEPS) / COSTS_FILE
    if not path.exists():
        return {}
    return {name: SweepCost(**cost) for name, cost in json.loads(path.read_text())["sweeps"].items()}


def project_file(name: str) -> str:
    """Return the text of one of `PROJECT_FILES`, from the checkout or the metadata of the installed wheel.

    Raises:
        UserError: If this installation lacks it.
    """
    if (PACKAGE.parent / "pyproject.toml").is_file():
        return (PACKAGE.parent / name).read_text()
    try:
        text = importlib.metadata.distribution("rllib-hpo").read_text(f"extra_metadata/{name}")
    except importlib.metadata.PackageNotFoundError:
        text = None
    if text is None:
        raise UserError(
            f"This installation of rllib-hpo has no {name}; install its wheel, or use a checkout."
        )
    return text

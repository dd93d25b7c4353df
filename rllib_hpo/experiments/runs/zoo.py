"""Find the zoo's trained policies, and play them."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rllib_hpo.deployment import DeployedPolicy
from rllib_hpo.errors import UserError, unknown_name
from rllib_hpo.experiments.config.shipped import shipped_folder
from rllib_hpo.experiments.runs.evaluate import film_episode, make_filmed, play_episode
from rllib_hpo.results import read_rows
from rllib_hpo.rllib.evaluation import Evaluation
from rllib_hpo.streams import seed_sequence
from rllib_hpo.tasks import boundary, make_env

FOLDER, INDEX, ROWS = "zoo", "index.json", "results"
"""The folder of policies, its list of them, and its rows."""


class Resident(NamedTuple):
    """A policy of the zoo, with its last evaluation."""

    name: str
    path: Path
    algorithm: str
    env_id: str
    env_steps: int
    return_mean: float
    """Mean return of the last evaluation in training."""
    return_std: float
    """Standard deviation over its episodes."""
    episodes: int
    command: str
    """Command that trained it."""


def name_of(algorithm: str, task: str) -> str:
    """Return the zoo's name for a policy: `sac-hpo-pendulum` for SAC-HPO on Pendulum-v1."""
    return f"{algorithm}-{re.sub(r'-v[0-9]+$', '', task).lower()}"


def residents(folder: Path | None = None) -> list[Resident]:
    """Return all policies of the zoo, in the order of its index.

    Args:
        folder: The zoo; by default the one that comes with the package.
    """
    folder = folder or shipped_folder(FOLDER)
    rows = {
        (row["sweep"], row["algorithm"], row["task"], row["seed"], row["env_steps"]): row
        for row in read_rows(folder / ROWS).to_pylist()
    }
    return list(_residents(folder, rows))


def _residents(folder: Path, rows: dict[tuple[Any, ...], dict[str, Any]]) -> Iterator[Resident]:
    for name, entry in json.loads((folder / INDEX).read_text()).items():
        row = rows[tuple(entry[key] for key in ("sweep", "algorithm", "task", "seed", "env_steps"))]
        yield Resident(
            name,
            folder / f"{name}.safetensors",
            row["algorithm"],
            row["env_id"],
            row["env_steps"],
            row["return_mean"],
            row["return_std"],
            len(row["returns"]),
            entry["command"],
        )


def find_policy(given: str) -> Path:
    """Return the file of a policy, given as a path or by its name in the zoo.

    Raises:
        UserError: If there is neither such a file nor such a name, with the nearest name.
    """
    if Path(given).is_file():
        return Path(given)
    folder = shipped_folder(FOLDER)
    names = json.loads((folder / INDEX).read_text())
    if given not in names:
        raise unknown_name("policy", given, names)
    return folder / f"{given}.safetensors"


def play_in_window(policy: DeployedPolicy, episodes: int, seed: int = 0) -> list[Evaluation]:
    """Play noise-free episodes in a window.

    Raises:
        UserError: If there is no display.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError("There is no display for a window here; film an episode with --video FILE.gif.")
    metadata = policy.metadata
    env = make_env(metadata.env, training=False, **{**metadata.env_config, "render_mode": "human"})
    try:
        return [
            play_episode(policy.actor, env, one, _max_steps(policy), lambda steps: None)
            for one in _episode_seeds(seed, episodes)
        ]
    finally:
        boundary.close(env)


def film_policy(policy: DeployedPolicy, video: Path, seed: int = 0) -> Evaluation:
    """Play one noise-free episode, and write it as a film (.mp4 or .gif).

    Raises:
        UserError: If frames cannot be rendered or written here, saying what is missing.
    """
    env = make_filmed(policy.metadata.env, policy.metadata.env_config)
    try:
        return film_episode(policy.actor, env, video, _episode_seeds(seed, 1)[0], _max_steps(policy))
    finally:
        boundary.close(env)


def _episode_seeds(seed: int, episodes: int) -> list[int]:
    return [int(state >> 1) for state in seed_sequence(seed, "enjoy command").generate_state(episodes)]


def _max_steps(policy: DeployedPolicy) -> int:
    return policy.actor.settings.evaluation_max_episode_steps

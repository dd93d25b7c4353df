"""Define options that several commands share, and parse their values."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rllib_hpo.algorithms.registry import BUILT_IN
from rllib_hpo.errors import SettingsError, UnknownNameError, UserError
from rllib_hpo.results.paths import absolute

ALGORITHMS = ", ".join(BUILT_IN)
"""Names of the built-in algorithms, for help texts."""
path_option = partial(typer.Option, parser=absolute, metavar="PATH")
"""Option for a path: expands `~`, and makes a relative path absolute before any other processing."""
path_argument = partial(typer.Argument, parser=absolute)
"""Argument for a path, processed as in `path_option`."""


def sweep_file(given: str) -> Path:
    """Parse a sweep file's path, or the name of one that comes with the package."""
    from rllib_hpo.experiments.config.shipped import find_sweep_file

    try:
        return find_sweep_file(given)
    except UnknownNameError as error:  # a ValueError, of which typer would make a message of its own
        raise UserError(str(error)) from None


Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="Import a module that registers environments, tasks, algorithms or samplers; stored with the run.",
    ),
]
Wandb = Annotated[
    Literal["offline", "online", "disabled"],
    typer.Option(help="Mode of Weights & Biases; offline needs no account."),
]
WandbArtifacts = Annotated[
    bool,
    typer.Option(
        "--wandb-artifacts", help="Upload each checkpoint to W&B too: a few megabytes, without its replay."
    ),
]
WandbVideo = Annotated[
    bool,
    typer.Option(
        "--wandb-video", help="Record a video of a noise-free episode for W&B at the end of training."
    ),
]

_SETTINGS = {
    "steps": "steps",
    "num_env_runners": "num_env_runners",
    "evaluation_num_env_runners": "evaluation_num_env_runners",
    "gpus_per_learner": "num_gpus_per_learner",
}


def trial_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of every trial that were given as options of `rllib-hpo sweep`, by name."""
    given = {setting: options.get(option) for option, setting in _SETTINGS.items()}
    return {setting: value for setting, value in given.items() if value is not None}


def import_all(modules: list[str] | None) -> None:
    """Import the modules of --import, which may be in the working directory.

    Raises:
        UserError: If one of them cannot be imported.
    """
    sys.path.insert(0, "")
    from rllib_hpo.tasks import import_modules

    import_modules(modules or [])


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """Parse `KEY=VALUE,...` of each --only into one mapping.

    Raises:
        SettingsError: If a part is not such a pair, or a key has two values.
    """
    found: dict[str, str] = {}
    for text in texts:
        for part in text.split(","):
            key, equals, value = (word.strip() for word in part.partition("="))
            if not (key and equals):
                raise SettingsError(
                    f"--only {text} must be KEY=VALUE,..., for example task=hopper,algorithm=sac-hpo."
                )
            if found.setdefault(key, value) != value:
                raise SettingsError(
                    f"--only {key}={value}: {key} is already {found[key]}, and a trial has only one {key}."
                )
    return found

"""Count a policy's parameters: of its base network, and of its sampler."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import gymnasium as gym

from rllib_hpo.algorithms.registry import find_settings, make_method
from rllib_hpo.analysis.runs import Run, cells_of
from rllib_hpo.analysis.tables import NOTHING, Table
from rllib_hpo.errors import UserError
from rllib_hpo.settings import parse_settings
from rllib_hpo.tasks import make_env


class ParameterCounts(NamedTuple):
    """Numbers of parameters of an exported policy, without target critics."""

    base_policy: int
    """Parameters of the network for mean and standard deviation."""
    added: int
    """Parameters of the leapfrog's networks (and a learned step size), or of radial flows."""


def parameter_counts(config: Mapping[str, Any], env_id: str) -> ParameterCounts | None:
    """Count the parameters of a row's configuration; None if its environment or algorithm is not installed.

    The actor is built as for an exported policy, on the environment's sizes, and its parameters are counted.
    """
    sizes = _sizes(env_id, json.dumps(config.get("env_config", {}), sort_keys=True))
    if sizes is None:
        return None
    try:
        model = find_settings(str(config["algorithm"]))
        known = {name: value for name, value in config.items() if name in model.model_fields}
        settings = parse_settings(model, known)
        acting = make_method(settings).make_actor(*sizes, seed=0).acting
    except (UserError, KeyError):
        return None
    counts = {name: parameter.numel() for name, parameter in acting.named_parameters()}
    added = sum(count for name, count in counts.items() if not name.startswith("policy."))
    return ParameterCounts(sum(counts.values()) - added, added)


@cache
def _sizes(env_id: str, env_config: str) -> tuple[int, int] | None:
    """Dimensions of observations and actions; None if the environment cannot be made."""
    try:
        env = make_env(env_id, **json.loads(env_config))
    except Exception:  # noqa: BLE001  (a package that is not installed here, or an environment of the user's)
        return None
    try:
        return gym.spaces.flatdim(env.observation_space), gym.spaces.flatdim(env.action_space)
    finally:
        env.close()


def parameters_table(runs: Sequence[Run]) -> Table | None:
    """Table of parameters of each task's policies; None if none can be counted."""
    rows = []
    for (task, label), own in cells_of(runs).items():
        counts = parameter_counts(own[0].config, task.env_id)
        cells = [NOTHING] * 3
        if counts is not None:
            ratio = f"{counts.added / counts.base_policy:.1%}" if counts.base_policy else NOTHING
            cells = [f"{counts.base_policy:,}", f"{counts.added:,}", ratio]
        rows.append([task.name, label, *cells])
    if all(row[2] == NOTHING for row in rows):
        return None
    note = (
        "Trainable parameters of the exported policy, without target critics: those of the base policy network, "
        "those that the sampler adds (networks of the leapfrog, flows), and their ratio."
    )
    columns = ["task", "algorithm", "base policy", "leapfrog or flows", "ratio"]
    return Table("parameters", "Parameters of the policy", note, columns, rows)

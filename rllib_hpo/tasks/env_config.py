"""Record arguments of environments in manifests and result rows: as JSON, or as a note that they could not be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from rllib_hpo.errors import UserError

NOT_RECORDED = "__not_recorded__"
"""The key of the note in place of a value that JSON cannot hold; its value is the type's name."""


def recorded(env_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments as JSON reads them back, with NumPy values as numbers and lists, and tuples as lists.

    A value that JSON cannot hold becomes `{NOT_RECORDED: its type}`.
    """
    arguments: dict[str, Any] = json.loads(json.dumps(dict(env_config), default=_json_value))
    return arguments


def _json_value(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype.kind in "biufU":
        return value.tolist()
    return {NOT_RECORDED: f"{type(value).__module__}.{type(value).__qualname__}"}


def not_recorded(arguments: Any, name: str = "") -> dict[str, str]:
    """Return the types of the values in `recorded` arguments that were not recorded, by dotted name ("a.b")."""
    if isinstance(arguments, Mapping):
        if isinstance(kind := arguments.get(NOT_RECORDED), str):
            return {name: kind}
        items = [(f"{name}.{key}" if name else str(key), value) for key, value in arguments.items()]
    elif isinstance(arguments, list):
        items = [(f"{name}[{i}]", value) for i, value in enumerate(arguments)]
    else:
        items = []
    return {where: kind for key, value in items for where, kind in not_recorded(value, key).items()}


def refuse_not_recorded(arguments: Mapping[str, Any]) -> None:
    """Reject arguments with an unrecorded value, which would make another environment.

    Raises:
        UserError: If a value is missing; names the argument and its type.
    """
    for name, kind in not_recorded(arguments).items():
        raise UserError(
            f"env_config: '{name}' was a {kind}, which the record of a run cannot hold, so its environment cannot "
            "be recreated from it; use numbers, strings, lists and mappings in env_config, or build the algorithm "
            "in Python with the same configuration."
        )

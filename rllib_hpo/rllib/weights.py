"""Read, compare and check weights, as dicts of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import fs
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_hpo.documents import reading
from rllib_hpo.errors import CheckpointError, UserError, shown
from rllib_hpo.rllib.new_stack.rl_module import ActorCriticModule

_MULTI_MODULE = f"{COMPONENT_LEARNER_GROUP}/{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
MODULE_PATH = f"{_MULTI_MODULE}/{DEFAULT_MODULE_ID}"
"""Path of the RLModule in a checkpoint of the new API stack."""

COMPONENTS = (_MULTI_MODULE, MODULE_PATH)
"""Components that `restore_from_path(component=...)` accepts. A learner alone would be at another step than its run."""


def check_component(component: str) -> None:
    """Check that a component can be restored alone.

    Raises:
        UserError: Naming those that can.
    """
    if component not in COMPONENTS:
        raise UserError(
            f"component={shown(component)} cannot be restored by itself: give '{MODULE_PATH}' (all networks), or "
            "leave out component= to restore the whole checkpoint."
        )


def read_module(directory: Path) -> dict[str, dict[str, Any]]:
    """Weights of an RLModule saved in `directory`, by module ID.

    Raises:
        CheckpointError: If it is of something else.
        UserError: If it cannot be read.
    """
    with reading(f"The component {directory}"):
        module: Any = RLModule.from_checkpoint(str(directory), fs.LocalFileSystem())
        if isinstance(module, MultiRLModule):
            module = module[DEFAULT_MODULE_ID]
        module = module.unwrapped()
    if not isinstance(module, ActorCriticModule):
        raise CheckpointError(f"{directory} holds a {type(module).__name__}, not a policy of rllib_hpo.")
    return {DEFAULT_MODULE_ID: module.get_state()}


def difference(mine: Mapping[str, Mapping[str, Any]], given: Any) -> str | None:
    """The first difference in names or shapes between two sets of weights, as a clause; None if there is none.

    Args:
        mine: Arrays by module or policy ID and name, as `Algorithm.get_weights` returns them.
        given: The same, with other numbers.
    """
    if not isinstance(given, Mapping) or given.keys() != mine.keys():
        keys = shown(list(given)) if isinstance(given, Mapping) else type(given).__name__
        return f"they belong to {keys}, not to {shown(list(mine))}"
    for owner, arrays in mine.items():
        if not isinstance(given[owner], Mapping):
            return f"those of {owner!r} are a {type(given[owner]).__name__}, not a dict of arrays"
        if missing := sorted(arrays.keys() - given[owner].keys()):
            return f"they lack {missing[0]} (an acting policy has no critics: use the learner's weights)"
        if unknown := sorted(given[owner].keys() - arrays.keys()):
            return f"{unknown[0]} is not a weight of these networks"
        for name, array in arrays.items():
            if np.shape(given[owner][name]) != np.shape(array):
                return f"{name} has the shape {np.shape(given[owner][name])}, not {np.shape(array)}"
    return None

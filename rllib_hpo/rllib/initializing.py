"""Networks of another run as the beginning of a new one: all else, from optimizers to the replay, is new."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.policy.policy import Policy

from rllib_hpo.documents import reading
from rllib_hpo.errors import CheckpointError
from rllib_hpo.rllib.checkpointing import MANIFEST, api_stack, follow, import_required_modules, verify
from rllib_hpo.rllib.trained_policy import POLICY_PATH
from rllib_hpo.rllib.weights import MODULE_PATH, read_module

Weights = dict[str, dict[str, Any]]
_PREFIX = "model."
_NORMALIZER = "observation_normalizer."


def origin_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` names: itself, or the last one of a run directory.

    Raises:
        CheckpointError: If there is none.
    """
    for place in (path, path / "checkpoints" / "last"):
        checkpoint = follow(place)
        if (checkpoint / MANIFEST).is_file():
            return checkpoint
    raise CheckpointError(
        f"initialize_from: {path} is not a finished checkpoint, nor a run directory that has one."
    )


def initial_weights(mine: Weights, networks: Collection[str], path: Path) -> tuple[Weights, str]:
    """This run's weights with the networks of another's, and a digest of these.

    Args:
        mine: As `Algorithm.get_weights` returns them.
        networks: Names of what is taken over, as in the state dict of a model.
        path: A checkpoint, of either API stack, or the directory of a run.

    Raises:
        CheckpointError: If there is no checkpoint, it is damaged, or its networks have another layout.
    """
    checkpoint = origin_checkpoint(path)
    theirs = _networks_of(checkpoint)
    if any(_NORMALIZER in name for name in theirs) and not any(_NORMALIZER in name for name in networks):
        raise CheckpointError(
            f"initialize_from: the networks in {checkpoint} take normalised observations; set "
            "normalize_observations=true."
        )
    digest = hashlib.sha256()
    ((owner, arrays),) = mine.items()
    result = dict(arrays)
    for name in sorted(f"{_PREFIX}{name}" for name in networks):
        if name not in theirs:
            raise CheckpointError(
                f"initialize_from: the networks in {checkpoint} do not fit: they lack "
                f"{name.removeprefix(_PREFIX)}."
            )
        array = np.asarray(theirs[name])
        if array.shape != np.shape(arrays[name]):
            raise CheckpointError(
                f"initialize_from: the networks in {checkpoint} do not fit: {name.removeprefix(_PREFIX)} has the shape "
                f"{array.shape}, not {np.shape(arrays[name])}; sizes, layers and spaces must be equal."
            )
        result[name] = array.astype(np.asarray(arrays[name]).dtype)
        digest.update(name.encode() + np.ascontiguousarray(result[name]).tobytes())
    return {owner: result}, digest.hexdigest()[:16]


def _networks_of(checkpoint: Path) -> Mapping[str, Any]:
    manifest = verify(checkpoint, with_replay=False)
    import_required_modules(manifest, checkpoint)
    if api_stack(manifest) == "new":
        return read_module(checkpoint.absolute() / MODULE_PATH)[DEFAULT_MODULE_ID]
    with reading(f"The checkpoint {checkpoint}"):
        weights: Mapping[str, Any] = Policy.from_checkpoint(
            str(checkpoint.absolute() / POLICY_PATH)
        ).get_weights()
    return weights

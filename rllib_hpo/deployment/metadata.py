"""Metadata of an exported policy: all that is needed to serve it, to rebuild it, and to trace its origin."""

from __future__ import annotations

import math
from typing import Any, Self

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rllib_hpo.algorithms.registry import find_settings
from rllib_hpo.deployment.observations import PartMetadata, parts_metadata
from rllib_hpo.documents import parse_json
from rllib_hpo.errors import CheckpointError, UserError
from rllib_hpo.settings import EARLIER_BEHAVIOUR, Settings, complete_settings, parse_settings

FORMAT = 1
"""Format number, incremented when older files can no longer be read."""


class BoxMetadata(BaseModel):
    """A one-dimensional gymnasium Box; None stands for no bound."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[int]
    dtype: str
    low: list[float | None]
    high: list[float | None]

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.shape[0] < 1 or not len(self.low) == len(self.high) == self.shape[0]:
            raise ValueError("each component needs a lower and an upper bound")
        return self

    @classmethod
    def of(cls, space: gym.spaces.Box) -> Self:
        """Describe `space`."""
        return cls(
            shape=(int(space.shape[0]),),
            dtype=str(space.dtype),
            low=[_finite(value) for value in np.asarray(space.low, np.float64)],
            high=[_finite(value) for value in np.asarray(space.high, np.float64)],
        )

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper bounds (N,), infinite if there are none."""
        low = [-math.inf if value is None else value for value in self.low]
        high = [math.inf if value is None else value for value in self.high]
        return np.array(low), np.array(high)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


class PolicyMetadata(BaseModel):
    """Stored as JSON in (and, for safetensors, beside) every exported file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    algorithm: str
    task: str
    env: str
    """The gymnasium id."""
    env_config: dict[str, Any]
    """Arguments of `rllib_hpo.tasks.make_env`: `wrappers`, and those of `gymnasium.make`."""
    imports: list[str] = Field(default_factory=list)
    """Modules that register the environment or the algorithm."""
    env_steps: int
    """Environment steps that the policy was trained for."""
    observation_space: BoxMetadata
    """Flat observations, float32 (B, S)."""
    observation_parts: tuple[PartMetadata, ...] = ()
    """Structure of the environment's observations, in the order in which they are flattened; empty for flat ones."""
    action_space: BoxMetadata
    """Actions, float32 (B, A), within these bounds."""
    settings: dict[str, Any]
    """All hyperparameters."""
    versions: dict[str, str]
    """Versions of the packages that wrote the checkpoint."""

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        sizes = sum(part.size for part in self.observation_parts)
        if self.observation_parts and sizes != self.observation_space.shape[0]:
            raise ValueError("the parts of an observation must fill it")
        return self

    @classmethod
    def of_manifest(
        cls,
        manifest: dict[str, Any],
        observation_space: gym.spaces.Box,
        action_space: gym.spaces.Box,
    ) -> Self:
        """The metadata of a checkpoint's policy."""
        config = manifest["config"]
        settings = find_settings(manifest["algorithm"])
        return cls(
            algorithm=manifest["algorithm"],
            task=manifest["task"],
            env=manifest["env"],
            env_config=config["env_config"],
            imports=manifest.get("imports", []),
            env_steps=manifest["env_steps"],
            observation_space=BoxMetadata.of(observation_space),
            observation_parts=parts_metadata(observation_space),
            action_space=BoxMetadata.of(action_space),
            settings=complete_settings(settings, config),
            versions=manifest["versions"],
        )

    @classmethod
    def from_json(cls, text: str, source: str) -> Self:
        """Parse a result of `to_json`.

        Raises:
            CheckpointError: Naming `source`, if it is something else.
        """
        try:
            metadata = cls(**parse_json(text, source))
        except (UserError, ValueError, TypeError, ValidationError) as error:
            raise CheckpointError(f"{source} is not a policy exported by rllib_hpo.") from error
        if metadata.format != FORMAT:
            raise CheckpointError(
                f"{source} has export format {metadata.format}; this version of rllib_hpo reads {FORMAT}."
            )
        return metadata

    def to_json(self) -> str:
        """The metadata as indented JSON."""
        return self.model_dump_json(indent=1)

    def parsed_settings(self) -> Settings:
        """The hyperparameters, validated.

        Raises:
            UnknownNameError: If the algorithm is of a package that is not imported.
        """
        return parse_settings(find_settings(self.algorithm), {**EARLIER_BEHAVIOUR, **self.settings})

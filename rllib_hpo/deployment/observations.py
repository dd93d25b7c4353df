"""Describe structured observations in an exported policy's metadata, and flatten them inside the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from gymnasium import spaces
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from rllib_hpo.tasks.observations import FlatSpace, Part

Observation = Tensor | Mapping[Any, Any] | Sequence[Any]
"""Tensors (B, ...) in the structure of the environment's observation, or the flat observation (B, S)."""


class PartMetadata(BaseModel):
    """One part of a structured observation; the parts stand in the order of the flat observation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: tuple[str | int, ...]
    """Keys of dicts and indices of tuples that lead to it."""
    kind: Literal["Box", "Discrete", "MultiDiscrete", "MultiBinary"]
    shape: tuple[int, ...]
    """Shape of the part without the batch dimension."""
    dtype: Literal["float32", "int64", "int8"]
    """Type of the part as the policy takes it."""
    size: int
    """Numbers of the flat observation that it makes."""
    values: tuple[int, ...] = ()
    """Numbers of values of each one-hot vector, for Discrete and MultiDiscrete."""
    first_values: tuple[int, ...] = ()
    """Smallest value of each."""

    @classmethod
    def of(cls, part: Part) -> Self:
        """Describe a part."""
        space, one_hot = part.space, {}
        if isinstance(space, spaces.Discrete):
            one_hot = {"values": (int(space.n),), "first_values": (int(space.start),)}
        elif isinstance(space, spaces.MultiDiscrete):
            one_hot = {
                "values": tuple(space.nvec.reshape(-1).tolist()),
                "first_values": tuple(space.start.reshape(-1).tolist()),
            }
        kind: Any = next(name for name in _DTYPES if isinstance(space, getattr(spaces, name)))
        shape = tuple(space.shape or ())
        return cls(path=part.path, kind=kind, shape=shape, dtype=_DTYPES[kind], size=part.size, **one_hot)

    @property
    def name(self) -> str:
        """Name of its input in an ONNX model: "camera.position"; "obs" where the observation is this part."""
        return ".".join(map(str, self.path)) or "obs"

    def encode(self, value: Tensor) -> Tensor:
        """Return its numbers (B, size) of the flat observation for value (B, *shape)."""
        if not self.values:
            return value.to(torch.float32).reshape(value.shape[0], self.size)
        columns = value.reshape(value.shape[0], len(self.values)).unbind(1)
        ranges = [
            torch.arange(first, first + count, device=value.device)
            for first, count in zip(self.first_values, self.values, strict=True)
        ]
        encoded = [
            (column[:, None] == known).to(torch.float32)
            for column, known in zip(columns, ranges, strict=True)
        ]
        return torch.cat(encoded, 1)


_DTYPES: dict[str, Any] = {
    "Box": "float32",
    "Discrete": "int64",
    "MultiDiscrete": "int64",
    "MultiBinary": "int8",
}


def parts_metadata(space: spaces.Box) -> tuple[PartMetadata, ...]:
    """Describe the structure of flattened observations; empty for observations that were flat from the start."""
    return tuple(PartMetadata.of(part) for part in space.parts) if isinstance(space, FlatSpace) else ()


class ObservationEncoder(nn.Module):
    """Flatten structured observations as `rllib_hpo.tasks.observations` does.

    Args:
        parts: The structure; empty for flat observations.
    """

    def __init__(self, parts: Sequence[PartMetadata]) -> None:
        super().__init__()
        self.parts = tuple(parts)

    def forward(self, obs: Observation) -> Tensor:
        """Return the flat observation (B, S); one that is flat already is returned as it is."""
        if isinstance(obs, Tensor) and self._is_flat(obs):
            return obs
        return torch.cat([part.encode(_at(obs, part.path)) for part in self.parts], 1)

    def _is_flat(self, obs: Tensor) -> bool:
        is_vector = obs.ndim == 2 and obs.is_floating_point()
        return not self.parts or (is_vector and obs.shape[1] == sum(part.size for part in self.parts))

    def leaves(self, obs: Observation) -> list[Tensor]:
        """Return the parts of an observation in their order."""
        return [_at(obs, part.path) for part in self.parts]

    def nested(self, tensors: Sequence[Any]) -> Any:
        """Return the environment's structure with these parts, in their order."""
        return self._built(lambda index: tensors[index], tuple(range(len(self.parts))), 0)

    def example(self, num_rows: int) -> Observation:
        """Return an observation of zeros in the environment's structure, of `num_rows` rows."""
        kinds = [getattr(torch, part.dtype) for part in self.parts]
        return self.nested(
            [
                torch.zeros((num_rows, *part.shape), dtype=kind)
                for part, kind in zip(self.parts, kinds, strict=True)
            ]
        )

    def _built(self, leaf: Callable[[int], Any], which: tuple[int, ...], depth: int) -> Any:
        """Build the structure of the parts `which`, which agree in the first `depth` keys of their paths."""
        if len(self.parts[which[0]].path) == depth:
            return leaf(which[0])
        keys = dict.fromkeys(self.parts[i].path[depth] for i in which)
        inner = {
            key: self._built(leaf, tuple(i for i in which if self.parts[i].path[depth] == key), depth + 1)
            for key in keys
        }
        is_tuple = all(isinstance(key, int) for key in keys)
        return tuple(inner.values()) if is_tuple else inner


def _at(obs: Any, path: Sequence[str | int]) -> Tensor:
    value = obs
    for key in path:
        value = value[key]
    found: Tensor = value
    return found

"""The columns of a transition and their positions in a row of the replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_NONE: Mapping[str, Tensor] = {}


class Column(NamedTuple):
    """A column beyond the usual five, which environments report in `info` under its name."""

    name: str
    size: int = 1
    """Number of values in a row."""


class Batch(NamedTuple):
    """B transitions as columns."""

    obs: Tensor
    """(B, S)."""
    action: Tensor
    """(B, A), in [-1, 1]."""
    reward: Tensor
    """(B,)."""
    terminated: Tensor
    """(B,), 1.0 if the episode terminated (not at a time limit)."""
    next_obs: Tensor
    """(B, S), never the first observation of another episode."""
    extras: Mapping[str, Tensor] = _NONE
    """Further columns by name, (B,) or (B, size)."""

    def tensors(self) -> list[Tensor]:
        """All columns in the order of the row."""
        return [self.obs, self.action, self.reward, self.terminated, self.next_obs, *self.extras.values()]

    def replaced(self, tensors: Sequence[Tensor]) -> Batch:
        """The same columns with other values, ordered as in `tensors`."""
        obs, action, reward, terminated, next_obs, *extras = tensors
        named = dict(zip(self.extras, extras, strict=True))
        return Batch(obs, action, reward, terminated, next_obs, named)


class RowFormat(NamedTuple):
    """Width and type of the rows of a ring."""

    width: int
    """Number of values in a row."""
    dtype: torch.dtype = torch.float32

    @property
    def num_bytes(self) -> int:
        """Size of a row in bytes."""
        return self.width * self.dtype.itemsize


class RowLayout(NamedTuple):
    """Layout of a float32 row: obs, action, reward, terminated, next_obs, then additional columns."""

    obs_dim: int
    action_dim: int
    columns: tuple[Column, ...] = ()
    """Additional columns."""

    @property
    def width(self) -> int:
        """Number of values in a row."""
        return self._common_width + sum(column.size for column in self.columns)

    @property
    def _common_width(self) -> int:
        return 2 * self.obs_dim + self.action_dim + 2

    @property
    def num_bytes(self) -> int:
        """Size of a row in bytes."""
        return self.width * torch.float32.itemsize

    def pack(
        self,
        obs: npt.NDArray[np.floating],
        action: npt.NDArray[np.floating],
        reward: npt.NDArray[np.floating],
        terminated: npt.NDArray[np.bool_],
        next_obs: npt.NDArray[np.floating],
        out: npt.NDArray[np.float32],
        extras: npt.NDArray[np.floating] | None = None,
    ) -> None:
        """Write N transitions into the rows `out` (N, width); `extras` holds all additional columns, concatenated."""
        end_of_obs, end_of_action = self.obs_dim, self.obs_dim + self.action_dim
        out[:, :end_of_obs] = obs
        out[:, end_of_obs:end_of_action] = action
        out[:, end_of_action] = reward
        out[:, end_of_action + 1] = terminated
        out[:, end_of_action + 2 : self._common_width] = next_obs
        if extras is not None:
            out[:, self._common_width :] = extras

    def unpack(self, rows: Tensor) -> Batch:
        """Rows (..., B, width) as columns (..., B, size), as views where possible."""
        end_of_obs, end_of_action = self.obs_dim, self.obs_dim + self.action_dim
        return Batch(
            obs=rows[..., :end_of_obs],
            action=rows[..., end_of_obs:end_of_action],
            reward=rows[..., end_of_action],
            terminated=rows[..., end_of_action + 1],
            next_obs=rows[..., end_of_action + 2 : self._common_width],
            extras=self._extras(rows) if self.columns else _NONE,
        )

    @property
    def parts(self) -> tuple[RowFormat, ...]:
        """Formats of the tensors that hold a gathered batch: one of rows."""
        return (RowFormat(self.width),)

    def unpack_parts(self, parts: Sequence[Tensor]) -> Batch:
        """Return the tensors of `parts` as columns."""
        (rows,) = parts
        return self.unpack(rows)

    def writer(self, num_rows: int) -> RowWriter:
        """Return what collects `num_rows` transitions."""
        return RowWriter(self, num_rows)

    def _extras(self, rows: Tensor) -> dict[str, Tensor]:
        extras, start = {}, self._common_width
        for name, size in self.columns:
            extras[name] = rows[..., start] if size == 1 else rows[..., start : start + size]
            start += size
        return extras


class RowWriter:
    """Collect transitions in rows.

    Args:
        layout: Layout of a row.
        num_rows: Number of transitions N.
    """

    def __init__(self, layout: RowLayout, num_rows: int) -> None:
        self._layout, self.rows = layout, np.empty((num_rows, layout.width), np.float32)

    def write(
        self,
        place: int,
        obs: npt.NDArray[np.floating],
        action: npt.NDArray[np.floating],
        reward: npt.NDArray[np.floating],
        terminated: npt.NDArray[np.bool_],
        next_obs: npt.NDArray[np.floating],
        extras: npt.NDArray[np.floating] | None = None,
    ) -> None:
        """Write N transitions from index `place` on; see `RowLayout.pack`."""
        out = self.rows[place : place + len(obs)]
        self._layout.pack(obs, action, reward, terminated, next_obs, out=out, extras=extras)

    def finished(self) -> npt.NDArray[np.float32]:
        """Return all rows, (N, width)."""
        return self.rows

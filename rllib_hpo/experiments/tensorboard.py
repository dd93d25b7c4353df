"""TensorBoard for one run, on the axis of environment steps: RUN/tensorboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboardX import SummaryWriter


class TensorBoard:
    """Writes scalars; those that a killed run logged beyond the step it goes on from are dropped.

    Args:
        directory: Of the run.
        env_steps: Where the run begins, or goes on.
    """

    def __init__(self, directory: Path, env_steps: int) -> None:
        self._writer = SummaryWriter(
            str(directory / "tensorboard"),
            purge_step=env_steps + 1 if env_steps else None,
            flush_secs=30,
            filename_suffix=f".{env_steps:010d}",  # two lives may begin in one second
        )

    def log(self, metrics: Mapping[str, float], env_steps: int) -> None:
        """Records `metrics` (a flat mapping) at `env_steps`."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, env_steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

"""The checkpoints of one run: numbered, whole or not there, the newest few and the best."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_hpo.errors import CheckpointError, StorageError
from rllib_hpo.rllib.checkpointing import read_manifest, verify

if TYPE_CHECKING:
    from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm

_logger = logging.getLogger(__name__)


class CheckpointStore:
    """RUN/checkpoints/step-0000010000/ and so on, with links `last` and `best`.

    Args:
        run_dir: The run's directory.
        keep: How many of the newest to keep; the best is kept besides.
    """

    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        self.directory, self.replay_dir, self.keep = run_dir / "checkpoints", run_dir / "replay", keep

    def save(self, algorithm: ActorCriticAlgorithm) -> Path:
        """Writes a checkpoint under a temporary name, renames it, and removes those no longer wanted.

        Raises:
            StorageError: If it could not be written (a full disk); earlier checkpoints stay as they are.
        """
        path = self.directory / f"step-{algorithm.env_steps:010d}"
        temporary = self.directory / f".{path.name}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            algorithm.save_to_path(temporary)
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
            self._link("last", path)
            self._link("best", self._best())
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, StorageError):
                raise
            raise StorageError(
                f"Could not write the checkpoint {path}: {error.strerror or error}."
            ) from error
        self._prune()
        return path

    def finished(self) -> list[Path]:
        """Checkpoints that have a readable manifest, oldest first."""
        return [path for path in sorted(self.directory.glob("step-*")) if _is_finished(path)]

    def newest_valid(self) -> Path | None:
        """The newest checkpoint whose files are all intact; says so for each one it has to pass over."""
        for path in sorted(self.directory.glob("step-*"), reverse=True):
            try:
                verify(path)
                return path
            except CheckpointError as error:
                _logger.warning("%s Using the checkpoint before it.", error)
        return None

    def _best(self) -> Path:
        """The finished checkpoint with the highest evaluation return; the earliest of equals."""
        return max(self.finished(), key=_evaluation_return)

    def _link(self, name: str, target: Path) -> None:
        temporary = self.directory / f".{name}.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        temporary.replace(self.directory / name)

    def _prune(self) -> None:
        """Removes old checkpoints, and replay segments that none of the rest lists."""
        finished = self.finished()
        wanted = {*finished[-self.keep :], self._best()}
        for path in self.directory.glob("step-*"):
            if path not in wanted:
                shutil.rmtree(path, ignore_errors=True)
        listed = {segment["file"] for path in wanted for segment in read_manifest(path)["replay"]["segments"]}
        for segment in self.replay_dir.glob("*.npy"):
            if segment.name not in listed:
                segment.unlink(missing_ok=True)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` names: one itself, or the last one of a run directory.

    Raises:
        CheckpointError: If there is none.
    """
    if (path / "checkpoints").is_dir():
        newest = CheckpointStore(path).newest_valid()
        if newest is None:
            raise CheckpointError(f"The run {path} has no finished checkpoint yet.")
        return newest
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint {path}.")
    read_manifest(path)
    return Path(os.path.realpath(path))


def _is_finished(path: Path) -> bool:
    try:
        read_manifest(path)
    except CheckpointError:
        return False
    return True


def _evaluation_return(path: Path) -> float:
    evaluation: dict[str, Any] | None = read_manifest(path)["evaluation"]
    return float("-inf") if evaluation is None else float(evaluation["env_runners"]["episode_return_mean"])

"""Keep the checkpoints of one run: numbered, atomic, the newest few and the best."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_hpo.documents import parse_json
from rllib_hpo.errors import CheckpointError, StorageError, UserError
from rllib_hpo.results import write_atomically
from rllib_hpo.rllib.checkpointing import MANIFEST, follow, read_manifest, verify

if TYPE_CHECKING:
    from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm

RETURNS_FILE = "returns.json"
"""File of mean returns by step: with evaluations beside training, a manifest is written before its return is known."""

_NUMBERED = re.compile(r"step-[0-9]{1,15}")
_logger = logging.getLogger(__name__)


class CheckpointStore:
    """RUN/checkpoints/step-0000010000/ and so on, with links `last` and `best`. One process writes at a time.

    Where the file system has no symbolic links, `last` and `best` are small text files with a checkpoint's name.

    Args:
        run_dir: The run's directory.
        keep: How many of the newest to keep; the best is kept besides.
    """

    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        run_dir = run_dir.absolute()  # RLlib takes a relative path for a malformed URI
        self.directory, self.replay_dir, self.keep = run_dir / "checkpoints", run_dir / "replay", keep
        self._unusable: set[Path] = set()
        self._returns_file = self.directory / RETURNS_FILE
        self.on_passed_over: Callable[[Path, CheckpointError], None] | None = None
        """Function to call with each unusable checkpoint, and the reason."""
        self.repaired: dict[str, str | None] = {}
        """Links that `restore_newest` had to repair, and the checkpoint each named before, if any."""

    def save(self, algorithm: ActorCriticAlgorithm) -> Path:
        """Write a checkpoint under a temporary name, rename it, and remove old ones.

        Raises:
            StorageError: If it could not be written (a full disk); earlier checkpoints stay as they are.
        """
        path = self.directory / f"step-{algorithm.env_steps:010d}"
        temporary = self.directory / f".{path.name}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            algorithm.save_to_path(temporary)
            shutil.rmtree(path, ignore_errors=True)  # one that could not be used, or we would be past it
            temporary.rename(path)
            self._unusable.discard(path)
            self._link("last", path)
            self._prune()
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, StorageError):
                raise
            reason = os.strerror(error.errno) if error.errno else error  # pyarrow words its own otherwise
            raise StorageError(f"Could not write the checkpoint {path}: {reason}.") from error
        return path

    def evaluated(self, env_steps: int, return_mean: float) -> None:
        """Store the return of the weights of a step, which may be known only after their checkpoint is saved."""
        self.note_returns({**self.returns(), str(env_steps): return_mean})

    def note_returns(self, returns: Mapping[str, float]) -> None:
        """Replace the stored mean returns."""
        write_atomically(self._returns_file, json.dumps(returns).encode())

    def returns(self) -> dict[str, float]:
        """Stored mean returns of evaluations by step."""
        try:
            return parse_returns(self._returns_file.read_bytes())
        except OSError:
            return {}

    def newest_valid(self) -> Path | None:
        """The newest intact checkpoint, or None; reports each one that it skips.

        Raises:
            CheckpointError: If there are finished checkpoints, and all are damaged.
        """
        return self._newest(verify)

    def restore_newest(self, algorithm: ActorCriticAlgorithm) -> Path | None:
        """Restore `algorithm` from the newest intact checkpoint with its replay, and repair the links.

        A run that was killed between the rename of a checkpoint and the exchange of a link left the old link.

        Returns:
            That checkpoint, or None if the run has none yet.

        Raises:
            CheckpointError: If there are finished checkpoints, and none fits; nothing is removed.
        """
        newest = self._newest(algorithm.restore_from_path)
        if newest is not None:
            self._repair_links(newest)
        return newest

    def linked(self, name: str) -> str | None:
        """Name of the checkpoint that the link `last` or `best` points to, or None."""
        link = self.directory / name
        target = link.with_name(os.path.basename(os.readlink(link))) if link.is_symlink() else follow(link)
        return target.name if target != link and target.is_dir() else None

    def _repair_links(self, newest: Path) -> None:
        intact = self._intact() or [newest]
        best = self._best(intact)
        try:
            for name, target in (("last", newest), ("best", best)):
                before = self.linked(name)
                if before == target.name:
                    continue
                self._link(name, target)
                # A return that became known after the last checkpoint may make another one the best.
                if name == "last" or before not in {path.name for path in intact}:
                    self.repaired[name] = before
        except OSError as error:  # nothing that the run needs: the next checkpoint sets both
            _logger.warning("Could not repair the links in %s: %s", self.directory, error)

    def _newest(self, use: Callable[[Path], Any]) -> Path | None:
        """The newest checkpoint for which `use` raises no CheckpointError."""
        refused: dict[Path, CheckpointError] = {}
        for path in reversed(numbered(self.directory)):
            try:
                use(path)
            except CheckpointError as error:
                refused[path] = error
                continue
            self._report(refused, "Using the previous checkpoint.")
            return path
        # Damage done to finished checkpoints is never answered with a fresh start, which would remove them.
        finished = [path for path in refused if (path / MANIFEST).exists()]
        if finished:
            raise CheckpointError(f"{refused[finished[0]]} To start the run again, remove {self.directory}.")
        self._report(refused, "Starting from the beginning.")
        return None

    def _report(self, refused: Mapping[Path, CheckpointError], consequence: str) -> None:
        self._unusable.update(refused)
        for path, error in refused.items():
            _logger.warning("%s %s", error, consequence)
            if self.on_passed_over is not None:
                self.on_passed_over(path, error)

    def _intact(self) -> list[Path]:
        """Intact checkpoints, oldest first."""
        return [path for path in numbered(self.directory) if path not in self._unusable and _is_intact(path)]

    def _link(self, name: str, target: Path) -> None:
        """Point `last` or `best` to a checkpoint, by a symbolic link or a text file."""
        link, temporary = self.directory / name, self.directory / f".{name}.tmp"
        if link.is_dir() and not link.is_symlink():  # a tool that follows links has copied the run
            self._set_aside(link)
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(target.name)
        except OSError:  # file systems without links differ in the error; a full disk refuses this, too
            write_atomically(link, f"{target.name}\n".encode())
        else:
            temporary.replace(link)

    def _set_aside(self, copy: Path) -> None:
        """Remove the copy of an intact checkpoint; keep any other under another name."""
        manifest = copy / MANIFEST
        for path in self._intact():
            if manifest.is_file() and manifest.read_bytes() == (path / MANIFEST).read_bytes():
                shutil.rmtree(copy)
                return
        names = (copy.with_name(f"{copy.name}-{number}") for number in count(1))
        copy.rename(next(path for path in names if not path.exists()))

    def _best(self, intact: Sequence[Path]) -> Path:
        """The checkpoint with the highest return, the earliest of equals."""
        returns = self.returns()
        return max(intact, key=lambda path: evaluation_return(read_manifest(path), returns))

    def _prune(self) -> None:
        """Remove old checkpoints, replay segments that none lists, and remains of killed writers."""
        intact = self._intact()
        best = self._best(intact)
        self._link("best", best)
        wanted = {*intact[-self.keep :], best}
        for path in [*numbered(self.directory), *self.directory.glob(".step-*.tmp")]:
            if path not in wanted:
                shutil.rmtree(path, ignore_errors=True)
        listed = {segment["file"] for path in wanted for segment in read_manifest(path)["replay"]["segments"]}
        for file in [*self.replay_dir.rglob("*.npy"), *self.replay_dir.rglob(".*.tmp")]:
            if str(file.relative_to(self.replay_dir)) not in listed:
                file.unlink(missing_ok=True)


def numbered(directory: Path) -> list[Path]:
    """The folders step-N of a directory, oldest first; others are ignored."""
    return sorted(
        (path for path in directory.glob("step-*") if _NUMBERED.fullmatch(path.name)),
        key=lambda path: int(path.name.removeprefix("step-")),
    )


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` names: itself, or the last one of a run directory.

    Raises:
        CheckpointError: If there is none.
    """
    if (path / "checkpoints").is_dir():
        newest = CheckpointStore(path).newest_valid()
        if newest is None:
            raise CheckpointError(f"The run {path} has no finished checkpoint yet.")
        return newest
    path = follow(path)
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    read_manifest(path)
    return Path(os.path.realpath(path))


def _is_intact(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True


def parse_returns(data: bytes) -> dict[str, float]:
    """Parse a `RETURNS_FILE`; empty if it is damaged."""
    try:
        returns = parse_json(data, RETURNS_FILE)
    except UserError:
        return {}
    return {step: float(value) for step, value in returns.items() if isinstance(value, int | float)}


def evaluation_return(manifest: Mapping[str, Any], returns: Mapping[str, float]) -> float:
    """Return of a checkpoint's own weights, or else the latest known when it was saved."""
    evaluation: dict[str, Any] | None = manifest.get("evaluation")
    if (own := returns.get(str(manifest["env_steps"]))) is not None:
        return own
    results = (evaluation or {}).get("env_runners")
    return float("-inf") if results is None else float(results["episode_return_mean"])

"""Mirror a trial on storage: `rllib-hpo sweep FILE --storage URI` keeps rows and checkpoints at URI/NAME.

Every node then works in a directory of its own, and needs no file system that others share; `rllib-hpo sweep --resume
URI/NAME` goes on with the sweep anywhere.

Training never waits for an upload. A thread sends a trial's rows and kept policies at once and in order, and before a
checkpoint every one up to its step. While storage is away uploads are tried again; the trial waits for them when it
ends.
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

from rllib_hpo.errors import CheckpointError, StorageError
from rllib_hpo.experiments.storage.checkpoints import CheckpointStore
from rllib_hpo.experiments.storage.folder import STORAGE_ERRORS, Storage
from rllib_hpo.experiments.storage.policies import FOLDER, kept_up_to
from rllib_hpo.experiments.storage.stored_checkpoints import StoredCheckpoints
from rllib_hpo.experiments.storage.transfers import Transfers
from rllib_hpo.results import read_rows, rows_from_arrow, trial_id, write_atomically, write_row

TIMEOUT_S = 600.0
"""Seconds that a trial waits at its start or end for storage that does not answer."""

_logger = logging.getLogger(__name__)


class Mirror:
    """One trial's copy on storage: downloaded before it starts, and updated by a thread while it runs.

    Args:
        sweep: The sweep's folder on storage.
        directory: The trial's local directory; its name on storage is the same.
        results: The local folder of rows.
        timeout_s: Seconds to wait for storage when there is nothing else to do.
    """

    def __init__(self, sweep: Storage, directory: Path, results: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._rows, self._trial = sweep.child("results"), sweep.child("trials").child(directory.name)
        self._directory, self._results, self._timeout_s = directory, results, timeout_s
        self._checkpoints = StoredCheckpoints(self._trial, directory)
        self._transfers = Transfers(self._trial.uri, timeout_s)

    # Before the trial runs -------------------------------------------------------------------------------

    def identify(self) -> None:
        """Agree with storage on the trial's id, and download its configuration.

        Raises:
            StorageError: If storage does not answer, or another run of that name is there.
        """
        there = self._transfers.run(lambda: self._trial.read_if_exists("trial_id"))
        mine = self._directory / "trial_id"
        if there is None:
            identity = trial_id(self._directory)
            self._transfers.run(lambda: self._trial.write("trial_id", f"{identity}\n".encode()))
        elif mine.exists() and mine.read_bytes().strip() != there.strip():
            raise StorageError(
                f"The trial in {self._directory} is not the one stored at {self._trial.uri}; choose another --out."
            )
        else:
            write_atomically(mine, there)
        config = self._transfers.run(lambda: self._trial.read_if_exists("config.yaml"))
        if config is not None:
            write_atomically(self._directory / "config.yaml", config)

    def restore(self) -> None:
        """Download the newest intact checkpoint with its replay, unless the local one is as new.

        Raises:
            StorageError: If storage does not answer.
            CheckpointError: If there are finished checkpoints, and all are damaged.
        """
        self._transfers.run(self._checkpoints.look)
        newest, damaged = self._newest_here()
        refused: list[CheckpointError] = []
        for name in self._checkpoints.names():
            if newest is not None and name <= newest:
                break
            try:
                self._transfers.run(partial(self._checkpoints.download, name))
            except CheckpointError as error:
                refused.append(error)
                continue
            newest = name
            break
        if newest is None and refused:
            raise CheckpointError(f"{refused[0]} To start the trial again, remove {self._trial.uri}.")
        if newest is None and damaged is not None:
            raise damaged
        for passed_over in refused:
            _logger.warning("%s Using the previous checkpoint.", passed_over)

    def _newest_here(self) -> tuple[str | None, CheckpointError | None]:
        try:
            newest = CheckpointStore(self._directory).newest_valid()
        except CheckpointError as error:
            return None, error
        return (None if newest is None else newest.name), None

    # While it runs ---------------------------------------------------------------------------------------

    def start(self, env_steps: int) -> None:
        """Start the thread, which first uploads files of earlier sessions up to the step of the resume."""
        self._transfers.enqueue(partial(self._send_rows_before, env_steps))
        self._transfers.enqueue(partial(self._send_policies_up_to, env_steps))
        self._transfers.enqueue(partial(self._checkpoints.send, f"step-{env_steps:010d}"))
        self._transfers.start()

    def row(self, path: Path) -> None:
        """Upload a row."""
        name, data = path.relative_to(self._results).as_posix(), path.read_bytes()
        self._transfers.enqueue(partial(self._rows.write, name, data))

    def policy(self, path: Path) -> None:
        """Upload a policy."""
        self._transfers.enqueue(partial(self._send_policy, path))

    def checkpoint(self, path: Path) -> None:
        """Upload a checkpoint after the rows before it, and remove from storage what it replaces.

        Raises:
            CheckpointError: If an earlier one could not be sent, for a reason that waiting would not mend.
        """
        self._transfers.raise_error()
        self._transfers.enqueue(partial(self._checkpoints.send, path.name))

    def finish(self) -> None:
        """Wait until everything is on storage.

        Raises:
            StorageError: If storage does not answer for longer than `timeout_s`.
            CheckpointError: If a checkpoint could not be sent, for a reason that waiting would not mend.
        """
        if not self._transfers.wait():
            raise StorageError(
                f"The storage {self._trial.uri} has been unreachable for {self._timeout_s:g} s: all results are in "
                f"{self._directory} and {self._results}, and `--resume` uploads them from there."
            )

    def close(self) -> None:
        """End the thread; a resumed trial uploads the rest."""
        self._transfers.close()

    def failed(self, name: str, text: bytes) -> None:
        """Upload the file that says why the trial failed, if storage answers."""
        try:
            self._trial.write(name, text)
        except STORAGE_ERRORS:
            _logger.warning(
                "The storage %s does not respond: %s exists only in %s.",
                self._trial.uri,
                name,
                self._directory,
            )

    def _send_policy(self, path: Path) -> None:
        with suppress(FileNotFoundError):  # removed by hand meanwhile: waiting would not bring it back
            data = path.read_bytes()
            self._trial.write(f"{FOLDER}/{path.name}", data)

    def _send_policies_up_to(self, env_steps: int) -> None:
        """Upload kept policies up to a step that storage lacks; the trial makes later ones again."""
        kept = kept_up_to(self._directory, env_steps)
        there = self._trial.files(FOLDER) if kept else {}
        for path in kept:
            if f"{FOLDER}/{path.name}" not in there:
                self._send_policy(path)

    def _send_rows_before(self, env_steps: int) -> None:
        """Upload rows up to a step that storage lacks; the trial makes later ones again."""
        identity = trial_id(self._directory)
        own = sorted(self._results.rglob(f"task=*/{identity}-*.parquet"))
        merged = sorted(self._results.rglob("task=*/compacted.parquet"))
        rows = rows_from_arrow(read_rows([*own, *merged])) if own or merged else []
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            written = [
                write_row(root, row)
                for row in rows
                if row.trial_id == identity and row.env_steps <= env_steps
            ]
            names = {path.relative_to(root).as_posix(): path for path in written}
            there: set[str] = set()
            for task in {str(PurePosixPath(name).parent) for name in names}:
                there.update(self._rows.files(task))
            for name in sorted(names.keys() - there):
                self._rows.write(name, names[name].read_bytes())

"""The directory of a sweep or search: its files, its plan, and both on storage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rllib_hpo.documents import read_json
from rllib_hpo.errors import CheckpointError, UserError
from rllib_hpo.experiments.runs.files import CONFIG_FILE, RunFiles
from rllib_hpo.experiments.storage.checkpoints import CheckpointStore
from rllib_hpo.experiments.storage.folder import Storage, fetch, publish
from rllib_hpo.experiments.storage.stored_checkpoints import manifest_on
from rllib_hpo.results import write_atomically
from rllib_hpo.results.paths import absolute
from rllib_hpo.rllib.checkpointing import finished_steps, read_manifest

SWEEP_FILE, PLAN_FILE, ERROR_FILE = "sweep.yaml", "plan.json", "error.txt"
SEARCH_FILE = "search.yaml"
SEARCH = "search"
"""Key of the plan of a search, for what decides its trials beside its file."""


@dataclass(frozen=True)
class SweepFiles:
    """Paths of a sweep's files."""

    directory: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", absolute(self.directory))

    @property
    def sweep_file(self) -> Path:
        """The sweep file, as it was given."""
        return self.directory / SWEEP_FILE

    @property
    def search_file(self) -> Path:
        """The search file, as it was given, if this is a search."""
        return self.directory / SEARCH_FILE

    @property
    def plan(self) -> Path:
        """Trials by name, with their variants."""
        return self.directory / PLAN_FILE

    @property
    def results(self) -> Path:
        """Parquet rows of all trials."""
        return self.directory / "results"

    def trial(self, name: str) -> RunFiles:
        """The run directory of a trial; its rows are in the sweep's results."""
        return RunFiles(self.directory / "trials" / name, self.results)

    def error(self, name: str) -> Path:
        """File with the error of a failed trial."""
        return self.trial(name).directory / ERROR_FILE


class _Search(BaseModel):
    """What decides the trials of a search beside its file."""

    model_config = ConfigDict(extra="allow", strict=True)

    changes: dict[str, Any]
    """Keys that replace the file's."""
    token: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]


class _Plan(BaseModel):
    """The types of a plan's keys."""

    model_config = ConfigDict(extra="allow", strict=True)

    sweep: str
    trials: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")], str]
    """Variants by the trials' names, which are folders."""
    imports: list[str] = Field(default_factory=list)
    storage: str | None = None
    search: _Search | None = None


def check_storage_free(storage: Storage) -> None:
    """Check that storage can be used and has no sweep of this name.

    Raises:
        UserError: If it is taken.
        StorageError: If storage cannot be reached or written.
    """
    with storage.reached():
        if storage.read_if_exists(PLAN_FILE) is not None:
            raise UserError(f"{storage.uri} already exists; resume it with `--resume {storage.uri}`.")
        storage.write(".writable", b"")  # told now, and not when the first trial is under way
        storage.remove(".writable")


def publish_sweep(files: SweepFiles, storage: Storage) -> None:
    """Upload the plan and the trials' configurations, and store the URI in the plan.

    Raises:
        StorageError: If storage cannot be reached or written.
    """
    plan = {**read_plan(files), "storage": storage.uri}
    write_atomically(files.plan, json.dumps(plan, indent=1).encode())
    publish(storage, files.directory, [_source_file(plan), *_config_files(plan), PLAN_FILE])


def fetch_sweep(files: SweepFiles, storage: Storage) -> None:
    """Download a sweep's plan and configurations into a local directory.

    Raises:
        StorageError: If storage cannot be reached, or has no sweep there.
        UserError: If the directory is that of another sweep.
    """
    if files.plan.exists() and read_plan(files).get("storage") != storage.uri:
        raise UserError(f"{files.directory} is a different sweep; choose another --out.")
    fetch(storage, files.directory, [PLAN_FILE])
    plan = read_plan(files)
    fetch(storage, files.directory, [_source_file(plan), *_config_files(plan)])


def storage_of(files: SweepFiles) -> Storage | None:
    """Storage that a sweep is mirrored to, or None, also if its directory is on that storage.

    Raises:
        StorageError: If storage cannot be used.
    """
    uri = read_plan(files).get("storage")
    storage = None if uri is None else Storage.open(uri)
    return None if storage is None or storage.local == files.directory.absolute() else storage


def _source_file(plan: Mapping[str, Any]) -> str:
    return SEARCH_FILE if plan.get(SEARCH) else SWEEP_FILE


def _config_files(plan: Mapping[str, Any]) -> list[str]:
    return [f"trials/{name}/{CONFIG_FILE}" for name in plan["trials"]]


def read_plan(files: SweepFiles) -> dict[str, Any]:
    """Read the plan that `plan_trials` wrote.

    Raises:
        CheckpointError: If the directory is not that of a sweep.
    """
    if not files.plan.exists():
        raise CheckpointError(f"{files.directory} is not a sweep directory: it has no {PLAN_FILE}.")
    plan = read_json(files.plan, "plan of a sweep")
    try:
        return _Plan.model_validate(plan).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"The plan {files.plan} is damaged: {place} ({first['msg']}).") from error


def steps_done(files: RunFiles, storage: Storage | None = None) -> int:
    """Environment steps of the newest intact checkpoint of a trial, on storage if the sweep has one.

    Raises:
        StorageError: If storage cannot be reached.
    """
    manifest = newest_manifest(files, storage)
    return 0 if manifest is None else finished_steps(manifest)


def newest_manifest(files: RunFiles, storage: Storage | None = None) -> dict[str, Any] | None:
    """Manifest of the newest intact checkpoint of a trial, on storage if the sweep has one; None without any.

    Raises:
        StorageError: If storage cannot be reached.
    """
    if storage is not None:
        return manifest_on(storage.child("trials").child(files.directory.name))
    newest = CheckpointStore(files.directory).newest_valid()
    return None if newest is None else read_manifest(newest)

"""The directory of a search, which is that of a sweep whose trials are chosen as it goes on."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rllib_hpo.errors import CheckpointError, SettingsError, UserError
from rllib_hpo.experiments.config.run_config import RunConfig
from rllib_hpo.experiments.config.search_config import Search, Values, ends, read_search
from rllib_hpo.experiments.config.sweep_config import Sweep, Trial
from rllib_hpo.experiments.storage.folder import Storage, publish
from rllib_hpo.experiments.sweeps.plan import SEARCH, SweepFiles, newest_manifest, read_plan
from rllib_hpo.experiments.sweeps.sweep import check_trials
from rllib_hpo.experiments.tracking.training_metrics import evaluation_metrics
from rllib_hpo.experiments.tuning.scores import Score, score_of
from rllib_hpo.experiments.tuning.study import import_optuna
from rllib_hpo.results import write_atomically
from rllib_hpo.results.configurations import SEARCH_VARIANT
from rllib_hpo.rllib.checkpointing import finished_steps

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchDirectory:
    """A search on disk: what every part of it needs.

    Attributes:
        search: What is searched, and how.
        files: Where.
        token: Part of the ids of its trials, so that those of two searches never collide.
        imports: Modules that register tasks or algorithms.
        storage: Where rows and checkpoints are mirrored, if anywhere.
    """

    search: Search
    files: SweepFiles
    token: str
    imports: tuple[str, ...] = ()
    storage: Storage | None = None

    def identity(self, number: int) -> str:
        """The id of a trial in the rows."""
        return f"trial-{number:04d}-{self.token}"

    def add_trial(self, name: str, config: RunConfig) -> None:
        """Write the configuration of a trial, and its name into the plan; nothing changes if it is there.

        Raises:
            StorageError: If the disk or the storage cannot be written.
        """
        file, plan = self.files.trial(name).config, read_plan(self.files)
        if name in plan["trials"] and file.exists():
            return
        config.importing(self.imports).save(file)
        plan["trials"][name] = SEARCH_VARIANT
        write_atomically(self.files.plan, json.dumps(plan, indent=1).encode())
        self.publish(f"trials/{name}/{file.name}", self.files.plan.name)

    def publish(self, *names: str) -> None:
        """Upload files of the directory, if the search has storage.

        Raises:
            StorageError: If it cannot be reached.
        """
        if self.storage is not None:
            publish(self.storage, self.files.directory, names)

    def last_score(self, name: str, steps: int) -> Score | None:
        """Score of a trial's evaluation at its last step, from its checkpoint; None if it is not there yet.

        Raises:
            StorageError: If the storage cannot be reached.
        """
        try:
            manifest = newest_manifest(self.files.trial(name), self.storage)
        except CheckpointError as error:  # the trial says so when it starts
            _logger.warning("%s", error)
            return None
        if manifest is None or finished_steps(manifest) < steps:
            return None
        return score_of(self.search, evaluation_metrics(manifest["evaluation"]))

    def forget(self, name: str) -> None:
        """Remove checkpoints and replay of a trial that others have gone on from; its rows stay."""
        for folder in ("checkpoints", "replay"):
            shutil.rmtree(self.files.trial(name).directory / folder, ignore_errors=True)
            if self.storage is not None:
                with self.storage.reached():
                    self.storage.remove_folder(f"trials/{name}/{folder}")


def start_search(
    source: Path, changes: Mapping[str, Any], files: SweepFiles, imports: Sequence[str] = ()
) -> SearchDirectory:
    """Make the directory of a new search.

    Args:
        source: The search file, which is copied.
        changes: As for `read_search`; kept in the plan.
        files: Where.
        imports: Modules that register tasks or algorithms.

    Raises:
        UserError: If the directory already holds something, or trials cannot begin; nothing is made then.
    """
    if files.directory.exists() and any(files.directory.iterdir()):
        raise UserError(
            f"{files.directory} already exists; resume it with `--resume {files.directory}`, or choose another --out."
        )
    search = read_search(source, changes)
    if search.file.scheduler != "pbt":
        import_optuna()
    check_trials(example(search))
    files.directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, files.search_file)
    token = secrets.token_hex(4)
    plan = {
        "sweep": search.file.search,
        "description": search.file.description,
        "imports": sorted(imports),
        "trials": {},
        SEARCH: {"changes": dict(changes), "token": token},
    }
    write_atomically(files.plan, json.dumps(plan, indent=1).encode())
    return SearchDirectory(search, files, token, tuple(sorted(imports)))


def open_search(
    files: SweepFiles, storage: Storage | None = None, trials: int | None = None
) -> SearchDirectory:
    """Open the directory of a search, with more trials if asked for.

    Raises:
        CheckpointError: If the directory is not that of a search.
        SettingsError: If `trials` are fewer than before, or this is a population.
    """
    plan = read_plan(files)
    about = plan.get(SEARCH)
    if not about:
        raise CheckpointError(
            f"{files.directory} is not the directory of a search: `rllib-hpo sweep --resume` goes on with a sweep."
        )
    if not isinstance(about["changes"].get("settings", {}), dict):
        raise CheckpointError(f"The plan {files.plan} is damaged: its changes hold no settings by name.")
    search = read_search(files.search_file, about["changes"])
    if trials is not None and trials != search.file.trials:
        if trials < search.file.trials:
            raise SettingsError(
                f"--trials {trials} is less than the {search.file.trials} this search was to try."
            )
        if search.file.scheduler == "pbt":
            raise SettingsError("--trials: a population keeps its size; start another search to change it.")
        about["changes"]["trials"] = trials
        write_atomically(files.plan, json.dumps(plan, indent=1).encode())
        search = read_search(files.search_file, about["changes"])
    return SearchDirectory(search, files, about["token"], tuple(plan["imports"]), storage)


def example(search: Search, values: Values | None = None) -> Sweep:
    """A sweep of one trial of the search, to probe and to time; all others are like it."""
    values = values or {name: ends(search, name)[0] for name in search.file.space}
    trial = Trial(search.file.search, SEARCH_VARIANT, search.config(0, values))
    return Sweep(search.file.search, search.file.description, (trial,))

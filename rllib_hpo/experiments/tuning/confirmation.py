"""Write the sweep that trains the best configuration of a search on seeds that the search has not seen."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rllib_hpo.experiments.tuning.directory import SearchDirectory
from rllib_hpo.results import write_atomically

CONFIRMATION_FILE, CONFIRMATION_FOLDER = "best.yaml", "best"


def write_confirmation(directory: SearchDirectory, values: Mapping[str, Any]) -> str:
    """Write `best.yaml`, and return the command that runs it.

    Args:
        directory: The search.
        values: The best values of the searched settings.

    Raises:
        StorageError: If the file cannot be written.
    """
    search, root = directory.search, directory.files.directory
    file, seeds = search.file, search.fresh_seeds
    settings = {**file.settings, "steps": search.steps, **values}
    lines = [
        f"# The best configuration of the search {file.search}, on seeds that the search has not seen.",
        f"sweep: {file.search}-best",
        f"description: The best configuration of the search {file.search}, on fresh seeds.",
        f"algorithms: [{json.dumps(file.algorithm)}]",
        f"tasks: [{json.dumps(file.task)}]",
        f"seeds: {seeds.start}-{seeds.stop - 1}",
        "settings:",
        *(f"  {name}: {json.dumps(value)}" for name, value in settings.items()),
    ]
    path = root / CONFIRMATION_FILE
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    directory.publish(CONFIRMATION_FILE)
    return shlex.join(_command(path, root / CONFIRMATION_FOLDER, directory.imports))


def _command(file: Path, out: Path, imports: tuple[str, ...]) -> list[str]:
    modules = [word for module in imports for word in ("--import", module)]
    return ["rllib-hpo", "sweep", str(file), "--out", str(out), *modules]

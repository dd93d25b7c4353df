"""Make users' paths absolute once, since an environment may change the working directory later."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rllib_hpo.errors import SettingsError


def absolute(path: str | os.PathLike[str]) -> Path:
    """An absolute path, `~` and `~user` expanded; links stay as they are.

    Raises:
        SettingsError: `~` stands for no folder, as in a container whose user has no name and no HOME.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise SettingsError(
            f"The path {path} begins with a home directory that does not exist; write out the full path."
        ) from error


def absolute_or_uri(text: str) -> str:
    """A URI as it is, and any other text as an absolute path; see `absolute`."""
    return text if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", text) else str(absolute(text))


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself where it does not exist yet."""
    while not folder.exists() and folder != folder.parent:
        if folder.parent.is_file():
            return False
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)

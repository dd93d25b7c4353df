"""What a run keeps: checkpoints and policies, in its directory and mirrored to storage."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """What stood in a module of this name before it became a package, such as `Storage`."""
    return getattr(importlib.import_module("rllib_hpo.experiments.storage.folder"), name)

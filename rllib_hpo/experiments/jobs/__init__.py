"""Sweeps as jobs of a remote Ray cluster, and the diagnosis of an installation or a cluster."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """What stood in a module of this name before it became a package, such as `Job`."""
    return getattr(importlib.import_module("rllib_hpo.experiments.jobs.client"), name)

"""Keep old names of moved modules and classes importable, so that pickles that hold them still load."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    f"rllib_hpo.{old}": f"rllib_hpo.{new}"
    for old, new in {
        "experiments.checkpoints": "experiments.storage.checkpoints",
        "experiments.cluster_check": "experiments.cluster.check",
        "experiments.cluster_check.files": "experiments.cluster.check.files",
        "experiments.cluster_check.findings": "experiments.cluster.check.findings",
        "experiments.cluster_check.kuberay": "experiments.cluster.check.kuberay",
        "experiments.cluster_check.placement": "experiments.cluster.check.placement",
        "experiments.cluster_check.ray_up": "experiments.cluster.check.ray_up",
        "experiments.cluster_check.slurm": "experiments.cluster.check.slurm",
        "experiments.dashboard": "experiments.sweeps.dashboard",
        "experiments.doctor": "experiments.jobs.doctor",
        "experiments.driver": "experiments.cluster.driver",
        "experiments.estimate": "experiments.sweeps.estimate",
        "experiments.evaluate": "experiments.runs.evaluate",
        "experiments.events": "experiments.tracking.events",
        "experiments.export": "experiments.storage.export",
        "experiments.file_system": "experiments.storage.file_system",
        "experiments.job_request": "experiments.jobs.request",
        "experiments.job_results": "experiments.jobs.results",
        "experiments.lock": "experiments.process.lock",
        "experiments.mirror": "experiments.storage.mirror",
        "experiments.nodes": "experiments.cluster.nodes",
        "experiments.operator_metrics": "experiments.tracking.operator_metrics",
        "experiments.policies": "experiments.storage.policies",
        "experiments.progress": "experiments.tracking.progress",
        "experiments.ray_session": "experiments.cluster.ray_session",
        "experiments.run_config": "experiments.config.run_config",
        "experiments.signals": "experiments.process.signals",
        "experiments.standard_streams": "experiments.process.standard_streams",
        "experiments.stored_checkpoints": "experiments.storage.stored_checkpoints",
        "experiments.sweep": "experiments.sweeps.sweep",
        "experiments.sweep_config": "experiments.config.sweep_config",
        "experiments.sweep_progress": "experiments.sweeps.progress",
        "experiments.sweep_stop": "experiments.sweeps.stop",
        "experiments.tensorboard": "experiments.tracking.tensorboard",
        "experiments.train": "experiments.runs.train",
        "experiments.transfers": "experiments.storage.transfers",
        "experiments.trial_resources": "experiments.sweeps.resources",
        "experiments.wandb_logger": "experiments.tracking.wandb_logger",
        "rllib.amounts": "rllib.validation",
        "rllib.env_runner": "rllib.new_stack.env_runner",
        "rllib.evaluation_runners": "rllib.new_stack.evaluation_runners",
        "rllib.feeding": "rllib.new_stack.feeding",
        "rllib.learner": "rllib.new_stack.learner",
        "rllib.learners": "rllib.new_stack.learners",
        "rllib.module_stack": "rllib.new_stack.stack",
        "rllib.pipeline": "rllib.new_stack.pipeline",
        "rllib.policy_stack": "rllib.old_stack.stack",
        "rllib.rl_module": "rllib.new_stack.rl_module",
        "rllib.sampling": "rllib.new_stack.sampling",
        "rllib.torch_policy": "rllib.old_stack.policy",
    }.items()
}
"""New name of each module that has moved since 0.1.0, by its old name.

Checkpoints name classes by module: never remove a line of `rllib` here, and add one with each module that moves.
"""

MOVED_NAMES = {
    "rllib_hpo.experiments.jobs": "rllib_hpo.experiments.jobs.client",
    "rllib_hpo.experiments.storage": "rllib_hpo.experiments.storage.folder",
    "rllib_hpo.rllib.algorithm": "rllib_hpo.rllib.algorithms",
    "rllib_hpo.rllib.config": "rllib_hpo.rllib.algorithms",
}
"""Names that modules have lost, by module, and their new modules."""


def moved_names(module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module in `MOVED_NAMES`, which finds its lost names."""

    def find(name: str) -> Any:
        if not name.startswith("_"):
            with suppress(AttributeError):
                return getattr(importlib.import_module(MOVED_NAMES[module]), name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find


class MovedModules(MetaPathFinder, Loader):
    """Import a moved module under its old name, as the same module object."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to import `fullname`; None unless it has moved."""
        return importlib.util.spec_from_loader(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Replace `module`, which importlib has just made, by the module of the new name."""
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


def install() -> None:
    """Make the old names importable in this process."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        # First, because the usual finder would load the modules of a moved package a second time.
        sys.meta_path.insert(0, MovedModules())

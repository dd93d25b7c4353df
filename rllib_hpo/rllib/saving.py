"""Save and restore an algorithm and set its weights, in place of RLlib's methods of the same names."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pyarrow import fs
from ray import cloudpickle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import COMPONENT_LEARNER_GROUP, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import CHECKPOINT_VERSION_LEARNER_AND_ENV_RUNNER
from ray.tune import Checkpoint

from rllib_hpo.errors import CheckpointError, UserError
from rllib_hpo.rllib import checkpointing, staging
from rllib_hpo.rllib._private import AlgorithmHooks, state_of_checkpoint
from rllib_hpo.rllib.remote import without_object_store
from rllib_hpo.rllib.weights import check_component, difference, read_module

if TYPE_CHECKING:
    from rllib_hpo.rllib.new_stack.evaluation_runners import EvaluationRunners
    from rllib_hpo.rllib.stack import Stack

_PROGRESS = "progress"


class SavedAlgorithm(AlgorithmHooks, Algorithm):
    """RLlib's Algorithm with atomic checkpoints, on any filesystem of pyarrow."""

    stack: Stack
    evaluation_runners: EvaluationRunners
    run_seed: int
    env_steps: int
    lacks_replay = False
    """Whether the run's replay is missing: `set_state` restores none, and a damaged one cannot be loaded."""

    def _progress(self) -> dict[str, Any]:
        raise NotImplementedError

    def _set_progress(self, progress: dict[str, Any]) -> None:
        raise NotImplementedError

    @staticmethod
    def _is_local(config: Any) -> bool:
        raise NotImplementedError

    @override(Algorithm)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Add progress and the streams and simulators of remote runners to RLlib's state."""
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        state[_PROGRESS] = self._progress()
        return state

    @override(Algorithm)
    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state. It has no replay: `train` raises an error that says how to load both."""
        with without_object_store(self._is_local(self.config)):
            super().set_state(state)
        if _PROGRESS in state:
            self._set_progress(state[_PROGRESS])
        elif COMPONENT_LEARNER_GROUP in state:
            self.stack.on_weights_changed()

    @override(Algorithm)
    def __getstate__(self) -> dict[str, Any]:
        """Add progress to the old stack's state."""
        return {**super().__getstate__(), _PROGRESS: self._progress()}

    @override(Algorithm)
    def __setstate__(self, state: dict[str, Any]) -> None:
        with without_object_store(self._is_local(self.config)):
            super().__setstate__(state)
        self._set_progress(state[_PROGRESS])

    def _check_replay_loaded(self) -> None:
        """Check that the replay belongs to the run.

        Raises:
            CheckpointError: If a state was set without its replay, or one that was damaged: updates would draw from the
                first few rows.
        """
        if self.lacks_replay:
            raise CheckpointError(
                f"The replay of step {self.env_steps} was not loaded, so training would continue with an almost "
                "empty one: load a checkpoint with restore_from_path() or "
                f"{type(self).__name__}.from_checkpoint(); to load only the networks, use set_weights()."
            )

    @override(Algorithm)
    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Save to a local folder, as Tune does; refuse a URI, of which Tune would make a folder called "s3:"."""
        if staging.is_uri(checkpoint_dir):
            raise UserError(
                f"save() writes to a local directory; use save_to_path({checkpoint_dir!r}) to write to storage."
            )
        return super().save(checkpoint_dir)

    @override(Algorithm)
    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self.save_to_path(checkpoint_dir)

    @override(Algorithm)
    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.restore_from_path(checkpoint_dir)
        make_callback(
            "on_checkpoint_loaded",
            callbacks_objects=self.callbacks,
            callbacks_functions=self.config.callbacks_on_checkpoint_loaded,
            kwargs={"algorithm": self},
        )

    @override(Algorithm)
    def save_to_path(self, path: str | Path | None = None, *, filesystem: Any = None, **kwargs: Any) -> str:
        """Write RLlib's checkpoint, the replay's new rows and, last of all, the manifest that makes it valid.

        Args:
            path: A local folder, a URI that pyarrow knows, or a path of `filesystem`; None makes a temporary folder.
                On storage the checkpoint holds the whole replay, whatever the config's `replay_dir`.
            filesystem: One of `pyarrow.fs`.
            kwargs: RLlib's own; the new API stack's only.

        Returns:
            What names the checkpoint: the absolute folder, or `path` where it is on storage.

        Raises:
            StorageError: If it cannot be written; there is no checkpoint then.
            NonFiniteError: If a parameter is not finite.
        """
        self.stack.call_core("check_finite")
        path = tempfile.mkdtemp(prefix="checkpoint-") if path is None else path
        place = staging.locate(path, filesystem)
        with staging.written_to(place) as directory:
            if self.config.is_old_stack:
                self._save_old_stack(directory, kwargs)
            else:
                super().save_to_path(directory, filesystem=fs.LocalFileSystem(), **kwargs)
            checkpointing.complete(self, directory, with_replay=directory != place)
        return str(place if isinstance(place, Path) else path)

    def _save_old_stack(self, directory: Path, options: dict[str, Any]) -> None:
        """Write the old stack's files, and those that make `Algorithm.from_checkpoint` call `restore_from_path`."""
        if given := [name for name, value in options.items() if value]:
            raise UserError(f"save_to_path({given[0]}=...) is available on RLlib's new API stack only.")
        directory.mkdir(parents=True, exist_ok=True)
        super().save_checkpoint(str(directory))
        about = directory / self.METADATA_FILE_NAME
        version = {"checkpoint_version": str(CHECKPOINT_VERSION_LEARNER_AND_ENV_RUNNER)}
        names = {"state_file": f"{self.STATE_FILE_NAME}.pkl"}
        about.write_text(json.dumps({**json.loads(about.read_text()), **version, **names}))
        constructor = {"class": type(self), "ctor_args_and_kwargs": self.get_ctor_args_and_kwargs()}
        (directory / self.CLASS_AND_CTOR_ARGS_FILE_NAME).write_bytes(cloudpickle.dumps(constructor))

    @classmethod
    @override(Algorithm)
    def from_checkpoint(cls, path: str | Path | Checkpoint, filesystem: Any = None, **kwargs: Any) -> Self:
        """Verify a checkpoint before unpickling anything, then build and restore the algorithm.

        Args:
            path: As for `save_to_path`, or a Checkpoint of Tune.
            filesystem: One of `pyarrow.fs`.
            kwargs: RLlib's own, and arguments of the algorithm such as `config`.

        Raises:
            CheckpointError: If the checkpoint is incomplete or damaged.
            StorageError: If its storage cannot be reached.
        """
        with staging.read_from(staging.locate(path, filesystem)) as directory:
            manifest = checkpointing.verify(directory)
            run = manifest["config"]
            with without_object_store(run["num_env_runners"] == 0 and run["num_learners"] == 0):
                algorithm: Self = super().from_checkpoint(str(directory), fs.LocalFileSystem(), **kwargs)
            if algorithm.config.is_old_stack and cls.CLASS_AND_CTOR_ARGS_FILE_NAME not in manifest["files"]:
                # From an earlier version, for which RLlib does not call restore_from_path.
                checkpointing.restore_replay(algorithm, manifest, directory)
                algorithm._after_restore(manifest)
        return algorithm

    @override(Algorithm)
    def restore_from_path(
        self,
        path: str | Path | Checkpoint,
        *,
        component: str | None = None,
        filesystem: Any = None,
        **kwargs: Any,
    ) -> None:
        """Verify a checkpoint, then restore RLlib's components and the replay.

        It may have been saved with other settings and another seed, as when PBT clones a trial: see
        `rllib_hpo.rllib.checkpointing`.

        Args:
            path: As for `save_to_path`, or a Checkpoint of Tune.
            component: The only component to restore, "learner_group/learner/rl_module/default_policy"; `path` is then
                its folder. Its networks begin a run of this configuration (fine-tuning).
            filesystem: One of `pyarrow.fs`.
            kwargs: RLlib's own.

        Raises:
            CheckpointError: If the checkpoint is incomplete, damaged, of another algorithm or task, or made
                with a setting that cannot change.
            StorageError: If its storage cannot be reached.
        """
        place = staging.locate(path, filesystem)
        if component is not None:
            self._restore_component(place, component)
            return
        with staging.read_from(place) as directory:
            manifest = checkpointing.verify(directory)
            checkpointing.check_fits(manifest, self)
            # First, because only reading it finds damage; nothing else has changed then.
            try:
                checkpointing.restore_replay(self, manifest, directory)
            except CheckpointError:
                self.lacks_replay = True  # the earlier rows were cleared
                raise
            with without_object_store(self._is_local(self.config)):
                if self.config.is_old_stack:
                    self.__setstate__(state_of_checkpoint(directory))
                else:
                    super().restore_from_path(directory, filesystem=fs.LocalFileSystem(), **kwargs)
        self._after_restore(manifest)

    def _restore_component(self, place: Path | staging.RemoteFolder, component: str) -> None:
        if self.config.is_old_stack:
            raise UserError(
                "component= is available on RLlib's new API stack only; on the old one use set_weights()."
            )
        check_component(component)
        with staging.component_from(place, component) as directory:
            weights = read_module(directory)
        if unlike := difference(self.get_weights(), weights):
            raise CheckpointError(f"The networks in {place} do not fit this configuration: {unlike}.")
        self._load_weights(weights)

    def _after_restore(self, manifest: dict[str, Any]) -> None:
        """Apply this configuration's settings after a restore, and give a clone streams of its own."""
        self.lacks_replay = False
        self.stack.apply_settings()
        self.run_seed = checkpointing.resumed_seed(manifest, self.config)
        if self.run_seed != manifest["config"]["seed"]:
            self.stack.reseed(self.run_seed, self.env_steps)
            self.evaluation_runners.set_state([])  # the donor's own

    @override(Algorithm)
    def get_weights(self, policies: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
        """Copies of all weights by module or policy ID; RLlib returns views that training changes."""
        weights = super().get_weights(policies)
        return {
            owner: {name: np.array(value) for name, value in arrays.items()}
            for owner, arrays in weights.items()
        }

    @override(Algorithm)
    def set_weights(self, weights: dict[str, dict[str, Any]]) -> None:
        """Replace all weights, those of targets and temperature included, by a result of `get_weights()`.

        Raises:
            UserError: If they are not of these networks.
        """
        if unlike := difference(self.get_weights(), weights):
            raise UserError(f"These weights do not fit: {unlike}.")
        self._load_weights(weights)

    def _load_weights(self, weights: dict[str, dict[str, Any]]) -> None:
        """Load weights into the learner; RLlib's `set_weights` calls methods that our runners lack."""
        (self.env_runner if self.config.is_old_stack else self.learner_group).set_weights(weights)
        self.stack.on_weights_changed()

    @override(Algorithm)
    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> RLModule:
        """The policy in training, with the newest weights.

        With remote runners or learners the weights are fetched at this call, at most once for each update.

        Raises:
            UserError: On RLlib's old API stack, which has none.
        """
        if self.config.is_old_stack:
            raise UserError(
                "get_module() is available on RLlib's new API stack only; on the old one use get_policy()."
            )
        self.stack.refresh_actor()
        return super().get_module(module_id)

"""What Ray does not promise and this package uses nonetheless, each with its reason. No other file touches any of it.

All of it was checked on Ray 2.60: on a new Ray, look here first. RLlib is imported where it is needed only, since
commands without training come by here too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray

CHECKED_ON = "2.60"
"""The minor version of Ray that everything here was checked on."""

INTERNAL_OPTIONS = frozenset(
    {"_train_batch_size_per_learner", "_is_frozen", "_per_module_overrides", "_is_atari"}
)
"""Attributes of AlgorithmConfig that are no options but stand among them in `vars(config)`. Ray 2.60."""

PRIVATE_OPTIONS = {"_train_batch_size_per_learner": "train_batch_size_per_learner"}
"""Where AlgorithmConfig keeps options of ours, and their public names: `to_dict` has the former. Ray 2.60."""


# Objects of Ray itself


@contextmanager
def without_object_store() -> Iterator[None]:
    """Lets `ray.put` return its argument.

    EnvRunnerGroup puts config and weights into the object store even if no actor will ever fetch them; where Ray does
    not run yet, that starts a cluster of eight processes for nothing. Ray 2.60.
    """
    put = ray.put
    ray.put = lambda value, **_: value
    try:
        yield
    finally:
        ray.put = put


@contextmanager
def without_sigterm_handler() -> Iterator[None]:
    """Keeps `ray.init` from replacing this process's handler of SIGTERM.

    Ray's own ends the process before anything is saved, and no argument of `ray.init` turns it off. Ray 2.60.
    """
    import ray._private.utils as utils

    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before


@contextmanager
def processes_in_own_groups() -> Iterator[None]:
    """Lets `ray.init` give each process of Ray a process group of its own.

    `timeout` and a lost terminal signal the whole group of the driver, and trials are still to be saved then; no
    argument of `ray.init` does it. Ray 2.60.
    """
    from ray._private import services

    before = services.ConsolePopen
    services.ConsolePopen = partial(before, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = before


def is_dead_for_good(actor: Any) -> bool:
    """Whether Ray will not start an actor again.

    A call fails in the same way while Ray starts it, and `ray.util.state` needs the dashboard. Ray 2.60.
    """
    from ray._private import state

    return bool(state.actors(actor._actor_id.hex()).get("State") == "DEAD")


def captures_children() -> bool:
    """Whether actors started in this process go to its placement group.

    `ray.util.get_current_placement_group` does not say. Ray 2.60.
    """
    from ray._private import worker

    return bool(getattr(worker.global_worker, "should_capture_child_tasks_in_placement_group", True))


def put_in_cluster(key: str, value: bytes) -> None:
    """Stores a value under a key that every process of the cluster can read.

    The key-value store outlives actors and needs none; Ray has no public one. Ray 2.60.
    """
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key, value)


def get_from_cluster(key: str) -> bytes | None:
    """The value that `put_in_cluster` stored; None if there is none. Ray 2.60."""
    from ray.experimental import internal_kv

    value: bytes | None = internal_kv._internal_kv_get(key)
    return value


# Clusters


def prepare_cluster_config(config: dict[str, Any]) -> dict[str, Any]:
    """A `ray up` configuration with Ray's defaults, as `ray up` itself prepares it; it has no dry run. Ray 2.60."""
    from ray.autoscaler._private import util

    prepared: dict[str, Any] = util.prepare_config(config)
    return prepared


def validate_cluster_config(config: dict[str, Any]) -> None:
    """Raises what `ray up` raises of a prepared configuration that does not fit its schema. Ray 2.60."""
    from ray.autoscaler._private import util

    util.validate_config(config)


def autoscaler_file(gcs_address: str) -> Path | None:
    """The configuration of the cluster's autoscaler, if one runs on this machine.

    Ray tells nobody what it could start: `ray.nodes()` has only what is there. So the file is taken from the command
    line of Ray's monitor. Ray 2.60.
    """
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended, or is somebody else's
            continue
        options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if options.get("--gcs-address") == gcs_address and "--autoscaling-config" in options:
            return Path(options["--autoscaling-config"]).expanduser()
    return None


def kuberay_resource(cluster: str, namespace: str) -> dict[str, Any]:
    """The RayCluster of this pod, asked of Kubernetes with the credentials of the autoscaler's own client. Ray 2.60."""
    from ray.autoscaler._private.kuberay import node_provider

    found: dict[str, Any] = node_provider.KubernetesHttpApiClient(namespace).get(f"rayclusters/{cluster}")
    return found


def kuberay_autoscaler_config(resource: Mapping[str, Any]) -> dict[str, Any]:
    """What KubeRay's autoscaler makes of a RayCluster; it writes no file of it. Ray 2.60."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    config: dict[str, Any] = autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)
    return config


class JobClientHooks:
    """The part of JobSubmissionClient by which every request goes.

    Ray's waits forever for a cluster that does not answer, and takes no timeout. Ray 2.60.
    """

    def request_options(self, *arguments: Any) -> dict[str, Any]:
        """Options of `requests.request` for a request with these arguments."""
        raise NotImplementedError

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return cast("Any", super())._do_request(*arguments, **{**self.request_options(*arguments), **options})

    @property
    def ray_version(self) -> str:
        """The version of the cluster's Ray, which the client asks for when it is made."""
        return str(cast("Any", self)._server_ray_version)


# RLlib


def registered_env(name: str) -> Callable[[Any], Any] | None:
    """The creator of an environment that was registered with Tune; None if there is none.

    Tune's public `register_env` has no counterpart that reads. Ray 2.60.
    """
    from ray.tune.registry import ENV_CREATOR, _global_registry

    if not _global_registry.contains(ENV_CREATOR, name):
        return None
    creator: Callable[[Any], Any] = _global_registry.get(ENV_CREATOR, name)
    return creator


def runner_bundles(config: Any) -> list[dict[str, Any]]:
    """What RLlib will ask Ray for, for each environment runner; it says so to nobody before it does. Ray 2.60."""
    from ray.rllib.algorithms.utils import _get_env_runner_bundles

    return list(_get_env_runner_bundles(config))


def learner_bundles(config: Any) -> list[dict[str, Any]]:
    """What RLlib will ask Ray for, for each remote learner. Ray 2.60."""
    from ray.rllib.algorithms.utils import _get_learner_bundles

    return list(_get_learner_bundles(config))


def actor_manager(group: Any) -> Any:
    """The manager of the actors of an EnvRunnerGroup or a LearnerGroup.

    The groups' own calls return one object each, swallow errors and wait for the dead. Ray 2.60.
    """
    return group._worker_manager


def local_learner(group: Any) -> Any:
    """The Learner of a LearnerGroup without actors; the group's calls would copy what goes through them. Ray 2.60."""
    return group._learner


def wants_component(checkpointable: Any, name: str, components: Any, not_components: Any) -> bool:
    """Whether a component is among those that `get_state` was asked for, by RLlib's own rules. Ray 2.60."""
    return bool(checkpointable._check_component(name, components, not_components))


def state_of_checkpoint(directory: Path) -> dict[str, Any]:
    """The old stack's state in a checkpoint: its `restore` goes another way than `restore_from_path`. Ray 2.60."""
    from pyarrow import fs
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.utils.checkpoints import get_checkpoint_info

    info = get_checkpoint_info(str(directory), fs.LocalFileSystem())
    state: dict[str, Any] = Algorithm._checkpoint_info_to_algorithm_state(info)
    return state


@contextmanager
def learner_device(get_device: Callable[[Any, float], Any]) -> Iterator[None]:
    """Lets TorchLearner take its device from `get_device`.

    RLlib's own asks Ray which GPUs it has given this process before it looks whether Ray runs here at all, and so
    starts a cluster for a local learner. Ray 2.60.
    """
    from ray.rllib.core.learner.torch import torch_learner

    before = torch_learner.get_device
    torch_learner.get_device = get_device
    try:
        yield
    finally:
        torch_learner.get_device = before


def leave_runners_alone(config: Any) -> None:
    """Keeps RLlib from synchronising states of runners and from making an environment to see if it is an Atari game.

    Neither has a public option: weights travel with every request for samples here. Ray 2.60.
    """
    config._dont_auto_sync_env_runner_states = True
    config._is_atari = False


def is_atari(config: Any) -> bool:
    """Whether a user has set `environment(is_atari=True)`; AlgorithmConfig keeps it under a private name. Ray 2.60."""
    return bool(config._is_atari)


class LearnerHooks:
    """The part of TorchLearner that wraps modules for several learners. Ray 2.60."""

    def _make_modules_ddp_if_necessary(self) -> None:
        """Nothing: updates do not go through a module's forward, so they average gradients by themselves."""


class AlgorithmHooks:
    """The parts of Algorithm and Trainable that have no public name. Ray 2.60."""

    config: Any

    @staticmethod
    def label_and_creator(env: Any, config: Any) -> tuple[str, Any]:
        """The name of an environment, and what makes it in a RolloutWorker."""
        raise NotImplementedError

    @classmethod
    def _get_env_id_and_creator(cls, env_specifier: Any, config: Any) -> tuple[str, Any]:
        """Environments as the new stack's runners make them: quietly, and with errors a user understands."""
        return cls.label_and_creator(env_specifier, config)

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: Any) -> bool:
        """False, so that RLlib builds no runners for evaluation: `EvaluationRunners` are ours."""
        return False

    @property
    def is_trial(self) -> bool:
        """Whether Tune runs this algorithm, and keeps its results."""
        return cast("Any", self)._storage is not None

    def _setup_logdir(self) -> None:
        """RLlib's log folder, which stays empty: a run's own directory, and never a home that cannot be written."""
        replay_dir = getattr(self.config, "replay_dir", None)
        if not self.is_trial and replay_dir is not None:
            run = Path(replay_dir).parent
            run.mkdir(parents=True, exist_ok=True)
            self._logdir = str(run)
            return
        try:
            cast("Any", super())._setup_logdir()
        except OSError:
            if self.is_trial:
                raise
            self._logdir = tempfile.mkdtemp(prefix="rllib-")

    def call_runners_recreated(self, restored: list[int]) -> None:
        """Calls `on_env_runners_recreated`, which RLlib does only where it replaces the runners itself."""
        algorithm = cast("Any", self)
        algorithm._make_on_env_runners_recreated_callbacks(
            config=self.config,
            env_runner_group=algorithm.env_runner_group,
            restored_env_runner_indices=restored,
        )

    @property
    def old_stack_counters(self) -> dict[str, int]:
        """The counters that the old stack's results are made from."""
        counters: dict[str, int] = cast("Any", self)._counters
        return counters


class PolicyHooks:
    """The parts of TorchPolicyV2 that hold batches. Ray 2.60."""

    def loaded_batch(self, buffer_index: int) -> Any:
        """The batch that `load_batch_into_buffer` has loaded; None without one."""
        loaded = cast("Any", self)._loaded_batches[buffer_index]
        return loaded[0] if loaded else None

    def as_tensors(self, batch: Any) -> Any:
        """A SampleBatch whose columns become tensors on the policy's device when they are used."""
        return cast("Any", self)._lazy_tensor_dict(batch)

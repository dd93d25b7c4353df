"""Wrap every use of Ray's private API, each with its reason. No other file uses any.

All of it was checked on Ray 2.60; check it first on a new Ray. Functions import RLlib when they need it, since commands
without training import this module too.
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
"""The minor version of Ray on which this file was checked."""

INTERNAL_OPTIONS = frozenset(
    {"_train_batch_size_per_learner", "_is_frozen", "_per_module_overrides", "_is_atari"}
)
"""Attributes of AlgorithmConfig that are not options but appear in `vars(config)`. Ray 2.60."""

PRIVATE_OPTIONS = {"_train_batch_size_per_learner": "train_batch_size_per_learner"}
"""Private names of AlgorithmConfig's options, which `to_dict` returns, and their public names. Ray 2.60."""


# Objects of Ray itself


@contextmanager
def without_object_store() -> Iterator[None]:
    """Let `ray.put` return its argument.

    EnvRunnerGroup puts config and weights into the object store even if no actor will ever fetch them; if Ray does
    not run yet, that starts a useless cluster of eight processes. Ray 2.60.
    """
    put = ray.put
    ray.put = lambda value, **_: value
    try:
        yield
    finally:
        ray.put = put


@contextmanager
def without_sigterm_handler() -> Iterator[None]:
    """Keep `ray.init` from replacing this process's handler of SIGTERM.

    Ray's handler ends the process before anything is saved, and no argument of `ray.init` disables it. Ray 2.60.
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
    """Let `ray.init` give each process of Ray its own process group.

    `timeout` and a lost terminal signal the driver's whole group, while trials must still be saved; no
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
    """Return whether Ray will not restart an actor.

    A call fails in the same way while Ray restarts it, and `ray.util.state` needs the dashboard. Ray 2.60.
    """
    from ray._private import state

    return bool(state.actors(actor._actor_id.hex()).get("State") == "DEAD")


def captures_children() -> bool:
    """Return whether actors started in this process go to its placement group.

    `ray.util.get_current_placement_group` does not tell. Ray 2.60.
    """
    from ray._private import worker

    return bool(getattr(worker.global_worker, "should_capture_child_tasks_in_placement_group", True))


def put_in_cluster(key: str, value: bytes) -> None:
    """Store a value under a key that every process of the cluster can read.

    The key-value store outlives actors and needs none; Ray has no public one. Ray 2.60.
    """
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key, value)


def get_from_cluster(key: str) -> bytes | None:
    """Return the value that `put_in_cluster` stored; None if there is none. Ray 2.60."""
    from ray.experimental import internal_kv

    value: bytes | None = internal_kv._internal_kv_get(key)
    return value


# Clusters


def prepare_cluster_config(config: dict[str, Any]) -> dict[str, Any]:
    """Complete a `ray up` configuration as `ray up` itself does, which has no dry run. Ray 2.60."""
    from ray.autoscaler._private import util

    prepared: dict[str, Any] = util.prepare_config(config)
    return prepared


def validate_cluster_config(config: dict[str, Any]) -> None:
    """Raise the error of `ray up` for a prepared configuration that does not fit its schema. Ray 2.60."""
    from ray.autoscaler._private import util

    util.validate_config(config)


def autoscaler_file(gcs_address: str) -> Path | None:
    """Return the configuration of the cluster's autoscaler, if one runs on this machine.

    `ray.nodes()` lists only running nodes, not those that Ray could start. So the file comes from the command line of
    Ray's monitor. Ray 2.60.
    """
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended, or belongs to another user
            continue
        options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if options.get("--gcs-address") == gcs_address and "--autoscaling-config" in options:
            return Path(options["--autoscaling-config"]).expanduser()
    return None


def kuberay_resource(cluster: str, namespace: str) -> dict[str, Any]:
    """Read the RayCluster of this pod from Kubernetes, with the credentials of the autoscaler's client. Ray 2.60."""
    from ray.autoscaler._private.kuberay import node_provider

    found: dict[str, Any] = node_provider.KubernetesHttpApiClient(namespace).get(f"rayclusters/{cluster}")
    return found


def kuberay_autoscaler_config(resource: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration that KubeRay's autoscaler makes of a RayCluster and keeps in no file. Ray 2.60."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    config: dict[str, Any] = autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)
    return config


class JobClientHooks:
    """The part of JobSubmissionClient through which every request passes.

    Ray's client waits forever for a cluster that does not answer, and takes no timeout. Ray 2.60.
    """

    def request_options(self, *arguments: Any) -> dict[str, Any]:
        """Return options of `requests.request` for a request with these arguments."""
        raise NotImplementedError

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return cast("Any", super())._do_request(*arguments, **{**self.request_options(*arguments), **options})

    @property
    def ray_version(self) -> str:
        """Return the version of the cluster's Ray, which the client requests at construction."""
        return str(cast("Any", self)._server_ray_version)


# RLlib


def registered_env(name: str) -> Callable[[Any], Any] | None:
    """Return the creator of an environment registered with Tune; None if there is none.

    Tune has a public `register_env`, but no public lookup. Ray 2.60.
    """
    from ray.tune.registry import ENV_CREATOR, _global_registry

    if not _global_registry.contains(ENV_CREATOR, name):
        return None
    creator: Callable[[Any], Any] = _global_registry.get(ENV_CREATOR, name)
    return creator


def runner_bundles(config: Any) -> list[dict[str, Any]]:
    """Return the resources that RLlib will request for each runner; no public call tells them. Ray 2.60."""
    from ray.rllib.algorithms.utils import _get_env_runner_bundles

    return list(_get_env_runner_bundles(config))


def learner_bundles(config: Any) -> list[dict[str, Any]]:
    """Return the resources that RLlib will request for each remote learner. Ray 2.60."""
    from ray.rllib.algorithms.utils import _get_learner_bundles

    return list(_get_learner_bundles(config))


def actor_manager(group: Any) -> Any:
    """Return the actor manager of an EnvRunnerGroup or a LearnerGroup.

    The groups' own calls return one object each, swallow errors and wait for dead actors. Ray 2.60.
    """
    return group._worker_manager


def local_learner(group: Any) -> Any:
    """Return the Learner of a LearnerGroup without actors; the group's calls would copy their arguments. Ray 2.60."""
    return group._learner


def wants_component(checkpointable: Any, name: str, components: Any, not_components: Any) -> bool:
    """Return whether `get_state` was asked for a component, by RLlib's own rules. Ray 2.60."""
    return bool(checkpointable._check_component(name, components, not_components))


def state_of_checkpoint(directory: Path) -> dict[str, Any]:
    """Return the old stack's state in a checkpoint; `restore` and `restore_from_path` read it differently. Ray 2.60."""
    from pyarrow import fs
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.utils.checkpoints import get_checkpoint_info

    info = get_checkpoint_info(str(directory), fs.LocalFileSystem())
    state: dict[str, Any] = Algorithm._checkpoint_info_to_algorithm_state(info)
    return state


@contextmanager
def learner_device(get_device: Callable[[Any, float], Any]) -> Iterator[None]:
    """Let TorchLearner take its device from `get_device`.

    RLlib's own function asks Ray for this process's GPUs before it checks whether Ray runs, and so starts a cluster for
    a local learner. Ray 2.60.
    """
    from ray.rllib.core.learner.torch import torch_learner

    before = torch_learner.get_device
    torch_learner.get_device = get_device
    try:
        yield
    finally:
        torch_learner.get_device = before


def leave_runners_alone(config: Any) -> None:
    """Keep RLlib from synchronising runners' states, and from making an environment to detect Atari games.

    Neither has a public option: this package sends weights with every request for samples. Ray 2.60.
    """
    config._dont_auto_sync_env_runner_states = True
    config._is_atari = False


def is_atari(config: Any) -> bool:
    """Return whether a user has set `environment(is_atari=True)`, which AlgorithmConfig keeps private. Ray 2.60."""
    return bool(config._is_atari)


class LearnerHooks:
    """The part of TorchLearner that wraps modules for several learners. Ray 2.60."""

    def _make_modules_ddp_if_necessary(self) -> None:
        """Do nothing: updates bypass a module's forward, so they average gradients themselves."""


class AlgorithmHooks:
    """The parts of Algorithm and Trainable that have no public name. Ray 2.60."""

    config: Any

    @staticmethod
    def label_and_creator(env: Any, config: Any) -> tuple[str, Any]:
        """Return the name of an environment, and its creator in a RolloutWorker."""
        raise NotImplementedError

    @classmethod
    def _get_env_id_and_creator(cls, env_specifier: Any, config: Any) -> tuple[str, Any]:
        """Return environments as the new stack's runners make them: quietly, and with clear errors."""
        return cls.label_and_creator(env_specifier, config)

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: Any) -> bool:
        """Return False, so that RLlib builds no evaluation runners; `EvaluationRunners` replaces them."""
        return False

    @property
    def is_trial(self) -> bool:
        """Whether Tune runs this algorithm, and keeps its results."""
        return cast("Any", self)._storage is not None

    def _setup_logdir(self) -> None:
        """Set RLlib's log folder, which stays empty, to a run's own directory, since the home may not be writable."""
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
        """Call `on_env_runners_recreated`, which RLlib calls only when it replaces the runners itself."""
        algorithm = cast("Any", self)
        algorithm._make_on_env_runners_recreated_callbacks(
            config=self.config,
            env_runner_group=algorithm.env_runner_group,
            restored_env_runner_indices=restored,
        )

    @property
    def old_stack_counters(self) -> dict[str, int]:
        """Counters from which the old stack's results are made."""
        counters: dict[str, int] = cast("Any", self)._counters
        return counters


class PolicyHooks:
    """The parts of TorchPolicyV2 that hold batches. Ray 2.60."""

    def loaded_batch(self, buffer_index: int) -> Any:
        """Return the batch that `load_batch_into_buffer` has loaded; None without one."""
        loaded = cast("Any", self)._loaded_batches[buffer_index]
        return loaded[0] if loaded else None

    def as_tensors(self, batch: Any) -> Any:
        """Return a SampleBatch whose columns become tensors on the policy's device on first use."""
        return cast("Any", self)._lazy_tensor_dict(batch)

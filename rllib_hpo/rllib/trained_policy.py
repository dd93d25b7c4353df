"""Load a trained policy from a checkpoint: networks, spaces and manifest, without workers or a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.policy.policy import Policy

from rllib_hpo.algorithms.base import Actor
from rllib_hpo.documents import reading
from rllib_hpo.errors import CheckpointError
from rllib_hpo.results.provenance import versions
from rllib_hpo.rllib.checkpointing import api_stack, follow, import_required_modules, verify
from rllib_hpo.rllib.new_stack.rl_module import ActorCriticModule
from rllib_hpo.rllib.old_stack.policy import ActorCriticTorchPolicy
from rllib_hpo.rllib.weights import MODULE_PATH

if TYPE_CHECKING:
    from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm

POLICY_PATH = "policies/default_policy"


class TrainedPolicy(NamedTuple):
    """A policy with its spaces and the manifest of its checkpoint."""

    actor: Actor
    observation_space: gym.spaces.Box
    action_space: gym.spaces.Box
    """The environment's action space with its own bounds; the actor's actions are in [-1, 1]."""
    manifest: dict[str, Any]
    """Algorithm, environment, configuration, steps and versions: see `rllib_hpo.rllib.checkpointing`."""


def load_policy(checkpoint: Path) -> TrainedPolicy:
    """Load the policy of a finished checkpoint.

    Checkpoints are pickles: load only those of people you trust.

    Raises:
        CheckpointError: If the checkpoint is incomplete, damaged or of something else.
        UserError: If a module that it needs cannot be imported.
    """
    checkpoint = follow(checkpoint)
    manifest = verify(checkpoint, with_replay=False)  # W&B's model artifacts have none
    import_required_modules(manifest, checkpoint)
    with reading(f"The checkpoint {checkpoint}"):
        return (_of_old_stack if api_stack(manifest) == "old" else _of_new_stack)(checkpoint, manifest)


def _of_new_stack(checkpoint: Path, manifest: dict[str, Any]) -> TrainedPolicy:
    module = RLModule.from_checkpoint(str(checkpoint.absolute() / MODULE_PATH))
    if not isinstance(module, ActorCriticModule):
        raise CheckpointError(f"{checkpoint} holds a {type(module).__name__}, not a policy of rllib_hpo.")
    return TrainedPolicy(module.model, module.observation_space, module.action_space, manifest)


def newest_policy(algorithm: ActorCriticAlgorithm) -> TrainedPolicy:
    """The policy of an algorithm between two iterations, with the weights of an evaluation at this step.

    The actor is the algorithm's own, which continues to learn.
    """
    algorithm.stack.refresh_actor()
    owner = algorithm.get_policy() if algorithm.config.is_old_stack else algorithm.env_runner.module
    config = algorithm.run_config()
    manifest = {
        **{name: config[name] for name in ("algorithm", "task", "env")},
        "config": config,
        "env_steps": algorithm.env_steps,
        "versions": versions(),
    }
    return TrainedPolicy(algorithm.actor, owner.observation_space, owner.action_space, manifest)


def _of_old_stack(checkpoint: Path, manifest: dict[str, Any]) -> TrainedPolicy:
    policy = Policy.from_checkpoint(str(checkpoint.absolute() / POLICY_PATH))
    if not isinstance(policy, ActorCriticTorchPolicy):
        raise CheckpointError(f"{checkpoint} holds a {type(policy).__name__}, not a policy of rllib_hpo.")
    actor = policy.model.model.to("cpu")  # a policy that was trained on a GPU would use one here, too
    return TrainedPolicy(actor, policy.observation_space, policy.action_space, manifest)

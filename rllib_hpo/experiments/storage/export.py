"""Export the policy of a checkpoint to a file that needs neither Ray nor this package."""

from __future__ import annotations

from pathlib import Path

from rllib_hpo.deployment import DeployedPolicy, PolicyMetadata, write_policy
from rllib_hpo.errors import SettingsError
from rllib_hpo.experiments.storage.checkpoints import find_checkpoint
from rllib_hpo.rllib.trained_policy import TrainedPolicy, load_policy
from rllib_hpo.tasks.wrappers import unheld_wrappers


def export_policy(checkpoint: Path, file_format: str, out: Path) -> list[Path]:
    """Write the noise-free policy of a checkpoint (or of the last one of a run) to `out`.

    Returns:
        The files written.

    Raises:
        UserError: Saying what is wrong with the checkpoint, the format or the file.
    """
    return write_policy(load_deployed(checkpoint), file_format, out)


def load_deployed(checkpoint: Path) -> DeployedPolicy:
    """Load the policy of a checkpoint (or of the last one of a run) as it would be exported.

    Raises:
        UserError: Saying what is wrong with the checkpoint.
    """
    policy = load_policy(find_checkpoint(checkpoint))
    if unheld := unheld_wrappers(policy.manifest["config"]["env_config"]):
        raise SettingsError(
            f"The policy acts on what the wrapper '{unheld[0]}' gathered in training, which an exported policy does "
            "not hold; it cannot be exported."
        )
    return deployed(policy)


def deployed(policy: TrainedPolicy) -> DeployedPolicy:
    """A trained policy as one module; the weights are copied."""
    metadata = PolicyMetadata.of_manifest(policy.manifest, policy.observation_space, policy.action_space)
    return DeployedPolicy(policy.actor, metadata)

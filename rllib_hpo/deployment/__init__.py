"""Use trained policies outside of Ray: one module from observation to action, and its files."""

from rllib_hpo.deployment.formats import (
    FORMATS,
    check_safetensors,
    load_policy_file,
    to_safetensors,
    write_policy,
)
from rllib_hpo.deployment.metadata import PolicyMetadata
from rllib_hpo.deployment.policy import DeployedPolicy

__all__ = [
    "FORMATS",
    "DeployedPolicy",
    "PolicyMetadata",
    "check_safetensors",
    "load_policy_file",
    "to_safetensors",
    "write_policy",
]

"""Store what a run keeps: checkpoints and policies, in its directory and mirrored to storage."""

from rllib_hpo.moved import moved_names

__getattr__ = moved_names(__name__)

"""Maximum-entropy actor-critics whose policies are expressive samplers, and what they are compared with, on Ray RLlib.

`SACHPOConfig`, `SACNFConfig`, `SACGaussianConfig`, `TD3Config`, `DDPGConfig` and `SoftQConfig` are RLlib
AlgorithmConfigs; `SACHPO` and so on the Algorithms to hand to Tune; `SACHPOTorchPolicy` and so on their policies on
RLlib's old API stack.
Importing this package registers its tasks with gymnasium; ray is imported when one of these names is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

import rllib_hpo.tasks  # noqa: F401  (registers the PyBullet environments)

__version__ = "0.1.0"

_LAZY = {
    **dict.fromkeys(
        ("SACGaussian", "SACNF", "SACHPO", "TD3", "DDPG", "SoftQ", "ActorCriticAlgorithm"),
        "rllib_hpo.rllib.algorithm",
    ),
    **dict.fromkeys(
        (
            "SACGaussianConfig",
            "SACNFConfig",
            "SACHPOConfig",
            "TD3Config",
            "DDPGConfig",
            "SoftQConfig",
            "ActorCriticConfig",
        ),
        "rllib_hpo.rllib.config",
    ),
    **dict.fromkeys(
        (
            "SACGaussianTorchPolicy",
            "SACNFTorchPolicy",
            "SACHPOTorchPolicy",
            "TD3TorchPolicy",
            "DDPGTorchPolicy",
            "SoftQTorchPolicy",
        ),
        "rllib_hpo.rllib.torch_policy",
    ),
}

__all__ = [
    "DDPG",
    "SACHPO",
    "SACNF",
    "TD3",
    "ActorCriticAlgorithm",
    "ActorCriticConfig",
    "DDPGConfig",
    "DDPGTorchPolicy",
    "SACGaussian",
    "SACGaussianConfig",
    "SACGaussianTorchPolicy",
    "SACHPOConfig",
    "SACHPOTorchPolicy",
    "SACNFConfig",
    "SACNFTorchPolicy",
    "SoftQ",
    "SoftQConfig",
    "SoftQTorchPolicy",
    "TD3Config",
    "TD3TorchPolicy",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

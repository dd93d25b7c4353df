"""Maximum-entropy actor-critics whose policies are expressive samplers, on Ray RLlib.

`SACHPOConfig`, `SACNFConfig` and `SACGaussianConfig` are RLlib AlgorithmConfigs; `SACHPO`, `SACNF` and
`SACGaussian` the Algorithms to hand to Tune; `SACHPOTorchPolicy` and so on their policies on RLlib's old API
stack. Importing this package registers its tasks with gymnasium; ray is imported when one of these names is
first used.
"""

from __future__ import annotations

import importlib
from typing import Any

import rllib_hpo.tasks  # noqa: F401  (registers the PyBullet environments)

__version__ = "0.1.0"

_LAZY = {
    **dict.fromkeys(("SACGaussian", "SACNF", "SACHPO", "ActorCriticAlgorithm"), "rllib_hpo.rllib.algorithm"),
    **dict.fromkeys(
        ("SACGaussianConfig", "SACNFConfig", "SACHPOConfig", "ActorCriticConfig"), "rllib_hpo.rllib.config"
    ),
    **dict.fromkeys(
        ("SACGaussianTorchPolicy", "SACNFTorchPolicy", "SACHPOTorchPolicy"), "rllib_hpo.rllib.torch_policy"
    ),
}

__all__ = [
    "SACHPO",
    "SACNF",
    "ActorCriticAlgorithm",
    "ActorCriticConfig",
    "SACGaussian",
    "SACGaussianConfig",
    "SACGaussianTorchPolicy",
    "SACHPOConfig",
    "SACHPOTorchPolicy",
    "SACNFConfig",
    "SACNFTorchPolicy",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

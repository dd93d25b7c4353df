"""Train maximum-entropy actor-critics with expressive policies, and their baselines, on Ray RLlib.

`SACHPOConfig`, `SACNFConfig`, `SACGaussianConfig`, `TD3Config` and so on are RLlib AlgorithmConfigs. `SACHPO` and so
on are the Algorithms for Tune. `SACHPOTorchPolicy` and so on are their policies on RLlib's old API stack.
Importing this package registers its tasks with gymnasium; ray is imported when one of these names is first used.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import rllib_hpo.moved

if importlib.util.find_spec("gymnasium") is not None:  # without it the mathematics still work
    import rllib_hpo.tasks

rllib_hpo.moved.install()

__version__ = "0.2.0.dev0"

_LAZY = {
    "ActorCriticAlgorithm": "rllib_hpo.rllib.algorithm",
    "ActorCriticConfig": "rllib_hpo.rllib.algorithms",  # it also imports the algorithms
    **{
        f"{name}{kind}": f"rllib_hpo.rllib.{module}"
        for name in ("SACGaussian", "SACNF", "SACHPO", "TD3", "DDPG", "MCMCPO", "LangevinPO", "SoftQ")
        for kind, module in (
            ("", "algorithms"),
            ("Config", "algorithms"),
            ("TorchPolicy", "old_stack.policy"),
        )
    },
    **{  # the old API stack has no columns for their data
        f"{name}{kind}": "rllib_hpo.rllib.algorithms"
        for name in ("SACLagrangian", "SACHPOLagrangian", "SACAE", "SACAEHPO")
        for kind in ("", "Config")
    },
}

__all__ = [
    "DDPG",
    "MCMCPO",
    "SACAE",
    "SACAEHPO",
    "SACHPO",
    "SACNF",
    "TD3",
    "ActorCriticAlgorithm",
    "ActorCriticConfig",
    "DDPGConfig",
    "DDPGTorchPolicy",
    "LangevinPO",
    "LangevinPOConfig",
    "LangevinPOTorchPolicy",
    "MCMCPOConfig",
    "MCMCPOTorchPolicy",
    "SACAEConfig",
    "SACAEHPOConfig",
    "SACGaussian",
    "SACGaussianConfig",
    "SACGaussianTorchPolicy",
    "SACHPOConfig",
    "SACHPOLagrangian",
    "SACHPOLagrangianConfig",
    "SACHPOTorchPolicy",
    "SACLagrangian",
    "SACLagrangianConfig",
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

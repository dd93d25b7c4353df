"""How an RLlib config names its environment: an id, a class or function, or a name registered with Tune."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_hpo.tasks import make_env


def environment_maker(config: Any, worker_index: int = 0) -> Callable[[], gym.Env[Any, Any]]:
    """A function that makes the environment of `config` anew each time.

    As in RLlib, a class or a registered creator is called with the `EnvContext` of `env_config`, and a
    gymnasium id gets `env_config` as keyword arguments.
    """
    context = EnvContext(config.env_config, worker_index=worker_index, num_workers=config.num_env_runners)
    if callable(config.env):
        return lambda: config.env(context)
    if _global_registry.contains(ENV_CREATOR, config.env):
        creator = _global_registry.get(ENV_CREATOR, config.env)
        return lambda: creator(context)
    return lambda: make_env(config.env, **config.env_config)

"""How an RLlib config names its environment: an id, a class or function, or a name registered with Tune."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_hpo.learning.actor_critic import Actor
from rllib_hpo.tasks import check_spaces, import_modules, make_env
from rllib_hpo.tasks.wrappers import parse_wrappers


def environment_maker(
    config: Any, worker_index: int = 0, *, training: bool = True
) -> Callable[[], gym.Env[Any, Any]]:
    """A function that makes the environment of `config` anew each time.

    As in RLlib, a class or a registered creator is called with the `EnvContext` of `env_config`, and a
    gymnasium id gets `env_config` as keyword arguments of `rllib_hpo.tasks.make_env`.
    """
    import_modules(config.imports, f"The environment {config.env}")
    context = EnvContext(config.env_config, worker_index=worker_index, num_workers=config.num_env_runners)
    if callable(config.env):
        return lambda: config.env(context)
    if _global_registry.contains(ENV_CREATOR, config.env):
        creator = _global_registry.get(ENV_CREATOR, config.env)
        return lambda: creator(context)
    # The runner checks spaces and every number itself; gymnasium's checker would cost a tenth of a step.
    arguments = {"disable_env_checker": True, "training": training, **config.env_config}
    return lambda: make_env(config.env, **arguments)


def stateful_wrappers(config: Any) -> list[str]:
    """Names of the wrappers that gather statistics."""
    return [spec.name for spec in parse_wrappers(config.env_config.get("wrappers", ())) if spec.has_state]


def try_out(config: Any) -> None:
    """Makes the environment and its networks once, here: what is wrong with them would end remote runners.

    Raises:
        UserError: Saying what is wrong.
    """
    env = environment_maker(config)()
    try:
        check_spaces(env)
        obs_dim, action_dim = map(gym.spaces.flatdim, (env.observation_space, env.action_space))
        Actor(obs_dim, action_dim, config.settings(), seed=0)
    finally:
        env.close()

"""Make the environment of an RLlib config: an id, a class or function, or a name registered with Tune."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_context import EnvContext
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.errors import NonFiniteError, SettingsError, UserError
from rllib_hpo.rllib._private import registered_env
from rllib_hpo.rllib.episode_callbacks import EpisodeCallbacks, listens
from rllib_hpo.tasks import ActionScaling, Boundary, boundary, check_spaces, import_modules, make_env
from rllib_hpo.tasks.goals import check_goals
from rllib_hpo.tasks.observations import flattened
from rllib_hpo.tasks.wrappers import parse_wrappers, with_cost


def environment_maker(
    config: Any, worker_index: int = 0, *, training: bool = True
) -> Callable[[], gym.Env[Any, Any]]:
    """A function that makes a new environment of `config` at each call.

    As in RLlib, a class or a registered creator is called with the `EnvContext` of `env_config`, and a
    gymnasium id gets `env_config` as keyword arguments of `rllib_hpo.tasks.make_env`. The function raises a
    UserError if the environment cannot be made, or has spaces that no algorithm of this package supports.

    Raises:
        SettingsError: If the config names an environment that was made already.
    """
    import_modules(config.imports, f"The environment {config.env}")
    if isinstance(config.env, gym.Env):
        raise SettingsError(
            f"env={type(config.env.unwrapped).__name__} is an environment object: give its class, a function that "
            "makes one, or a gymnasium id, since every runner makes its own."
        )
    name, cost = label(config.env), config.settings().cost
    takes_images = make_method(config.settings()).takes_images
    context = EnvContext(config.env_config, worker_index=worker_index, num_workers=config.num_env_runners)
    creator = config.env if callable(config.env) else registered_env(config.env)
    if creator is not None:
        return lambda: with_cost(
            _with_checked_spaces(flattened(boundary.made(lambda: creator(context), name)), takes_images), cost
        )
    # Spaces and every number are checked here; gymnasium's checker would cost a tenth of a step.
    arguments = {"disable_env_checker": True, "training": training, "step_cost": cost, **config.env_config}
    return lambda: _with_checked_spaces(make_env(config.env, **arguments), takes_images)


def _with_checked_spaces(env: gym.Env[Any, Any], takes_images: bool) -> gym.Env[Any, Any]:
    try:
        check_spaces(env, takes_images=takes_images)
    except UserError:
        boundary.close(env)
        raise
    return env


def stateful_wrappers(config: Any) -> list[str]:
    """Names of the wrappers that keep statistics."""
    return [spec.name for spec in parse_wrappers(config.env_config.get("wrappers", ())) if spec.has_state]


def label(env: Any) -> str:
    """Name of an environment: its id, or the name of its class or function."""
    return env if isinstance(env, str) else getattr(env, "__name__", "env")


def announce_created(
    env: gym.Env[Any, Any], runner: Any, callbacks: Sequence[Any], vector_index: int = 0
) -> None:
    """Call `on_environment_created` (`on_sub_environment_created` on the old stack) before the first reset.

    Args:
        env: The environment; callbacks get it without its wrappers, as in RLlib.
        runner: The owner; callbacks get its `config`, `metrics` and `worker_index`.
        callbacks: Instances of the config's callback classes.
        vector_index: Index of the environment in the runner.
    """
    context = EnvContext(runner.config.env_config, runner.worker_index, vector_index)
    if runner.config.is_old_stack:
        for each in callbacks:
            each.on_sub_environment_created(
                worker=runner, sub_environment=env.unwrapped, env_context=context, env_index=vector_index
            )
        return
    make_callback(
        "on_environment_created",
        callbacks_objects=list(callbacks),
        callbacks_functions=runner.config.callbacks_on_environment_created,
        kwargs={
            "env_runner": runner,
            "metrics_logger": runner.metrics,
            "env": env.unwrapped,
            "env_context": context,
        },
    )


class EvaluationEnvironments:
    """Make the environments of evaluations. Callbacks get this object as their EnvRunner, with `config.in_evaluation`.

    Args:
        config: The algorithm's config.
        worker_index: Index of the evaluation runner; 0 in the driver.
    """

    def __init__(self, config: Any, worker_index: int = 0) -> None:
        self.config, self.worker_index = config.copy(copy_frozen=False), worker_index
        self.config.in_evaluation = True
        self.metrics = MetricsLogger()
        self.env: Any = None
        """The newest environment; while episodes are played, all of them."""
        self.module: Any = None
        """The RLModule that acts, for callbacks."""
        self._callbacks = [callbacks() for callbacks in force_list(config.callbacks_class)]
        self._make = environment_maker(config, training=False)

    def __call__(self) -> gym.Env[Any, Any]:
        """Make another environment."""
        self.env = self._make()
        announce_created(self.env, self, self._callbacks)
        return self.env

    @property
    def callbacks(self) -> EvaluationEnvironments | None:
        """This object, for `evaluate`, if there are episode callbacks."""
        return self if listens(self.config, self._callbacks) else None

    def begin(self, envs: Sequence[gym.Env[Any, Any]], firsts: Sequence[tuple[Any, Any]]) -> EpisodeCallbacks:
        """Begin the episodes of an evaluation; see `rllib_hpo.rllib.evaluation.EvaluationCallbacks`."""
        self.env = Environments(list(envs))
        heard = EpisodeCallbacks(self, self._callbacks, len(envs))
        for i, (obs, info) in enumerate(firsts):
            heard.reset(i, info)
            heard.begin(i, obs)
        return heard

    def pop_metrics(self) -> dict[str, Any]:
        """Return what callbacks have logged since the last call, as plain values."""
        logged = self.metrics.reduce(compile=True) if self.metrics.stats else {}
        self.metrics.reset()
        return logged


class Environments:
    """The environments of a runner, in the place of RLlib's vector environment.

    `envs` lists them. Attributes of a single environment can be read and set, as in `env.unwrapped.set_task(3)`.
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]]) -> None:
        vars(self)["envs"] = envs

    @property
    def num_envs(self) -> int:
        """Number of environments."""
        return len(self.envs)

    @property
    def single_observation_space(self) -> gym.Space[Any]:
        """Observation space of one environment."""
        return self.envs[0].observation_space

    @property
    def single_action_space(self) -> gym.Space[Any]:
        """Action space of one environment."""
        return self.envs[0].action_space

    @property
    def unwrapped(self) -> Environments:
        """The environments without their wrappers."""
        return Environments([env.unwrapped for env in self.envs])

    def _single(self, name: str) -> gym.Env[Any, Any]:
        if len(self.envs) != 1:
            raise AttributeError(
                f"There are {len(self.envs)} environments: read '{name}' from each, for example "
                f"[env.unwrapped.{name} for env in env_runner.env.envs]."
            )
        return self.envs[0]

    def __getattr__(self, name: str) -> Any:
        """Attribute of the single environment."""
        if name.startswith("__") or "envs" not in vars(self):  # asked for by copy and pickle
            raise AttributeError(name)
        return getattr(self._single(name), name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the single environment."""
        setattr(self._single(name), name, value)


def task_of(env: gym.Env[Any, Any]) -> Any:
    """The task of an environment that has `get_task` and `set_task` (RLlib's `TaskSettableEnv`); None without them."""
    base = env.unwrapped
    if not (callable(getattr(base, "get_task", None)) and callable(getattr(base, "set_task", None))):
        return None
    try:
        return base.get_task()  # type: ignore[attr-defined]
    except NotImplementedError:  # RLlib's base class
        return None


class PlaceholderEnv(gym.Env[Any, Any]):
    """Stand in for an environment that a remote worker could not make, and raise its error at the first step.

    RLlib would lose an error that the constructor of a RolloutWorker raises, and restart the worker.
    """

    def __init__(self, error: UserError, spaces: tuple[gym.Space[Any], gym.Space[Any]]) -> None:
        self.observation_space, self.action_space = spaces
        self._error = error

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Return an observation of zeros."""
        assert isinstance(self.observation_space, gym.spaces.Box)
        return np.zeros(self.observation_space.shape, self.observation_space.dtype), {}

    def step(self, action: Any) -> NoReturn:
        """Raise the error."""
        raise self._error


class DeferredErrors(gym.Wrapper[Any, Any, Any, Any]):
    """Raise the error of a reset at the next step instead, for the same reason as `PlaceholderEnv`."""

    _error: UserError | None = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; return an observation of zeros after an error."""
        try:
            return self.env.reset(seed=seed, options=options)
        except UserError as error:
            self._error = error
            space = self.observation_space
            assert isinstance(space, gym.spaces.Box)
            return np.zeros(space.shape, space.dtype), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment, or raise the error of the last reset."""
        if self._error is not None:
            raise self._error
        return self.env.step(action)


class WorkerEnvCreator:
    """Make environments for RLlib's RolloutWorkers.

    Args:
        config: The algorithm's config.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self.spaces: tuple[gym.Space[Any], gym.Space[Any]] | None = None
        """Spaces of observations and actions, once they are known."""

    def __call__(self, context: EnvContext) -> gym.Env[Any, Any]:
        """Make the environment of one worker."""
        name = label(self._config.env)
        try:
            env = boundary.CheckedEnv(environment_maker(self._config, context.worker_index)(), name)
            return env if context.worker_index == 0 else DeferredErrors(env)
        except UserError as error:
            if context.worker_index == 0 or self.spaces is None:
                raise
            return PlaceholderEnv(error, self.spaces)


def probe_environment(config: Any) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Make the environment and its networks once in this process and take a step, before remote runners fail.

    Returns:
        The spaces of observations and actions.

    Raises:
        UserError: Saying what is wrong.
    """
    env = environment_maker(config)()
    try:
        obs_dim, action_dim = map(gym.spaces.flatdim, (env.observation_space, env.action_space))
        method = make_method(config.settings())
        method.check(method.make_actor(obs_dim, action_dim, seed=0))
        if config.settings().replay == "her":
            check_goals(env)
        tried = Boundary(env, label(config.env))
        try:
            tried.reset(env, seed=0)
            tried.step(env, ActionScaling.of(env.action_space).to_env([0.0] * action_dim))
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} at the first step of an episode.") from error
        return env.observation_space, env.action_space
    finally:
        boundary.close(env, label(config.env))

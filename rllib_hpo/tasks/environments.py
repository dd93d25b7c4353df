"""Make environments quietly, with clear errors, and scale actions to [-1, 1]."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import ArrayLike, DTypeLike, NDArray

from rllib_hpo.costs import Cost
from rllib_hpo.errors import SettingsError, UnknownNameError, UserError, nearest, shown
from rllib_hpo.tasks import point_reach, soft_q
from rllib_hpo.tasks.boundary import env_name, made
from rllib_hpo.tasks.env_config import refuse_not_recorded
from rllib_hpo.tasks.modules import load_module
from rllib_hpo.tasks.mujoco_version import check_mujoco
from rllib_hpo.tasks.observations import flattened, image_shape, is_flat, observation_problem
from rllib_hpo.tasks.pixels import dm_control
from rllib_hpo.tasks.pixels.rendering import quiet_pygame
from rllib_hpo.tasks.wrappers import parse_wrappers, with_cost, wrap

PYBULLET_IDS = (
    "HumanoidPyBulletEnv-v0",
    "HumanoidFlagrunPyBulletEnv-v0",
    "HumanoidFlagrunHarderPyBulletEnv-v0",
)

_RESERVED = frozenset({"env_id", "id", "training", "step_cost"})
"""Arguments of `make_env` and `gymnasium.make` that are not keywords of an environment's class."""

_logger = logging.getLogger(__name__)


def register_environments() -> None:
    """Register our ids with gymnasium; simulators are imported when an environment is made."""
    for env_id in PYBULLET_IDS:
        if env_id not in gym.registry:
            class_name = env_id.removesuffix("-v0")
            gym.register(
                env_id,
                entry_point=f"rllib_hpo.tasks.pybullet_humanoids:{class_name}",
                max_episode_steps=1000,
            )
    soft_q.register()
    point_reach.register()
    for domain, task in dm_control.OF_THE_PAPER:
        dm_control.register(dm_control.env_id_of(domain, task))


def find_spec(env_id: str) -> EnvSpec | None:
    """Return the gymnasium registration of `env_id` ("Hopper-v4", or "module:Id-v0"), or None.

    Raises:
        UnknownNameError: If the module before the colon cannot be imported.
    """
    register_environments()
    module, _, name = env_id.rpartition(":")
    dm_control.register(name)
    if module:
        try:
            load_module(module)
        except ImportError as error:
            raise UnknownNameError(
                f"Cannot import '{module}', which should register environment '{name}': {error}."
            ) from error
    return gym.registry.get(name)


def check_env_config(env_config: Mapping[str, Any]) -> None:
    """Reject arguments of an environment that are invalid for every class.

    Raises:
        SettingsError: If one is invalid; names the key, its value and what is allowed.
        UserError: If the record of a run lacks one of them.
    """
    refuse_not_recorded(env_config)
    if reserved := sorted(_RESERVED.intersection(env_config)):
        raise SettingsError(f"env_config: '{reserved[0]}' is set by this package; leave it out.")
    most = env_config.get("max_episode_steps")
    if most is not None and (
        isinstance(most, bool) or not isinstance(most, int) or (most < 1 and most != -1)
    ):
        raise SettingsError(
            f"env_config: max_episode_steps={shown(most)} must be an integer of at least 1, or -1 for no limit."
        )
    try:
        parse_wrappers(env_config.get("wrappers", ()))
    except SettingsError as error:
        raise SettingsError(f"env_config: {error}") from None


def make_env(
    env_id: str,
    /,
    *,
    wrappers: Any = (),
    training: bool = True,
    step_cost: Cost | None = None,
    **kwargs: Any,
) -> gym.Env[Any, Any]:
    """Call `gymnasium.make` without its deprecation warning for -v4, MuJoCo's log file, or output on stdout.

    Structured observations are flattened: see `rllib_hpo.tasks.observations`.

    Args:
        env_id: A gymnasium id, or "module:Id-v0" for one that `module` registers.
        wrappers: Wrappers by name: see `rllib_hpo.tasks.wrappers`.
        training: Whether to train in it; evaluations omit wrappers that only change rewards.
        step_cost: Definition of a step's cost, if `info` is to report it.
        **kwargs: Arguments of `gymnasium.make`, such as `render_mode` and `max_episode_steps`.

    Raises:
        UnknownNameError: If there is no such id.
        SettingsError: If `max_episode_steps` or a wrapper is invalid.
        UserError: If it exists but cannot be made, for instance because its simulator is not installed.
        UserCodeError: If its constructor raises an error.
    """
    check_env_config(kwargs)
    layers, spec = parse_wrappers(wrappers), find_spec(env_id)
    if any(layer.needs_frames for layer in layers):
        quiet_pygame()
        kwargs = {"render_mode": "rgb_array", **kwargs}
    if spec is None:
        close = nearest(env_id, gym.registry)
        hint = f" Did you mean '{close}'?" if close else ""
        raise UnknownNameError(
            f"Unknown environment '{env_id}'.{hint} If a package registers the id, give --import PACKAGE (in "
            "Python, import it), or write PACKAGE:ID."
        )
    found: EnvSpec = spec
    return flattened(
        made(
            lambda: wrap(with_cost(_make(found, env_id, kwargs), step_cost), layers, training=training),
            env_id,
        )
    )


def _make(spec: EnvSpec, env_id: str, kwargs: dict[str, Any]) -> gym.Env[Any, Any]:
    check_mujoco(env_id)
    try:
        if isinstance(spec.entry_point, str):
            importlib.import_module(spec.entry_point.partition(":")[0])
        _send_mujoco_warnings_to_logging()
        # A spec instead of an id, because gymnasium warns of newer versions only when it looks up an id.
        return gym.make(spec, **kwargs)
    except (gym.error.Error, ImportError, TypeError, OSError) as error:
        if isinstance(error, TypeError) and not _is_gymnasiums(error):
            raise
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(f"Environment '{env_id}' could not be made: {reason}.") from error


def _is_gymnasiums(error: TypeError) -> bool:
    """Return whether gymnasium raised it, or a constructor called with arguments that it does not take."""
    first = error.__cause__ or error.__context__ or error
    trace = first.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("gymnasium.")


def _send_mujoco_warnings_to_logging() -> None:
    """Send MuJoCo's warnings to logging.

    Without a handler MuJoCo prints them and writes them to MUJOCO_LOG.TXT in the working directory.
    """
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_log_mujoco_warning)


def _log_mujoco_warning(message: str) -> None:
    _logger.warning("MuJoCo: %s", message)


def check_spaces(env: gym.Env[Any, Any], *, takes_images: bool = False) -> None:
    """Reject an environment whose spaces an algorithm cannot handle.

    Args:
        env: The environment.
        takes_images: Whether the algorithm learns from images; otherwise it learns from vectors.

    Raises:
        UserError: If actions are not a bounded one-dimensional Box of floats, or observations are not flat numbers;
            `make_env` flattens those that can be.
    """
    name = env_name(env)
    if isinstance(env.action_space, _DISCRETE):
        raise UserError(
            f"Environment '{name}' has {type(env.action_space).__name__} actions, and the algorithms here choose "
            f"continuous ones: use RLlib's {_for_discrete(env.action_space)}, or a version of the task whose actions "
            "are a Box."
        )
    problem = _action_problem(env.action_space)
    if problem:
        raise UserError(
            f"Environment '{name}' has {problem}; actions must be a one-dimensional Box of floats with "
            "finite bounds, low < high."
        )
    problem = observation_problem(env.observation_space)
    if problem:
        raise UserError(f"Environment '{name}' has {problem}; {_OBSERVATIONS}.")
    if not is_flat(env.observation_space):
        raise UserError(
            f"Environment '{name}' has {type(env.observation_space).__name__} observations that are not flattened; "
            "wrap it in rllib_hpo.tasks.observations.FlatObservation."
        )
    _check_images(env, takes_images=takes_images)


def _check_images(env: gym.Env[Any, Any], *, takes_images: bool) -> None:
    name, shape = env_name(env), image_shape(env.observation_space)
    if shape is not None and not takes_images:
        raise UserError(
            f"Environment '{name}' has image observations of shape {shape}: image observations need sac-ae or "
            "sac-ae-hpo. Or learn from features: name a wrapper that computes them in env_config: {wrappers: [...]}, "
            "for small images gymnasium.wrappers:FlattenObservation."
        )
    if shape is None and takes_images:
        raise UserError(
            f"Environment '{name}' has observations of {gym.spaces.flatdim(env.observation_space)} numbers, and the "
            "algorithm learns from images: let it render them with env_config: {wrappers: [pixels]}."
        )
    if shape is not None and (shape[0] % 3 or shape[1] != shape[2]):
        raise UserError(
            f"Environment '{name}' has image observations of shape {shape}: square RGB frames, channels first, are "
            "needed, such as (9, 84, 84) for a stack of three. env_config: {wrappers: [pixels]} renders such frames."
        )


_DISCRETE = (gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
_OBSERVATIONS = (
    "observations must be numbers: Box, Discrete, MultiDiscrete and MultiBinary, also in Dict and Tuple"
)


def _for_discrete(space: gym.Space[Any]) -> str:
    """Name algorithms of RLlib for a space of discrete actions."""
    return "DQN, SAC or PPO" if isinstance(space, gym.spaces.Discrete) else "PPO"


def _action_problem(space: gym.Space[Any]) -> str | None:
    """Describe what is wrong with an action space, as a noun phrase."""
    if not isinstance(space, gym.spaces.Box):
        return f"{type(space).__name__} actions"
    if len(space.shape) != 1 or space.shape[0] == 0:
        return f"actions of shape {space.shape}"
    if not np.issubdtype(space.dtype, np.floating):
        return f"actions of type {space.dtype}"
    with np.errstate(over="ignore"):  # actions are float32, so a bound beyond its range is no bound
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        is_bounded = np.isfinite(low).all() and np.isfinite(high).all() and np.isfinite(high - low).all()
    if not is_bounded:
        return "unbounded actions"
    if not (low < high).all():
        return "an action component that cannot vary"
    return None


class ActionScaling:
    """Scale actions between [-1, 1] and an environment's bounds, elementwise."""

    def __init__(self, low: ArrayLike, high: ArrayLike, dtype: DTypeLike = np.float32) -> None:
        """Take the environment's bounds, each of shape (A,), and the dtype of its actions."""
        bottom, top = np.asarray(low, np.float64), np.asarray(high, np.float64)
        self.low: NDArray[np.float32] = _rounded_inwards(bottom, np.inf)
        self.high: NDArray[np.float32] = _rounded_inwards(top, -np.inf)
        self.center: NDArray[np.float32] = (bottom / 2 + top / 2).astype(np.float32)
        self.half: NDArray[np.float32] = (top / 2 - bottom / 2).astype(np.float32)
        self.dtype = np.dtype(dtype)
        self._bounds = np.asarray(low, self.dtype), np.asarray(high, self.dtype)

    @classmethod
    def of(cls, space: gym.Space[Any]) -> ActionScaling:
        """Make the scaling for an environment that passed `check_spaces`."""
        assert isinstance(space, gym.spaces.Box)
        return cls(space.low, space.high, space.low.dtype)

    def to_env(self, action: ArrayLike) -> NDArray[Any]:
        """Clip actions (..., A) to [-1, 1] and rescale them to the bounds, in the environment's dtype."""
        unit = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        # Clip once more, as last operation, because rounding may exceed the bounds.
        scaled: NDArray[Any] = np.clip(
            (self.center + self.half * unit).astype(self.dtype, copy=False), *self._bounds
        )
        return scaled

    def from_env(self, action: ArrayLike) -> NDArray[np.float32]:
        """Invert `to_env`: scale actions (..., A) within the bounds to [-1, 1], in float32."""
        unit = (np.asarray(action, np.float32) - self.center) / self.half
        return np.clip(unit, -1.0, 1.0)


def _rounded_inwards(bounds: NDArray[np.float64], towards: float) -> NDArray[np.float32]:
    """Round bounds to float32 towards the inside; exact float32 values stay unchanged."""
    rounded = bounds.astype(np.float32)
    is_beyond = rounded < bounds if towards > 0 else rounded > bounds
    return np.where(is_beyond, np.nextafter(rounded, np.float32(towards)), rounded)

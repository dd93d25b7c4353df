"""Save a simulator during an episode, so that another process continues it bitwise.

`capture` returns a dict of plain values (numbers, strings, NumPy arrays, lists, dicts) that can be pickled;
`restore` loads it into a newly made environment of the same kind. It holds, outermost wrapper first:

* of each wrapper, its counters and statistics;
* of the environment, its attributes and its random generator;
* of MuJoCo, the integration state (`mjSTATE_INTEGRATION`) *and* the derived quantities. The former alone
  determines the physics, but not the rewards: Ant and Humanoid measure progress from body positions that
  MuJoCo computed before its last integration step, and recomputing them would change them.

It does not hold the generators of the spaces (`action_space.sample()`). `capture` returns None for an environment or
wrapper that may hold more state (PyBullet's cannot be read, a user's class may hold anything); its owner then closes
and rebuilds it at checkpoints.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from gymnasium.wrappers.utils import RunningMeanStd

from rllib_hpo.errors import CheckpointError
from rllib_hpo.tasks.costs import CostWrapper
from rllib_hpo.tasks.observations import FlatObservation
from rllib_hpo.tasks.pixels import PixelObservation
from rllib_hpo.tasks.wrappers import ActionRepeat

# Exact classes, since a subclass may add state. TransformAction and similar wrappers hold a user's function.
_KNOWN_WRAPPERS = frozenset(
    {
        ActionRepeat,
        CostWrapper,
        FlatObservation,
        PixelObservation,
        wrappers.Autoreset,
        wrappers.ClipAction,
        wrappers.ClipReward,
        wrappers.DelayObservation,
        wrappers.DtypeObservation,
        wrappers.FilterObservation,
        wrappers.FlattenObservation,
        wrappers.FrameStackObservation,
        wrappers.MaxAndSkipObservation,
        wrappers.NormalizeObservation,
        wrappers.NormalizeReward,
        wrappers.OrderEnforcing,
        wrappers.PassiveEnvChecker,
        wrappers.RecordEpisodeStatistics,
        wrappers.RescaleAction,
        wrappers.RescaleObservation,
        wrappers.ReshapeObservation,
        wrappers.StickyAction,
        wrappers.TimeAwareObservation,
        wrappers.TimeLimit,
    }
)
_OWN = "rllib_hpo.tasks.soft_q."
_POINT_REACH = "rllib_hpo.tasks.point_reach."
_MUJOCO_MODULES = ("gymnasium.envs.mujoco.", f"{_OWN}snake.", f"{_OWN}quadruped.")
_PLAIN_MODULES = ("gymnasium.envs.classic_control.", f"{_OWN}multi_goal.", _POINT_REACH)

# Attributes set at construction, saved elsewhere, or used for rendering only.
_NOT_STATE = frozenset(
    {
        *("env", "spec", "_cached_spec", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", "_np_random"),
        *(
            "action_space",
            "observation_space",
            "_action_space",
            "_observation_space",
            "metadata",
            "_metadata",
        ),
        *("model", "data", "fullpath", "observation_structure", "mujoco_renderer", "render_mode"),
        *("width", "height", "camera_name", "camera_id", "screen", "clock", "surf"),
    }
)
# Readings of time.perf_counter(), which are meaningless in another process.
_CLOCKS = frozenset({"episode_start_time"})


class _NotPlainError(Exception):
    """Raised for a value that cannot be saved faithfully."""


def capture(env: gym.Env[Any, Any]) -> dict[str, Any] | None:
    """Return everything that determines the future of `env`, or None if that cannot be read exactly."""
    base = env.unwrapped
    module = type(base).__module__ + "."
    mujoco_env = module.startswith(_MUJOCO_MODULES)
    if not mujoco_env and not module.startswith(_PLAIN_MODULES):
        return None
    if any(type(layer) not in _KNOWN_WRAPPERS for layer in _layers(env)[:-1]):
        return None
    if mujoco_env and base.get_wrapper_attr("model").nplugin:
        return None
    try:
        attributes = [_attributes(layer) for layer in _layers(env)]
    except _NotPlainError:
        return None
    return {
        "layers": _layer_names(env),
        "attributes": attributes,
        "generator": _generator_state(base),
        "mujoco": _mujoco_state(base) if mujoco_env else None,
    }


def restore(env: gym.Env[Any, Any], state: dict[str, Any]) -> None:
    """Load a captured state into a newly made environment of the same kind; it needs no reset.

    Raises:
        CheckpointError: If the state is of another environment, other wrappers or another version of MuJoCo.
    """
    if _layer_names(env) != state["layers"]:
        raise CheckpointError(
            f"The saved simulator is a {' of '.join(state['layers'])}, but the environment is a "
            f"{' of '.join(_layer_names(env))}."
        )
    if state["mujoco"] is not None:
        _restore_mujoco(env.unwrapped, state["mujoco"])
    for layer, attributes in zip(_layers(env), state["attributes"], strict=True):
        for name, value in attributes.items():
            _set_attribute(layer, name, value)
    _restore_generator(env.unwrapped, state["generator"])


def _layers(env: gym.Env[Any, Any]) -> list[gym.Env[Any, Any]]:
    """Return the wrappers from the outermost inwards, then the environment."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _layer_names(env: gym.Env[Any, Any]) -> list[str]:
    return [f"{type(layer).__module__}.{type(layer).__qualname__}" for layer in _layers(env)]


def _attributes(layer: gym.Env[Any, Any]) -> dict[str, Any]:
    """Return the attributes that form the state of one layer, as plain values."""
    plain: dict[str, Any] = {}
    for name, value in vars(layer).items():
        # The functions of these wrappers and environments are made once and hold no state.
        if name in _NOT_STATE or callable(value):
            continue
        plain[name] = time.perf_counter() - value if name in _CLOCKS else _to_plain(value)
    return plain


def _to_plain(value: Any) -> Any:
    """Copy a value into scalars, strings, arrays, lists, tuples and dicts only."""
    if value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
        return value
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.copy()
    if isinstance(value, tuple):
        return tuple(_to_plain(item) for item in value)
    if isinstance(value, list | deque):
        return [_to_plain(item) for item in value]
    if isinstance(value, dict):
        return {_to_plain(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, RunningMeanStd):
        return _to_plain(vars(value))
    raise _NotPlainError


def _set_attribute(layer: gym.Env[Any, Any], name: str, value: Any) -> None:
    """Undo `_to_plain` for one attribute; fill containers of the layer in place."""
    present = getattr(layer, name, None)
    value = _to_plain(value)  # a copy, so that the saved state can be restored again
    if name in _CLOCKS:
        setattr(layer, name, time.perf_counter() - value)
    elif isinstance(present, deque):
        present.clear()
        present.extend(value)
    elif isinstance(present, RunningMeanStd):
        vars(present).update(value)
    else:
        setattr(layer, name, value)


def _generator_state(base: gym.Env[Any, Any]) -> dict[str, Any] | None:
    """Return the state of the environment's generator; None before the first reset, which makes it."""
    generator = base._np_random
    return None if generator is None else dict(generator.bit_generator.state)


def _restore_generator(base: gym.Env[Any, Any], state: dict[str, Any] | None) -> None:
    if state is None:
        base._np_random = None
        return
    bit_generator = getattr(np.random, state["bit_generator"])()
    bit_generator.state = state
    base._np_random = np.random.Generator(bit_generator)


def _mujoco_state(base: Any) -> dict[str, Any]:
    """Return the integration state, and every derived array of mjData whose size the model fixes."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(base.model, kind))
    mujoco.mj_getState(base.model, base.data, integration, kind)
    derived = {name: getattr(base.data, name).copy() for name in _fixed_arrays(base.model)}
    return {"version": mujoco.__version__, "integration": integration, "derived": derived}


def _restore_mujoco(base: Any, state: dict[str, Any]) -> None:
    import mujoco

    if state["version"] != mujoco.__version__:
        raise CheckpointError(
            f"The simulator was saved with MuJoCo {state['version']}, but {mujoco.__version__} is installed, so it "
            "cannot continue exactly."
        )
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    if mujoco.mj_stateSize(base.model, kind) != state["integration"].size:
        raise CheckpointError("The saved simulator has a different MuJoCo model.")
    mujoco.mj_resetData(base.model, base.data)
    mujoco.mj_setState(base.model, base.data, state["integration"], kind)
    # Contacts and constraints have no fixed size. They are recomputed, as every step does before it uses them.
    mujoco.mj_forward(base.model, base.data)
    mujoco.mj_setState(base.model, base.data, state["integration"], kind)
    for name, values in state["derived"].items():
        getattr(base.data, name)[...] = values


def _fixed_arrays(model: Any) -> list[str]:
    """Return names of the fixed-size arrays of mjData; those of contacts are empty in new data."""
    import mujoco

    fresh = mujoco.MjData(model)
    names = [name for name in dir(fresh) if not name.startswith("_") and name != "plugin_data"]
    return [name for name in names if isinstance(array := getattr(fresh, name), np.ndarray) and array.size]

"""Apply gymnasium wrappers by name, as a sweep file or `env_config` lists them, innermost first.

```yaml
env_config:
  wrappers:
    - action-repeat: {num_repeats: 2}
    - normalize-observation
    - mypackage.wrappers:MyWrapper
```

Evaluations omit wrappers that only change rewards (a `gymnasium.RewardWrapper`, or one with `training_only = True`),
because they measure the environment's own return. Checkpoints hold the statistics of wrappers, and evaluations use the
frozen statistics of training. A custom wrapper supports this by `get_state()`, which returns plain values, and
`set_state(state)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from gymnasium.wrappers.utils import RunningMeanStd

from rllib_hpo.costs import Cost
from rllib_hpo.errors import SettingsError, nearest, shown
from rllib_hpo.tasks.costs import COST, CostWrapper
from rllib_hpo.tasks.modules import load_module

Env = gym.Env[Any, Any]


class ActionRepeat(gym.Wrapper[Any, Any, Any, Any]):
    """Repeat every action and sum rewards and costs. The algorithm counts decisions as steps.

    Args:
        env: The environment.
        num_repeats: Number of repeats, at least 1; fewer at the end of an episode.
    """

    def __init__(self, env: Env, num_repeats: int = 2) -> None:
        super().__init__(env)
        if num_repeats < 1:
            raise ValueError(f"num_repeats={num_repeats} must be at least 1")
        self.num_repeats = num_repeats

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Return the last observation and info, with the sums of rewards and, if any, of costs."""
        total, costs = 0.0, []
        for _ in range(self.num_repeats):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if isinstance(info.get(COST), (int, float, np.number)):
                costs.append(float(info[COST]))
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, {**info, COST: sum(costs)} if costs else info


WRAPPERS: dict[str, type[gym.Wrapper[Any, Any, Any, Any]]] = {
    "action-repeat": ActionRepeat,
    "normalize-observation": NormalizeObservation,
    "normalize-reward": NormalizeReward,
}
"""Names of common wrappers; others are "gymnasium.wrappers:TimeAwareObservation" or "module:Class"."""
_PLACES = {"pixels": "rllib_hpo.tasks.pixels.observation:PixelObservation"}
"""Names of wrappers that are imported when they are used."""


class WrapperSpec(NamedTuple):
    """One entry of a list of wrappers."""

    name: str
    wrapper: type[gym.Wrapper[Any, Any, Any, Any]]
    kwargs: dict[str, Any]

    @property
    def training_only(self) -> bool:
        """Whether evaluations omit it, because it only changes rewards."""
        rewards = issubclass(self.wrapper, (gym.RewardWrapper, NormalizeReward))
        return bool(getattr(self.wrapper, "training_only", rewards))

    @property
    def needs_frames(self) -> bool:
        """Whether it needs an environment that renders its frames."""
        return bool(getattr(self.wrapper, "needs_frames", False))

    @property
    def has_state(self) -> bool:
        """Whether it has state that outlives an episode."""
        return issubclass(self.wrapper, (NormalizeObservation, NormalizeReward)) or _saves_itself(
            self.wrapper
        )


def parse_wrappers(listed: Any) -> list[WrapperSpec]:
    """Parse a list of names, or of one-entry mappings from a name to its arguments.

    Raises:
        SettingsError: If an entry is invalid; names it, and the nearest valid name.
    """
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise SettingsError(f"wrappers={shown(listed)} must be a list of names.")
    return [_parse(entry) for entry in listed]


def unheld_wrappers(env_config: Mapping[str, Any]) -> list[str]:
    """Return names of wrappers whose state a policy needs and an exported policy does not hold."""
    listed = parse_wrappers(env_config.get("wrappers", ()))
    return [spec.name for spec in listed if spec.has_state and not spec.training_only]


def _parse(entry: Any) -> WrapperSpec:
    name: Any = entry
    kwargs: Any = {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, kwargs),) = entry.items()
    if not isinstance(name, str) or not isinstance(kwargs, Mapping):
        raise SettingsError(f"wrappers: {shown(entry)} must be a name, or a name with its arguments.")
    wrapper = WRAPPERS.get(name) or _imported(_PLACES.get(name, name))
    return WrapperSpec(name, wrapper, dict(kwargs))


def _imported(name: str) -> type[gym.Wrapper[Any, Any, Any, Any]]:
    module, colon, attribute = name.partition(":")
    if not colon:
        close = nearest(name, [*WRAPPERS, *_PLACES])
        hint = f" Did you mean '{close}'?" if close else ""
        raise SettingsError(
            f"wrappers: there is no '{name}'.{hint} Valid: {', '.join([*WRAPPERS, *_PLACES])}, or 'module:Class'."
        )
    try:
        found = getattr(load_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"wrappers: '{name}' cannot be imported: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, gym.Wrapper)):
        raise SettingsError(f"wrappers: '{name}' is not a gymnasium.Wrapper.")
    return found


def wrap(env: Env, specs: Sequence[WrapperSpec], *, training: bool = True) -> Env:
    """Wrap an environment; for evaluations omit wrappers of training only.

    Raises:
        SettingsError: If a wrapper does not take its arguments or this environment, or lacks a package.
    """
    for spec in specs:
        if spec.training_only and not training:
            continue
        try:
            env = spec.wrapper(env, **spec.kwargs)
        except Exception as error:  # a third-party wrapper may raise anything
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise SettingsError(f"wrappers: '{spec.name}' does not fit the environment: {reason}.") from error
    return env


def with_cost(env: Env, cost: Cost | None) -> Env:
    """Make the environment report costs, below every `ActionRepeat`, which sums them."""
    repeats = [layer for layer in _layers(env) if isinstance(layer, ActionRepeat)]
    if cost is None:
        return env
    if not repeats:
        return CostWrapper(env, cost)
    repeats[-1].env = CostWrapper(repeats[-1].env, cost)
    return env


def get_state(env: Env) -> list[tuple[str, Any]]:
    """Return the state of an environment's wrappers, outermost first: class names and plain values."""
    return [(_name(layer), _state_of(layer)) for layer in _layers(env) if _keeps_state(layer)]


def set_state(env: Env, state: Sequence[Sequence[Any]], *, frozen: bool = False) -> None:
    """Load the states that `get_state` returned into wrappers of the same classes.

    Args:
        env: Environment with the same wrappers, except that wrappers of training only may be missing.
        state: State of another environment, or one read from JSON.
        frozen: Whether to stop updating statistics.
    """
    waiting = [list(entry) for entry in state]
    for layer in _layers(env):
        if not _keeps_state(layer):
            continue
        place = next((i for i, (name, _) in enumerate(waiting) if name == _name(layer)), None)
        if place is not None:
            _set_state_of(layer, waiting.pop(place)[1])
        if frozen and hasattr(layer, "update_running_mean"):
            layer.update_running_mean = False


def _layers(env: Env) -> list[Any]:
    layers: list[Any] = []
    while isinstance(env, gym.Wrapper):
        layers.append(env)
        env = env.env
    return layers


def _name(layer: Any) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _saves_itself(wrapper: Any) -> bool:
    # Not hasattr on the instance: a gymnasium wrapper may forward attributes of the environment.
    kind = wrapper if isinstance(wrapper, type) else type(wrapper)
    return callable(getattr(kind, "get_state", None)) and callable(getattr(kind, "set_state", None))


def _keeps_state(layer: Any) -> bool:
    return isinstance(layer, (NormalizeObservation, NormalizeReward)) or _saves_itself(layer)


def _state_of(layer: Any) -> Any:
    if _saves_itself(layer):
        return layer.get_state()
    statistics = _statistics(layer)
    return {
        "mean": np.asarray(statistics.mean).tolist(),
        "var": np.asarray(statistics.var).tolist(),
        "count": float(statistics.count),
    }


def _set_state_of(layer: Any, state: Any) -> None:
    if _saves_itself(layer):
        layer.set_state(state)
        return
    statistics = _statistics(layer)
    statistics.mean = np.asarray(state["mean"], np.float64)
    statistics.var = np.asarray(state["var"], np.float64)
    statistics.count = state["count"]


def _statistics(layer: Any) -> RunningMeanStd:
    return layer.obs_rms if isinstance(layer, NormalizeObservation) else layer.return_rms

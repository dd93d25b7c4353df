"""Make, reset and step environments, and check what they return.

Runners, evaluations and films all use environments through this module. It converts what they return into numbers, or
raises an error that says why it cannot.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rllib_hpo.errors import NonFiniteError, UserCodeError, UserError
from rllib_hpo.tasks.outcomes import SUCCESS

_logger = logging.getLogger(__name__)
Env = gym.Env[Any, Any]
_LARGEST = float(np.finfo(np.float32).max)
_NUMBERS = "fiub"
"""Kinds of NumPy dtypes of real numbers."""
_OLD_API = (
    "wrap an environment of the old gym API with shimmy.GymV21CompatibilityV0 or shimmy.GymV26CompatibilityV0"
)
_VECTOR_REWARD = (
    "the reward must be one number: combine several objectives, for example with mo_gymnasium.LinearReward, named "
    "in env_config: {wrappers: [...]}"
)


def env_name(env: Env) -> str:
    """Return the gymnasium id of an environment, or the name of its class."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def made(create: Callable[[], Any], name: str) -> Env:
    """Return the environment that `create` makes.

    Raises:
        UserCodeError: If it raises an error, or returns anything else than an environment.
    """
    try:
        env = create()
    except UserError:
        raise
    except Exception as error:
        raise _raised(error, name, "could not be made: its constructor raised") from error
    if isinstance(env, gym.Env):
        return env
    if env is None:
        what = "the function that makes it returned None; it must return the environment"
    elif isinstance(env, type):
        what = f"the function that makes it returned the class {env.__name__}; it must return an instance"
    elif callable(getattr(env, "reset", None)) and callable(getattr(env, "step", None)):
        what = f"{type(env).__name__} is not a gymnasium.Env; derive from it, or {_OLD_API}"
    else:
        what = f"the function that makes it returned {described(env)}; it must return a gymnasium.Env"
    raise UserCodeError(f"Environment '{name}' could not be made: {what}.")


def close(env: Env, name: str = "") -> None:
    """Close an environment; log an error as a warning, since nothing depends on closing."""
    try:
        env.close()
    except Exception as error:  # noqa: BLE001  (the user's code may raise anything)
        _logger.warning(
            "Environment '%s' raised %s in close(): %s. It is no longer used, so no result changes.",
            name or env_name(env),
            type(error).__name__,
            error,
        )


class Boundary:
    """Reset and step environments of one kind, and check what they return.

    Args:
        env: An environment of that kind.
        name: Its name in errors; by default its gymnasium id or class.
    """

    def __init__(self, env: Env, name: str | None = None) -> None:
        self.name = name or env_name(env)
        self._shape = env.observation_space.shape

    def reset(self, env: Env, seed: int | None = None) -> NDArray[np.float32]:
        """Return the first observation (S,) of an episode; see `reset_with_info`."""
        return self.reset_with_info(env, seed)[0]

    def reset_with_info(self, env: Env, seed: int | None = None) -> tuple[NDArray[np.float32], Any]:
        """Return the first observation (S,) of an episode, and the unchanged info of the environment.

        Raises:
            UserCodeError: If the environment raises an error, or returns something outside its space.
            NonFiniteError: If the observation is not finite in float32.
        """
        try:
            result: Any = env.reset(seed=seed)
        except UserError:
            raise
        except Exception as error:
            for keyword in ("seed", "options"):
                if isinstance(error, TypeError) and f"unexpected keyword argument '{keyword}'" in str(error):
                    self._refuse_reset(keyword, error)
            raise _raised(error, self.name, "raised", "reset") from error
        is_pair = isinstance(result, (tuple, list)) and len(result) == 2
        if not (is_pair and (result[1] is None or isinstance(result[1], Mapping))):
            raise UserCodeError(
                f"Environment '{self.name}' returned {described(result)} from reset(), where (observation, info) was "
                f"expected: add the dictionary info, or {_OLD_API}."
            )
        return self._observation(result[0], "reset"), result[1]

    def step(self, env: Env, action: NDArray[Any]) -> tuple[NDArray[np.float32], float, bool, bool]:
        """Return observation (S,), reward, terminated and truncated; see `step_with_info`."""
        return self.step_with_info(env, action)[:4]

    def step_with_info(
        self, env: Env, action: NDArray[Any]
    ) -> tuple[NDArray[np.float32], float, bool, bool, Any]:
        """Return observation (S,), reward, terminated, truncated, and the unchanged info of the environment.

        Raises:
            UserCodeError: If the environment raises an error, or returns what gymnasium or its space forbids.
            NonFiniteError: If the observation or the reward is not finite in float32.
        """
        try:
            result: Any = env.step(action)
        except UserError:
            raise
        except Exception as error:
            raise _raised(error, self.name, "raised", "step") from error
        if not (isinstance(result, (tuple, list)) and len(result) == 5):
            self._refuse_step(result)
        observation, reward, terminated, truncated, info = result
        obs = self._observation(observation, "step")
        if not isinstance(reward, float):
            reward = self._reward(reward)
        if not -_LARGEST <= reward <= _LARGEST:
            raise NonFiniteError(f"The reward of {self.name} is not finite")
        if terminated is not True and terminated is not False:
            terminated = self._flag(terminated, "terminated")
        if truncated is not True and truncated is not False:
            truncated = self._flag(truncated, "truncated")
        return obs, float(reward), terminated, truncated, info

    def column(self, info: Any, name: str, size: int) -> NDArray[np.float32]:
        """Return the numbers (size,) of a column that an algorithm needs, from the step's info.

        Raises:
            UserCodeError: If they are missing, or not `size` numbers.
            NonFiniteError: If they are not finite in float32.
        """
        if not isinstance(info, Mapping) or name not in info:
            raise UserCodeError(
                f"Environment '{self.name}' reports no '{name}' in the info of step(), which the algorithm learns "
                "from: report it at every step, or use a task or a wrapper that does."
            )
        array = as_array(info[name])
        if array is None or array.size != size or array.dtype.kind not in f"{_NUMBERS}b":
            raise UserCodeError(
                f"Environment '{self.name}' reports {described(info[name])} as '{name}' in the info of step(), where "
                f"{'a number was' if size == 1 else f'{size} numbers were'} expected."
            )
        numbers: NDArray[np.float32] = array.reshape(size).astype(np.float32)
        if not np.isfinite(numbers).all():
            raise NonFiniteError(f"The {name} of {self.name} is not finite")
        return numbers

    def success(self, info: Any) -> float | None:
        """Return whether an episode that ends here succeeded, 0.0 or 1.0; None if the environment does not say.

        Raises:
            UserCodeError: If it reports something else than a number.
        """
        if not isinstance(info, Mapping) or info.get(SUCCESS) is None:
            return None
        return float(self.column(info, SUCCESS, 1)[0])

    def reward_of(self, compute: Callable[[], Any], method: str) -> float:
        """Return the reward that a call of an environment's method computes.

        Raises:
            UserCodeError: If it raises an error, or returns something else than a number.
            NonFiniteError: If the reward is not finite in float32.
        """
        reward = self._reward(self._called(compute, method), method)
        if not -_LARGEST <= reward <= _LARGEST:
            raise NonFiniteError(f"The reward of {self.name} from {method}() is not finite")
        return reward

    def flag_of(self, compute: Callable[[], Any], method: str) -> bool:
        """Return the flag that a call of an environment's method computes.

        Raises:
            UserCodeError: If it raises an error, or returns something else than a flag.
        """
        return self._flag(self._called(compute, method), "the result", method)

    def _called(self, compute: Callable[[], Any], method: str) -> Any:
        try:
            return compute()
        except UserError:
            raise
        except Exception as error:
            raise _raised(error, self.name, "raised", method) from error

    def _observation(self, value: Any, method: str) -> NDArray[np.float32]:
        array = value if value.__class__ is np.ndarray else as_array(value)
        if array is None or array.shape != self._shape or array.dtype.kind not in _NUMBERS:
            raise UserCodeError(
                f"Environment '{self.name}' returned {described(value)} as the observation from {method}(), but its "
                f"observation_space declares numbers of shape {self._shape}: return what it declares, or declare "
                "what it returns."
            )
        obs: NDArray[np.float32] = array.astype(np.float32)
        if not np.isfinite(obs).all():
            raise NonFiniteError(f"The observation of {self.name} is not finite")
        return obs

    def _reward(self, value: Any, method: str = "step") -> float:
        array = as_array(value)
        if array is not None and array.size == 1 and array.dtype.kind in _NUMBERS:
            return float(array.reshape(-1)[0])
        several = array is not None and array.size > 1 and array.dtype.kind in _NUMBERS
        remedy = _VECTOR_REWARD if several else "the reward must be one number"
        raise UserCodeError(
            f"Environment '{self.name}' returned {described(value)} as the reward from {method}(), where a number "
            f"was expected: {remedy}."
        )

    def _flag(self, value: Any, which: str, method: str = "step") -> bool:
        if isinstance(value, np.bool_):
            return bool(value)
        array = as_array(value)
        if array is not None and array.size == 1 and array.dtype.kind in _NUMBERS:
            number = array.reshape(-1)[0]
            if number in (0, 1):
                return bool(number)
        remedy = ": step() must return (observation, reward, terminated, truncated, info)"
        raise UserCodeError(
            f"Environment '{self.name}' returned {described(value)} as {which} from {method}(), where True or False "
            f"was expected{remedy if method == 'step' else ''}."
        )

    def _refuse_step(self, result: Any) -> NoReturn:
        remedy = (
            f"a 4-tuple is the old gym API, so {_OLD_API}"
            if isinstance(result, (tuple, list)) and len(result) == 4
            else "return all five"
        )
        raise UserCodeError(
            f"Environment '{self.name}' returned {described(result)} from step(), where (observation, reward, "
            f"terminated, truncated, info) was expected: {remedy}."
        )

    def _refuse_reset(self, keyword: str, error: TypeError) -> NoReturn:
        raise UserCodeError(
            f"Environment '{self.name}' has a reset() that does not take '{keyword}': define it as reset(self, *, "
            f"seed=None, options=None), or {_OLD_API}."
        ) from error


class CheckedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Check an environment that callers step themselves, as RLlib's RolloutWorkers do. Use it as outermost wrapper."""

    def __init__(self, env: Env, name: str | None = None) -> None:
        super().__init__(env)
        self._boundary = Boundary(env, name)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Reset as `Boundary.reset`, in the dtype of the space; `options` are not passed on."""
        return self._in_space(self._boundary.reset(self.env, seed)), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step as `Boundary.step`, with actions clipped to the bounds in the environment's dtype."""
        space = self.env.action_space
        assert isinstance(space, gym.spaces.Box)
        inside = np.clip(np.asarray(action, space.dtype), space.low, space.high)
        obs, reward, terminated, truncated = self._boundary.step(self.env, inside)
        return self._in_space(obs), reward, terminated, truncated, {}

    def _in_space(self, obs: NDArray[np.float32]) -> NDArray[Any]:
        """Cast to the space's dtype: RLlib checks that observations are in their space, dtype included."""
        return obs.astype(self.env.observation_space.dtype, copy=False)

    def close(self) -> None:
        """Close as the function `close` does."""
        close(self.env, self._boundary.name)


def as_array(value: Any) -> NDArray[Any] | None:
    """Return what an environment gave as an array, or None if it cannot be one."""
    try:
        return np.asarray(value)
    except Exception:  # noqa: BLE001  # ragged lists, tensors on a GPU, objects with an __array__ of their own
        return None


def described(value: Any) -> str:
    """Describe a value from an environment as a noun phrase: its type and distinguishing features."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, np.ndarray) and value.size != 1:
        return f"an array of shape {value.shape} and type {value.dtype}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def _raised(error: Exception, name: str, what: str, method: str = "") -> UserCodeError:
    """Describe an environment's error as a sentence, with its traceback from the environment on."""
    trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
    text = "".join(traceback.format_exception(type(error), error, trace))
    where = f" in {method}()" if method else ""
    reason = " ".join(str(error).split()).rstrip(".")
    said = f"{type(error).__name__}{where}" + (f": {reason}" if reason else "")
    return UserCodeError(f"Environment '{name}' {what} {said}{_place(trace)}.", text)


def _place(trace: TracebackType | None) -> str:
    if trace is None:
        return ""
    frame = inspect.getinnerframes(trace, context=0)[-1]
    return f" ({Path(frame.filename).name}, line {frame.lineno})"

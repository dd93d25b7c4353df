"""Test what environments return: what becomes a number, and what an error that says what to do."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

from rllib_hpo.errors import NonFiniteError, UserCodeError, UserError
from rllib_hpo.tasks import Boundary, boundary, make_env

ACTION = np.zeros(2, np.float32)


class Puppet(gym.Env[Any, Any]):
    """Return the given values."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, from_reset: Any = None, from_step: Any = None) -> None:
        self.from_reset = (np.zeros(3), {}) if from_reset is None else from_reset
        self.from_step = from_step

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Return the given values."""
        return self.from_reset

    def step(self, action: Any) -> Any:
        """Return the given values."""
        return self.from_step


def step(
    observation: Any = (1, 2, 3), reward: Any = 1.0, terminated: Any = False, truncated: Any = False
) -> Any:
    env = Puppet(from_step=(observation, reward, terminated, truncated, {}))
    return Boundary(env).step(env, ACTION)


@pytest.mark.parametrize(
    "reward",
    [
        2,
        2.0,
        np.float32(2),
        np.float64(2),
        np.int64(2),
        np.array(2.0),
        np.array([2.0]),
        np.array([[2]]),
        [2.0],
    ],
)
def test_rewards_of_one_number_are_numbers(reward: Any) -> None:
    obs, got, *_ = step(reward=reward)
    assert (type(got), got) == (float, 2.0)
    assert obs.dtype == np.float32
    assert obs.tolist() == [1, 2, 3]


@pytest.mark.parametrize("flag", [True, 1, np.bool_(1), np.int8(1), 1.0, np.array(1), np.array([True]), [1]])
def test_flags_of_one_number_are_booleans(flag: Any) -> None:
    assert step(terminated=flag)[2] is True
    assert step(truncated=flag)[3] is True
    assert step(terminated=np.array([False]), truncated=0)[2:] == (False, False)


REFUSED_STEPS = {
    "shape (1,) for (3,)": (
        {"observation": np.ones(1)},
        r"array\(\[1\.\]\) as the observation .*shape \(3,\)",
    ),
    "a number": ({"observation": 0.5}, r"returned 0\.5 as the observation"),
    "a batch": ({"observation": np.ones((1, 3))}, r"an array of shape \(1, 3\) and type float64"),
    "a dictionary": ({"observation": {"x": 1}}, r"\{'x': 1\} as the observation"),
    "text": ({"observation": np.array(["a", "b", "c"])}, "and type <U1"),
    "ragged": ({"observation": [[1], [2, 3], 4]}, "a list of 3 as the observation"),
    "no reward": ({"reward": None}, "returned None as the reward.*must be one number"),
    "two objectives": ({"reward": np.ones(2)}, "as the reward.*mo_gymnasium.LinearReward"),
    "a reward in words": ({"reward": "1.0"}, r"'1\.0' as the reward"),
    "a complex reward": ({"reward": 1j}, "1j as the reward"),
    "no flag": ({"terminated": None}, "returned None as terminated from step.*True or False"),
    "info for a flag": ({"truncated": {}}, r"returned \{\} as truncated.*terminated, truncated, info"),
    "two flags": ({"truncated": [True, False]}, "a list of 2 as truncated"),
    "a count for a flag": ({"terminated": 7}, "returned 7 as terminated"),
}


@pytest.mark.parametrize("case", REFUSED_STEPS)
def test_what_is_no_transition_is_refused(case: str) -> None:
    """The sentence names environment, method, the actual and the expected value."""
    given, message = REFUSED_STEPS[case]
    with pytest.raises(UserCodeError, match=f"^Environment 'Puppet' .*{message}") as caught:
        step(**given)
    assert "\n" not in str(caught.value)
    assert not caught.value.traceback


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e39, np.array([np.nan])])
def test_rewards_that_are_not_finite_are_refused(value: Any) -> None:
    with pytest.raises(NonFiniteError, match="The reward of Puppet is not finite"):
        step(reward=value)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((np.zeros(3), 0.0, False, {}), "a tuple of 4 from step.*old gym API.*shimmy"),
        ((np.zeros(3), 0.0, False), "a tuple of 3 from step.*return all five"),
        (None, "None from step.*return all five"),
    ],
)
def test_steps_of_other_lengths_are_refused(result: Any, message: str) -> None:
    env = Puppet(from_step=result)
    with pytest.raises(UserCodeError, match=message):
        Boundary(env).step(env, ACTION)


@pytest.mark.parametrize("result", [np.zeros(3), (0.0, 0.0), [0.0, 0.0, 0.0], ()])
def test_resets_without_info_are_refused(result: Any) -> None:
    env = Puppet(from_reset=result)
    with pytest.raises(UserCodeError, match=r"from reset\(\), where \(observation, info\) was expected"):
        Boundary(env).reset(env, seed=0)


def test_observations_of_a_reset_are_checked() -> None:
    env = Puppet(from_reset=(np.zeros(2), {}))
    with pytest.raises(UserCodeError, match=r"as the observation from reset\(\).*shape \(3,\)"):
        Boundary(env).reset(env, seed=0)


class OldReset(Puppet):
    """Reset as in the old gym."""

    def reset(self) -> Any:  # type: ignore[override]
        """Take no arguments."""
        return np.zeros(3)


def test_a_reset_without_seed_is_refused() -> None:
    gym.register("OldReset-v0", entry_point=OldReset)
    for env in (OldReset(), make_env("OldReset-v0", disable_env_checker=True)):
        with pytest.raises(UserCodeError, match=r"a reset\(\) that does not take 'seed': define it as"):
            Boundary(env).reset(env, seed=0)


class Raising(Puppet):
    """Raise in the given method."""

    def __init__(self, where: str = "") -> None:
        super().__init__()
        self.where = where
        self._do("constructor")

    def _do(self, where: str) -> None:
        if self.where == where:
            raise KeyError("the licence")

    def reset(self, **_: Any) -> Any:
        """Raise if told to."""
        self._do("reset")
        return super().reset()

    def step(self, action: Any) -> Any:
        """Raise if told to."""
        self._do("step")

    def close(self) -> None:
        """Raise if told to."""
        self._do("close")


def use(where: str) -> None:
    env = boundary.made(lambda: Raising(where), "Raising")
    checked = Boundary(env, "Raising")
    checked.reset(env, 0)
    checked.step(env, ACTION)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("constructor", "could not be made: its constructor raised KeyError: 'the licence'"),
        ("reset", r"raised KeyError in reset\(\): 'the licence'"),
        ("step", r"raised KeyError in step\(\): 'the licence'"),
    ],
)
def test_what_an_environment_raises_is_said_with_its_traceback(where: str, message: str) -> None:
    """This holds also across processes."""
    with pytest.raises(
        UserCodeError, match=rf"^Environment 'Raising' {message} \(test_boundary.py, line \d+\)\.$"
    ) as caught:
        use(where)
    travelled = pickle.loads(pickle.dumps(caught.value))
    assert str(travelled) == str(caught.value)
    assert travelled.traceback.count("Traceback") == 1
    assert travelled.traceback.endswith("KeyError: 'the licence'\n")
    assert "in _do" in travelled.traceback


def test_a_close_that_raises_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        boundary.close(Raising("close"))
    assert "Environment 'Raising' raised KeyError in close(): 'the licence'" in caplog.text


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "returned None; it must return the environment"),
        (Puppet, "returned the class Puppet; it must return an instance"),
        (3, "returned 3; it must return a gymnasium.Env"),
    ],
)
def test_what_is_no_environment_is_refused(made: Any, message: str) -> None:
    with pytest.raises(UserCodeError, match=message):
        boundary.made(lambda: made, "mine")


def test_constructors_of_registered_environments() -> None:
    """An unknown argument is the user's error, and needs no traceback."""
    gym.register("Raising-v0", entry_point=Raising)
    with pytest.raises(UserError, match=r"unexpected keyword argument 'length'") as caught:
        make_env("Raising-v0", length=3)
    assert not getattr(caught.value, "traceback", "")
    with pytest.raises(
        UserCodeError, match="'Raising-v0' could not be made: its constructor raised KeyError"
    ):
        make_env("Raising-v0", where="constructor")

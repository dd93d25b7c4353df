"""Test how rows and checkpoints record the arguments of environments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_hpo.errors import UserError
from rllib_hpo.tasks import make_env
from rllib_hpo.tasks.env_config import not_recorded, recorded
from tests.rllib.environments import NoisyEnv
from tests.rllib.tiny import running, tiny_config


def test_numpys_values_are_recorded_as_numbers() -> None:
    given = {
        "g": np.float64(9.0),
        "sizes": np.array([1, 2]),
        "deep": {"flag": np.bool_(True)},
        "pair": (1, "a"),
    }
    assert recorded(given) == {"g": 9.0, "sizes": [1, 2], "deep": {"flag": True}, "pair": [1, "a"]}
    assert not_recorded(recorded(given)) == {}


def test_what_json_cannot_hold_is_named() -> None:
    given = {"rng": np.random.default_rng(0), "list": [1, {"path": Path("x")}], "s": {3}}
    kinds = not_recorded(recorded(given))
    assert set(kinds) == {"rng", "list[1].path", "s"}
    assert kinds["s"] == "builtins.set"
    json.dumps(recorded(given))


def test_an_environment_is_not_made_of_half_a_record() -> None:
    with pytest.raises(UserError, match=r"env_config: 'g' was a builtins\.object, which the record"):
        make_env("Pendulum-v1", **recorded({"g": object()}))


def test_a_run_warns_and_records(caplog: pytest.LogCaptureFixture) -> None:
    class Configured(NoisyEnv):
        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__()
            assert isinstance(config["rng"], np.random.Generator)
            assert isinstance(config["g"], np.float64)

    config = tiny_config(env=Configured)
    config.environment(env_config={"rng": np.random.default_rng(0), "g": np.float64(9.0)})
    with running(config) as algorithm:
        assert algorithm.run_config()["env_config"]["g"] == 9.0
    assert (
        "'rng' is a numpy.random._generator.Generator, which rows and checkpoints cannot record"
        in caplog.text
    )


def test_gymnasium_gets_recorded_numbers_back() -> None:
    env = make_env("Pendulum-v1", **recorded({"g": np.float64(9.0)}))
    assert isinstance(env, gym.Env)
    assert env.unwrapped.g == 9.0  # type: ignore[attr-defined]

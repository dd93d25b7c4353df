"""Test making environments quietly, and rejecting those that no algorithm can handle."""

import logging
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Text, Tuple

from rllib_hpo.errors import UnknownNameError, UserError
from rllib_hpo.tasks import ActionScaling, check_spaces, make_env
from rllib_hpo.tasks.environments import PYBULLET_IDS, register_environments

MUJOCO_IDS = ["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4", "Ant-v4", "Humanoid-v4"]


def test_importing_the_package_registers_pybullet_but_imports_no_simulator():
    code = (
        "import sys, gymnasium, rllib_hpo.tasks\n"
        f"assert set({PYBULLET_IDS}) <= set(gymnasium.registry)\n"
        "assert not {'pybullet', 'mujoco', 'torch', 'ray', 'pandas', 'wandb'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_registering_again_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_environments()


@pytest.mark.parametrize("env_id", MUJOCO_IDS)
def test_mujoco_is_made_without_a_word_and_without_a_file(env_id, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make_env(env_id)
        env.reset(seed=0)
        env.step(env.action_space.high)
        env.close()
    check_spaces(env)
    assert env.spec.id == env_id
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*NaN")
def test_an_unstable_simulation_is_logged_instead_of_written_to_the_working_directory(
    tmp_path, monkeypatch, capfd, caplog
):
    monkeypatch.chdir(tmp_path)
    env = make_env("HalfCheetah-v4", disable_env_checker=True)
    env.reset(seed=0)
    env.unwrapped.data.qvel[0] = np.inf
    with caplog.at_level(logging.WARNING):
        env.step(np.zeros(6, np.float32))
    assert "simulation is unstable" in caplog.text
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_arguments_are_handed_on():
    env = make_env("Hopper-v4", max_episode_steps=1, reset_noise_scale=0.0)
    env.reset(seed=0)
    assert env.step(np.zeros(3, np.float32))[3]
    assert env.unwrapped._reset_noise_scale == 0.0


def test_an_id_may_name_the_module_that_registers_it(tmp_path, monkeypatch):
    (tmp_path / "registers_an_env.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Imported-v0', entry_point='gymnasium.envs.classic_control:PendulumEnv')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make_env("registers_an_env:Imported-v0").observation_space.shape == (3,)
    gym.registry.pop("Imported-v0")


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Hoper-v4", "Unknown environment 'Hoper-v4'. Did you mean 'Hopper-v4'?"),
        ("Qwzx", "Unknown environment 'Qwzx'. If a package registers the id, give --import PACKAGE"),
        ("no_such_module:Thing-v0", "Cannot import 'no_such_module'"),
    ],
)
def test_unknown_environments(env_id, message):
    with pytest.raises(UnknownNameError) as caught:
        make_env(env_id)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("env_id", "kwargs"), [("Hopper-v3", {}), ("Hopper-v4", {"no_such_argument": 1})])
def test_an_environment_that_cannot_be_made_is_one_sentence(env_id, kwargs):
    with pytest.raises(UserError, match=f"Environment '{env_id}' could not be made: ") as caught:
        make_env(env_id, **kwargs)
    assert "\n" not in str(caught.value)


class Spaces(gym.Env):
    """Define an environment that consists of its spaces."""

    def __init__(self, observation_space, action_space):
        self.observation_space = observation_space
        self.action_space = action_space


FLAT = Box(-np.inf, np.inf, (3,))
UNIT = Box(-1.0, 1.0, (2,))


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (FLAT, Dict({"a": UNIT}), "Dict actions"),
        (FLAT, Box(-np.inf, 1.0, (2,)), "unbounded actions"),
        (FLAT, Box(-1e300, 1e300, (2,), np.float64), "unbounded actions"),
        (FLAT, Box(-3e38, 3e38, (2,), np.float32), "unbounded actions"),
        (FLAT, Box(1e9, 1e9 + 1, (2,), np.float64), "component that cannot vary"),
        (FLAT, Box(-1.0, 1.0, (2, 2)), r"actions of shape \(2, 2\)"),
        (FLAT, Box(0, 5, (2,), np.int64), "actions of type int64"),
        (FLAT, Box(np.zeros(2), np.array([0.0, 1.0]), dtype=np.float64), "component that cannot vary"),
    ],
)
def test_refused_spaces(observations, actions, message):
    with pytest.raises(
        UserError, match=f"^Environment 'Spaces' has .*{message}; .* must be a one-dimensional Box"
    ):
        check_spaces(Spaces(observations, actions))


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        (
            Dict({"camera": Box(0, 255, (64, 64, 3), np.uint8)}),
            r"image observations of shape \(64, 64, 3\); only single images are learned from.* in 'camera'",
        ),
        (Box(-1.0, 1.0, (0,)), "observations of no numbers"),
        (Text(5), "Text observations"),
        (Dict({"a": Tuple([FLAT, Text(5)])}), r"Text observations in 'a\.1'"),
        (Discrete(10**9), "Discrete observations of 1,000,000,000 values"),
    ],
)
def test_refused_observations(observations, message):
    with pytest.raises(
        UserError, match=f"^Environment 'Spaces' has {message}; observations must be numbers: Box"
    ):
        check_spaces(Spaces(observations, UNIT))


def test_discrete_actions_are_refused_with_what_takes_them():
    with pytest.raises(
        UserError, match=r"has Discrete actions, .*: use RLlib's DQN, SAC or PPO, or a version"
    ):
        check_spaces(Spaces(FLAT, Discrete(2)))
    with pytest.raises(UserError, match=r"has MultiBinary actions, .*: use RLlib's PPO, or a version"):
        check_spaces(Spaces(FLAT, MultiBinary(2)))


def test_accepted_spaces():
    check_spaces(Spaces(FLAT, UNIT))
    check_spaces(Spaces(Box(0, 255, (128,), np.uint8), Box(-0.4, 0.4, (1,), np.float64)))


def test_action_scaling_maps_the_unit_cube_onto_the_bounds():
    scaling = ActionScaling([-2.0, 0.0], [2.0, 10.0])
    unit = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [0.5, -0.5]])
    bounded = [[-2.0, 0.0], [0.0, 5.0], [2.0, 10.0], [1.0, 2.5]]
    assert scaling.to_env(unit).dtype == scaling.from_env(unit).dtype == np.float32
    np.testing.assert_array_equal(scaling.to_env(unit), np.float32(bounded))
    np.testing.assert_array_equal(scaling.from_env(bounded), np.float32(unit))


def test_action_scaling_clips():
    scaling = ActionScaling.of(Box(-0.4, 0.4, (2,)))
    np.testing.assert_array_equal(scaling.to_env([-3.0, 3.0]), np.float32([-0.4, 0.4]))
    np.testing.assert_array_equal(scaling.from_env([-3.0, 3.0]), np.float32([-1.0, 1.0]))


def test_action_scaling_is_the_identity_for_the_unit_cube():
    action = np.random.default_rng(0).uniform(-1, 1, (100, 3)).astype(np.float32)
    scaling = ActionScaling(-np.ones(3), np.ones(3))
    np.testing.assert_array_equal(scaling.to_env(action), action)
    np.testing.assert_array_equal(scaling.from_env(action), action)


def test_scaled_actions_never_leave_the_bounds():
    rng = np.random.default_rng(0)
    low = rng.normal(size=1000).astype(np.float32)
    high = low + rng.uniform(0.01, 5, 1000).astype(np.float32)
    scaling, space = ActionScaling(low, high), Box(low, high)
    for action in (-np.ones(1000), np.ones(1000), rng.uniform(-1, 1, 1000)):
        scaled = scaling.to_env(action)
        assert scaled in space
        np.testing.assert_allclose(scaling.from_env(scaled), action, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_actions_are_the_environments(dtype):
    """They have its dtype and are inside its bounds, also after float32 computation; 0.1 is no float32."""
    rng = np.random.default_rng(0)
    high = rng.uniform(0.05, 3, 500).astype(dtype)
    space = Box(-high, high / dtype(3), dtype=dtype)
    scaling = ActionScaling.of(space)
    for action in (-np.ones(500), np.ones(500), rng.uniform(-1, 1, 500)):
        scaled = scaling.to_env(action)
        assert scaled.dtype == dtype
        assert (space.low <= scaled).all()
        assert (scaled <= space.high).all()
        assert scaled in space
    np.testing.assert_allclose(scaling.to_env(np.ones(500)), space.high, rtol=1e-6)


def test_the_bound_that_is_no_float32_is_kept():
    box = Box(-0.1, 0.1, (1,), np.float64)
    assert ActionScaling.of(box).to_env([1.0]).tolist() == [0.1]
    scaling = ActionScaling(box.low, box.high)  # as exported policies, whose actions are float32
    assert scaling.low >= box.low
    assert scaling.high <= box.high


def test_float32_actions_are_those_they_always_were():
    rng = np.random.default_rng(1)
    low = rng.normal(size=1000).astype(np.float32)
    high = low + rng.uniform(0.01, 5, 1000).astype(np.float32)
    action = rng.uniform(-1.1, 1.1, (20, 1000)).astype(np.float32)
    bottom, top = low.astype(np.float64), high.astype(np.float64)
    center, half = (bottom / 2 + top / 2).astype(np.float32), (top / 2 - bottom / 2).astype(np.float32)
    before = np.clip(center + half * np.clip(action, -1.0, 1.0), low, high)
    now = ActionScaling.of(Box(low, high)).to_env(action)
    assert now.dtype == np.float32
    assert now.tobytes() == before.tobytes()

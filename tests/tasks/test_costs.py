"""Test costs of steps: the wrapper by hand counts, its position, and error messages."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_hpo.costs import InfoCost, SpeedCost, TorqueCost
from rllib_hpo.errors import SettingsError
from rllib_hpo.settings import SACSettings, parse_settings
from rllib_hpo.tasks import find_task, make_env
from rllib_hpo.tasks.costs import step_cost
from rllib_hpo.tasks.simulator_state import capture, restore
from rllib_hpo.tasks.wrappers import ActionRepeat, with_cost

UNIT = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.mark.parametrize(
    ("cost", "velocity", "expected"),
    [
        (SpeedCost(limit=1.0), (1.5, 0.0), 1.0),
        (SpeedCost(limit=1.0), (-1.5, 0.0), 1.0),
        (SpeedCost(limit=1.0), (1.0, 9.0), 0.0),
        (SpeedCost(limit=1.0, absolute=False), (-1.5, 0.0), 0.0),
        (SpeedCost(limit=1.0, axis="xy"), (-0.8, 0.8), 1.0),
        (SpeedCost(limit=1.0, axis="xy", absolute=False), (-0.8, 0.5), 0.0),
    ],
)
def test_speed(cost: SpeedCost, velocity: tuple[float, float], expected: float) -> None:
    info = {"x_velocity": velocity[0], "y_velocity": np.float64(velocity[1])}
    assert step_cost(cost, UNIT, np.zeros(2), info) == expected


def test_torque_is_in_units_of_the_bounds() -> None:
    space = gym.spaces.Box(np.array([-0.4, 0.0], np.float32), np.array([0.4, 2.0], np.float32))
    assert step_cost(TorqueCost(), space, np.array([0.2, 1.0]), {}) == pytest.approx(0.25)
    assert step_cost(TorqueCost(), space, np.array([-0.4, 2.0]), {}) == pytest.approx(1.0)
    assert step_cost(TorqueCost(), space, np.array([9.0, 1.0]), {}) == pytest.approx(0.5)  # clipped


def test_halfcheetah_in_both_directions() -> None:
    """In a scripted episode the speed crosses 1 forwards and backwards; counts come from its positions."""
    plain = make_env("HalfCheetah-v4")
    costly = make_env("HalfCheetah-v4", step_cost=SpeedCost(limit=1.0))
    plain.reset(seed=1), costly.reset(seed=1)
    script = np.random.default_rng(0).choice([-1.0, 1.0], (200, 6)).astype(np.float32)
    reported, velocities = [], []
    for action in script:
        before = plain.unwrapped.data.qpos[0]  # type: ignore[attr-defined]
        plain.step(action)
        after = plain.unwrapped.data.qpos[0]  # type: ignore[attr-defined]
        velocities.append((after - before) / plain.unwrapped.dt)  # type: ignore[attr-defined]
        reported.append(costly.step(action)[4]["cost"])
    assert min(velocities) < -1
    assert max(velocities) > 1
    assert reported == [float(abs(v) > 1) for v in velocities]


def test_an_action_repeat_sums_costs() -> None:
    """This holds for env_config and for the user's own function."""
    one = make_env("Pendulum-v1", step_cost=TorqueCost())
    repeated = make_env(
        "Pendulum-v1", step_cost=TorqueCost(), wrappers=[{"action-repeat": {"num_repeats": 3}}]
    )
    own = with_cost(ActionRepeat(make_env("Pendulum-v1"), 3), TorqueCost())
    for env in (one, repeated, own):
        env.reset(seed=0)
    action = np.array([1.0], np.float32)  # of 2
    single = sum(one.step(action)[4]["cost"] for _ in range(3))
    assert single == pytest.approx(1.5)
    assert repeated.step(action)[4]["cost"] == pytest.approx(single)
    assert own.step(action)[4]["cost"] == pytest.approx(single)


def test_a_simulator_with_costs_is_saved() -> None:
    """A checkpoint holds it as it does one without costs."""
    env, other = (make_env("Hopper-v4", step_cost=SpeedCost(limit=0.5)) for _ in range(2))
    env.reset(seed=0)
    for _ in range(5):
        env.step(env.action_space.low)
    saved = capture(env)
    assert saved is not None
    restore(other, saved)
    action = np.array([0.5, -0.5, 0.1], np.float32)
    np.testing.assert_array_equal(env.step(action)[0], other.step(action)[0])


@pytest.mark.parametrize(
    ("cost", "info", "says"),
    [
        (
            SpeedCost(limit=2.0),
            {"speed": 1.0, "b": 2},
            "axis: x, absolute: True}: the environment does not report 'x_velocity' in the info of step(); it reports",
        ),
        (SpeedCost(limit=2.0, axis="xy"), {"x_velocity": 1.0}, "does not report 'y_velocity'"),
        (InfoCost(key="price"), {}, "not report 'price' in the info of step(); it reports: none."),
        (InfoCost(), {"cost": float("nan")}, "reported cost=nan, but a finite number is required."),
        (InfoCost(), {"cost": "much"}, "reported cost='much', but a finite number is required."),
        (InfoCost(), {"cost": -0.5}, "reported cost=-0.5, but a cost must be at least 0."),
    ],
)
def test_what_is_no_cost_is_named(cost: Any, info: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        step_cost(cost, UNIT, np.zeros(2), info)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"cost": {"kind": "torque"}}, "cost={'kind': 'torque'} requires cost_limit"),
        ({"cost_limit": 3.0}, "cost_limit=3 requires cost"),
        ({"cost": {"kind": "sped"}, "cost_limit": 1}, "whose 'kind' is 'speed', 'torque' or 'info'"),
        ({"cost": {"kind": "speed"}, "cost_limit": 1}, "a mapping whose 'limit' is given"),
        ({"cost": {"kind": "torque", "x": 1}, "cost_limit": 1}, "whose 'x' is left out"),
        (
            {"cost": {"kind": "speed", "limit": -1.0}, "cost_limit": 1},
            "'limit' is greater than or equal to 0",
        ),
        ({"cost": 3, "cost_limit": 1}, "cost=3 must be"),
        ({"cost": {"kind": "torque"}, "cost_limit": -1.0}, "cost_limit=-1.0 must be greater than or equal"),
    ],
)
def test_settings_that_say_no_cost_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(SACSettings, values)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "env_id", "cost", "limit", "discounting"),
    [
        ("halfcheetah-speed1", "HalfCheetah-v4", SpeedCost(limit=1.0), 10.0, "discounted"),
        ("ant-torque25", "Ant-v4", TorqueCost(), 25.0, "discounted"),
        *(
            (f"{name}-velocity", env, SpeedCost(limit=at, axis=axis, absolute=False), 25.0, "undiscounted")
            for name, env, at, axis in (
                ("halfcheetah", "HalfCheetah-v4", 3.2096, "x"),
                ("ant", "Ant-v4", 2.6222, "xy"),
                ("hopper", "Hopper-v4", 0.7402, "x"),
                ("walker2d", "Walker2d-v4", 2.3415, "x"),
                ("humanoid", "Humanoid-v4", 1.4149, "xy"),
                ("swimmer", "Swimmer-v4", 0.2282, "x"),
            )
        ),
    ],
)
def test_ready_tasks(name: str, env_id: str, cost: Any, limit: float, discounting: str) -> None:
    """The settings are as published; every environment reports what its cost needs."""
    task = find_task(name)
    assert (task.env_id, task.steps) == (env_id, 1_000_000)
    settings = parse_settings(SACSettings, task.settings_for("sac"))
    assert (settings.cost, settings.cost_limit, settings.cost_discounting) == (cost, limit, discounting)
    env = make_env(env_id, step_cost=settings.cost)
    env.reset(seed=0)
    assert env.step(np.zeros(env.action_space.shape, np.float32))[4]["cost"] in (0.0, 1.0)


def test_a_task_whose_constraint_is_taken_away_is_the_plain_one() -> None:
    given = find_task("ant-torque25").settings_for("sac") | {"cost": None, "cost_limit": None}
    assert parse_settings(SACSettings, given).cost is None

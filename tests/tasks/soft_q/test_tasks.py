"""Test multi-goal, the snake and the quadruped: rewards, geometry, termination, and info."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rllib_hpo.errors import UserError
from rllib_hpo.tasks import find_task, make_env
from rllib_hpo.tasks.soft_q import ENVIRONMENTS, mjcf
from rllib_hpo.tasks.soft_q.multi_goal import GOALS
from rllib_hpo.tasks.soft_q.quadruped import MAZE_THRESHOLD
from tests.rllib.tiny import assert_equal, facts, loaded, running, tiny_config, train_to

TASKS = (
    "multi-goal",
    "snake-finish",
    "quad-open",
    "quad-maze",
    "quad-hall-wide",
    "quad-hall-narrow",
    "quad-u",
)
SIZES = {"multi-goal": (2, 2), "snake-finish": (10, 2)}


def made(task: str, **kwargs: Any) -> Any:
    return make_env(find_task(task).env_id, **kwargs)


def placed(env: Any, x: float, y: float, yaw: float = 0.0) -> Any:
    """Place the quadruped at rest somewhere else."""
    env.reset(seed=0)
    base = env.unwrapped
    base.data.qpos[:2], base.data.qvel[:] = (x, y), 0
    base.data.qpos[3:7] = (math.cos(yaw / 2), 0, 0, math.sin(yaw / 2))
    mujoco.mj_forward(base.model, base.data)
    return base


def test_every_environment_is_a_task() -> None:
    assert [find_task(name).env_id for name in TASKS] == list(ENVIRONMENTS)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.filterwarnings("ignore")
def test_gymnasium_accepts_it(task: str) -> None:
    env = made(task)
    check_env(env.unwrapped, skip_render_check=True)
    expected = SIZES.get(task, (29, 8))
    assert (env.observation_space.shape[0], env.action_space.shape[0]) == expected
    assert env.spec.max_episode_steps == (30 if task == "multi-goal" else 500)
    _, info = env.reset(seed=0)
    assert info["progress"] == 0
    assert len(info["xy"]) == 2
    assert ("goal_distance" in info) == (task in ("multi-goal", "quad-maze", "quad-u"))
    env.close()


@pytest.mark.parametrize("task", ["multi-goal", "snake-finish", "quad-maze"])
def test_it_renders(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    env = made(task, render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert picture.std() > 0
    env.close()


def test_multi_goal_pays_by_the_next_position() -> None:
    env = made("multi-goal").unwrapped
    env.reset(seed=0)
    env.position = np.array([3.5, 0.0])
    obs, reward, terminated, _, info = env.step(np.array([0.25, -0.5]))
    assert obs.tolist() == [3.75, -0.5]
    assert reward == pytest.approx(-30 * (0.25**2 + 0.5**2) - (1.25**2 + 0.5**2))
    assert (terminated, info["goal"]) == (False, -1)
    _, reward, terminated, _, info = env.step(np.array([0.5, 0.5]))
    assert reward == pytest.approx(-30 * 0.5 - 0.75**2 + 10)
    assert (terminated, info["goal"]) == (True, 0)
    assert info["goal_distance"] == pytest.approx(0.75)


def test_multi_goal_is_a_box_with_four_goals() -> None:
    env = made("multi-goal").unwrapped
    for number, goal in enumerate(GOALS):
        env.reset(seed=0)
        env.position = goal - 0.1
        assert env.step(np.zeros(2))[4]["goal"] == number
    env.position = np.array([6.9, -6.9])
    assert env.step(np.array([1.0, -1.0]))[0].tolist() == [7.0, -7.0]
    starts = np.array([env.reset(seed=seed)[0] for seed in range(500)])
    assert starts.std() == pytest.approx(0.1, rel=0.1)


def test_the_mixture_of_the_paper_ends_by_time_alone() -> None:
    env = made("multi-goal", reward="mixture")
    env.reset(seed=0)
    env.unwrapped.position = GOALS[2].copy()
    _, reward, terminated, _, info = env.step(np.zeros(2))
    assert reward == pytest.approx(30 * (1 + 2 * math.exp(-50 / 8) + math.exp(-100 / 8)))
    assert (terminated, info["goal"]) == (False, 2)
    with pytest.raises(UserError, match="reward='best' must be 'official' or 'mixture'"):
        made("multi-goal", reward="best")


def test_the_snake_is_the_swimmer() -> None:
    base = made("snake-finish").unwrapped
    assert (base.model.nq, base.model.nv, base.model.nu) == (5, 5, 2)
    assert base.model.body_subtreemass[0] == pytest.approx(106.81, abs=0.01)
    swimmer = gym.make("Swimmer-v5").unwrapped
    assert base.model.body_subtreemass[0] == pytest.approx(swimmer.model.body_subtreemass[0], rel=1e-3)
    np.testing.assert_allclose(base.model.actuator_gear[:, 0], swimmer.model.actuator_gear[:, 0])


def test_the_snake_is_paid_for_the_speed_of_its_centre_of_mass() -> None:
    """The speed equals finite differences of the masses' weighted positions."""
    env = made("snake-finish")
    env.reset(seed=0)
    base, generator = env.unwrapped, np.random.default_rng(0)

    def center() -> float:
        mujoco.mj_kinematics(base.model, base.data)
        mass = base.model.body_mass
        return float((mass[:, None] * base.data.xipos).sum(0)[0] / mass.sum())

    before = start = center()
    for _ in range(20):
        action = generator.uniform(-1, 1, 2).astype(np.float32)
        obs, reward, _, _, info = env.step(action)
        after = center()
        assert reward == pytest.approx(abs(after - before) / 0.05 - 0.005 * np.square(action).sum(), rel=1e-6)
        assert info["progress"] == pytest.approx(after - start, abs=1e-9)
        assert obs[0] == pytest.approx(after - start, abs=1e-9)
        before = after


@pytest.mark.parametrize(("forward", "bonus"), [(2.9, 0), (3.1, 1), (-3.1, 0)])
def test_the_snake_is_paid_more_beyond_the_line(forward: float, bonus: float) -> None:
    env = made("snake-finish")
    env.reset(seed=0)
    base = env.unwrapped
    base.data.qpos[0] += forward
    mujoco.mj_forward(base.model, base.data)
    before = base.xy
    _, reward, terminated, _, info = env.step(np.zeros(2, np.float32))
    assert reward - abs(info["xy"][0] - before[0]) / 0.05 == pytest.approx(bonus)
    assert not terminated


def test_the_quadruped_stands() -> None:
    env = made("quad-open")
    env.reset(seed=0)
    for _ in range(60):
        _, reward, terminated, _, info = env.step(np.zeros(8, np.float32))
    base = env.unwrapped
    assert base.model.body_subtreemass[0] == pytest.approx(0.911, abs=0.002)
    assert 0.35 < base.data.qpos[2] < 0.62
    assert (terminated, base.is_flipped()) == (False, False)
    assert abs(info["progress"]) < 0.5
    assert 0 <= reward < 0.2


def test_a_flipped_quadruped_ends_its_episode() -> None:
    env = made("quad-open")
    base = placed(env, 0, 0)
    base.data.qpos[2], base.data.qpos[3:7] = 1.0, (0, 1, 0, 0)
    mujoco.mj_forward(base.model, base.data)
    assert env.step(np.zeros(8, np.float32))[2]


@pytest.mark.parametrize(
    ("task", "place", "reward"),
    [
        ("quad-maze", (0, 0), 0.004),
        ("quad-maze", (6.4, 2.2), 0.37),
        ("quad-maze", (7.6, -3), 0.44),
        ("quad-maze", (10, 0), 1.0),
        ("quad-u", (0, 0), 0.011),
        ("quad-u", (6, 0), 0.0001),
        ("quad-u", (3, 6), 0.32),
        ("quad-u", (0, 6), 1.0),
    ],
)
def test_nearness_to_the_goal_is_paid(task: str, place: tuple[float, float], reward: float) -> None:
    env = made(task)
    base = placed(env, *place)
    _, found, _, _, info = env.step(np.zeros(8, np.float32))
    assert found == pytest.approx(reward, abs=0.03)
    assert info["goal_distance"] == pytest.approx(np.hypot(*(base.xy - base.goal)))


@pytest.mark.parametrize(
    ("task", "start", "push", "limit"),
    [
        ("quad-hall-narrow", (0, 0), (0, 1), 1.5),
        ("quad-hall-wide", (0, 1.5), (0, 1), 3.0),
        ("quad-maze", (5.0, 3.0), (1, 0), 7.0),
        ("quad-maze", (11, -3), (1, 0), 12.5),
        ("quad-u", (3, 0), (0, 1), 1.5),
        ("quad-u", (6, 0), (1, 0), 7.5),
    ],
)
def test_walls_hold_a_robot_that_is_pushed(
    task: str, start: tuple[float, float], push: tuple[int, int], limit: float
) -> None:
    """It is pushed for five seconds with its weight; the middle of the torso stays inside and is not lifted over."""
    env = made(task)
    base = placed(env, *start)
    torso = base.model.body("torso").id
    base.data.xfrc_applied[torso, :2] = 9 * np.array(push)
    for _ in range(100):
        env.step(np.zeros(8, np.float32))
        along = float(base.data.xpos[torso][:2] @ np.array(push))
        assert along < limit - 0.1
        assert base.data.xpos[torso][2] < 1.5
    assert along > start[0] * push[0] + start[1] * push[1] - 0.3


def test_through_the_upper_passage_the_goal_stays_beyond_the_threshold() -> None:
    """A torso of radius 0.25 m gets no nearer through the upper passage, but does through the lower one."""
    barrier = mjcf.maze()[-1]
    free = [(barrier.x_min - 0.25, y) for y in np.linspace(1.75, 4.25, 26)]
    nearest = min(math.hypot(10 - x, y) for x, y in free)
    assert 3.6 < nearest < 3.75
    assert nearest > MAZE_THRESHOLD > math.hypot(10 - 7.6, 1.75)


def test_over_a_window_shaking_pays_less() -> None:
    generator, paid = np.random.default_rng(0), {}
    actions = generator.uniform(-1, 1, (100, 8)).astype(np.float32)
    for window in (1, 10):
        env = made("quad-open", speed_window=window)
        env.reset(seed=0)
        paid[window] = sum(env.step(action)[1] for action in actions)
    assert paid[10] < 0.9 * paid[1]
    with pytest.raises(UserError, match="speed_window=0 must be an integer of at least 1"):
        made("quad-open", speed_window=0)


@pytest.mark.parametrize("task", ["multi-goal", "snake-finish", "quad-open"])
def test_a_run_resumes_in_the_middle_of_its_episodes(task: str, tmp_path: Path) -> None:
    """It does so bitwise, including speed over a window; environments are saved, not rebuilt."""
    config = tiny_config("td3", find_task(task).env_id)
    if task == "quad-open":
        config.environment(find_task(task).env_id, env_config={"speed_window": 3})
    with running(config) as whole:
        train_to(whole, 40)
        assert whole.is_savable()
        whole.save_to_path(tmp_path)
        train_to(whole, 80)
        with loaded(tmp_path) as resumed:
            train_to(resumed, 80)
            assert_equal(facts(resumed), facts(whole))

"""Test that the PyBullet humanoids are repeatable, closable and silent."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rllib_hpo.tasks import check_spaces, make_env
from rllib_hpo.tasks.environments import PYBULLET_IDS

REPOSITORY = Path(__file__).resolve().parents[2]

pytest.importorskip("pybullet")
pytest.importorskip("pybullet_envs_gymnasium")


def rollout(env, seed, steps=40):
    """Return rows of observation, reward and termination of one episode of random actions, the reset's first."""
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    trace = [np.append(observation, (0.0, 0.0))]
    for _ in range(steps):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        observation, reward, terminated, _, _ = env.step(action)
        trace.append(np.append(observation, (reward, terminated)))
        if terminated:
            break
    return np.stack(trace)


@pytest.fixture(params=PYBULLET_IDS)
def env_id(request):
    return request.param


@pytest.mark.filterwarnings("ignore:.*Box observation space", "ignore:.*`seed` function")
def test_gymnasium_accepts_it(env_id):
    env = make_env(env_id)
    check_env(env.unwrapped, skip_render_check=True)
    check_spaces(env)
    assert (env.observation_space.shape, env.action_space.shape) == ((44,), (17,))
    assert env.spec.max_episode_steps == 1000
    env.close()


def test_one_seed_is_one_trajectory_in_new_environments(env_id):
    first, second, other = make_env(env_id), make_env(env_id), make_env(env_id)
    trajectory = rollout(first, seed=3)
    assert np.array_equal(rollout(second, seed=3), trajectory)
    assert not np.array_equal(rollout(other, seed=4), trajectory)


@pytest.mark.slow
def test_addresses_in_memory_do_not_matter():
    """With Bullet's default broadphase this trajectory diverges about once in thirty times."""
    code = textwrap.dedent("""
        from rllib_hpo.tasks import make_env
        from tests.tasks.test_pybullet_humanoids import rollout
        envs = (make_env("HumanoidFlagrunHarderPyBulletEnv-v0") for _ in range(100))
        print(len({rollout(env, seed=214, steps=60).tobytes() for env in envs}))
    """)
    path = f"import sys; sys.path[:0] = {sys.path!r}\n"
    # Python's own allocations then share a heap with Bullet's, and no two environments lie in memory alike.
    done = subprocess.run(
        [sys.executable, "-c", path + code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONMALLOC": "malloc"},
        cwd=REPOSITORY,
    )
    assert done.stdout == "1\n"


def test_a_closed_environment_can_be_reset_and_is_as_new(env_id):
    env = make_env(env_id)
    expected = rollout(env, seed=3)
    env.close()
    env.close()
    assert np.array_equal(rollout(env, seed=3), expected)


def test_closing_keeps_the_generator(env_id):
    env, other = make_env(env_id), make_env(env_id)
    for each in (env, other):
        each.reset(seed=3)
        each.close()
        each.unwrapped.np_random.random(7)
    assert env.reset()[0].tobytes() == other.reset()[0].tobytes()
    assert env.unwrapped.robot.np_random is env.unwrapped.np_random


def test_each_environment_has_its_own_simulator(env_id):
    import pybullet

    first, second = make_env(env_id), make_env(env_id)
    first.reset(seed=0)
    second.reset(seed=0)
    clients = [env.unwrapped._p._client for env in (first, second)]
    assert len(set(clients)) == 2
    for client in clients:
        assert pybullet.getConnectionInfo(client)["connectionMethod"] == pybullet.DIRECT
    first.close()
    assert pybullet.isConnected(clients[1])


def test_nothing_is_printed_and_no_file_is_left(tmp_path):
    """It runs in its own process: PyBullet prints on import, and when C's buffers are flushed at exit."""
    code = textwrap.dedent(f"""
        from rllib_hpo.tasks import make_env
        print("before")
        for env_id in {PYBULLET_IDS!r}:
            env = make_env(env_id)
            env.reset(seed=0)
            env.step(env.action_space.sample())
            env.close()
            env.reset(seed=0)
        print("after")
    """)
    path = f"import sys; sys.path[:0] = {sys.path!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", path + code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("before\nafter\n", "")
    assert list(tmp_path.iterdir()) == []


def test_without_pybullet_the_message_says_what_to_install():
    code = textwrap.dedent("""
        import sys
        sys.modules["pybullet"] = None
        import gymnasium
        from rllib_hpo.errors import UserError
        from rllib_hpo.tasks import make_env
        for make in (make_env, gymnasium.make):
            try:
                make("HumanoidPyBulletEnv-v0")
            except UserError as error:
                print(error)
    """)
    path = f"import sys; sys.path[:0] = {sys.path!r}\n"
    done = subprocess.run([sys.executable, "-c", path + code], check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert "pip install pybullet pybullet-envs-gymnasium" in lines[0]

"""Test that a captured simulator continues bitwise in a new environment of another process."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers

from rllib_hpo.errors import CheckpointError
from rllib_hpo.tasks import make_env
from rllib_hpo.tasks.simulator_state import capture, restore

TASK_IDS = [
    f"{name}-v{version}"
    for version in (4, 5)
    for name in ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid")
]
OTHER_IDS = [
    *("Pendulum-v1", "MountainCarContinuous-v0", "InvertedPendulum-v5", "InvertedDoublePendulum-v5"),
    *("Reacher-v4", "Reacher-v5", "Pusher-v5", "Swimmer-v5", "HumanoidStandup-v5"),
    *("MultiGoal-v0", "SnakeFinish-v0", "QuadOpen-v0", "QuadMaze-v0"),
]
# Short enough that every replay crosses the time limit, and so resets, whatever the task.
EPISODE_STEPS = 120


def play(env, actions):
    """Return everything `env` answers to `actions`; reset at the end of an episode."""
    trace = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        trace.append((np.asarray(observation).tobytes(), float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            trace.append(np.asarray(env.reset()[0]).tobytes())
    return trace


def random_actions(env, steps, seed=0):
    rng = np.random.default_rng(seed)
    shape = (steps, *env.action_space.shape)
    return rng.uniform(env.action_space.low, env.action_space.high, shape).astype(np.float32)


def replay(env_id, pickled_state, steps):
    """Replay in the other process: a new environment, never reset, from the saved state."""
    env = make_env(env_id, max_episode_steps=EPISODE_STEPS)
    restore(env, pickle.loads(pickled_state))
    return play(env, random_actions(env, steps, seed=1))


@pytest.fixture(scope="module")
def other_process():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("env_id", TASK_IDS + OTHER_IDS)
def test_another_process_goes_on_bitwise(env_id, other_process):
    env = make_env(env_id, max_episode_steps=EPISODE_STEPS)
    env.reset(seed=5)
    play(env, random_actions(env, 50))
    state = pickle.dumps(capture(env))
    expected = play(env, random_actions(env, 200, seed=1))
    assert any(isinstance(entry, bytes) for entry in expected), "the replay must contain a reset"
    assert other_process.submit(replay, env_id, state, 200).result() == expected


@pytest.mark.parametrize("env_id", ["Ant-v4", "Humanoid-v4"])
def test_the_physics_alone_would_not_do(env_id):
    """These two read positions that MuJoCo has not recomputed since its last integration."""
    env = make_env(env_id)
    env.reset(seed=5)
    play(env, random_actions(env, 20))
    state = capture(env)
    expected = play(env, random_actions(env, 1, seed=1))
    state["mujoco"]["derived"].clear()
    other = make_env(env_id)
    restore(other, state)
    assert play(other, random_actions(env, 1, seed=1)) != expected


@pytest.mark.parametrize("moment", ["new", "just reset", "episode over"])
def test_at_the_edges_of_an_episode(moment):
    env, other = (make_env("Hopper-v4", max_episode_steps=20) for _ in range(2))
    if moment != "new":
        env.reset(seed=5)
    if moment == "episode over":
        while not any(env.step(env.action_space.high)[2:4]):
            pass
    restore(other, capture(env))
    if moment == "new":
        with pytest.raises(gym.error.ResetNeeded):
            other.step(other.action_space.high)
    seed = 7 if moment == "new" else None
    if moment != "just reset":
        assert env.reset(seed=seed)[0].tobytes() == other.reset(seed=seed)[0].tobytes()
    assert play(env, random_actions(env, 60)) == play(other, random_actions(env, 60))


def test_a_used_environment_can_be_rewound_again_and_again():
    env = make_env("Walker2d-v4", max_episode_steps=30)
    env.reset(seed=5)
    state = capture(env)
    expected = play(env, random_actions(env, 100))
    for _ in range(2):
        restore(env, state)
        assert play(env, random_actions(env, 100)) == expected


def test_capturing_changes_nothing():
    env, other = make_env("Humanoid-v4"), make_env("Humanoid-v4")
    for each in (env, other):
        each.reset(seed=5)
    for action in random_actions(env, 60):
        capture(env)
        assert play(env, [action]) == play(other, [action])


WRAPPED = {
    "normalised": lambda env: wrappers.NormalizeReward(wrappers.NormalizeObservation(env)),
    "recorded": lambda env: wrappers.RecordEpisodeStatistics(env, buffer_length=3),
    "stacked": lambda env: wrappers.FlattenObservation(wrappers.FrameStackObservation(env, 3)),
    "delayed": lambda env: wrappers.DelayObservation(env, 4),
    "sticky": lambda env: wrappers.StickyAction(env, 0.5, (1, 3)),
    "timed": lambda env: wrappers.TimeAwareObservation(env, normalize_time=False),
    "skipping": lambda env: wrappers.MaxAndSkipObservation(env, 2),
    "autoreset": wrappers.Autoreset,
    "rescaled": lambda env: wrappers.ClipAction(wrappers.RescaleAction(env, -1.0, 1.0)),
    "clipped": lambda env: wrappers.ClipReward(wrappers.DtypeObservation(env, np.float32), -1.0, 1.0),
}


@pytest.mark.filterwarnings("ignore:.*precision lowered")
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_the_state_of_stock_wrappers_is_saved(wrap):
    env, other = (wrap(make_env("Hopper-v4", max_episode_steps=20)) for _ in range(2))
    env.reset(seed=5)
    low, high = -np.ones(3, np.float32), np.ones(3, np.float32)
    actions = np.random.default_rng(0).uniform(low, high, (101, 3)).astype(np.float32)
    play(env, actions[:41])
    restore(other, pickle.loads(pickle.dumps(capture(env))))
    assert play(other, actions[41:]) == play(env, actions[41:])


def test_recorded_statistics_go_on():
    env, other = (
        wrappers.RecordEpisodeStatistics(make_env("Pendulum-v1", max_episode_steps=5), buffer_length=2)
        for _ in range(2)
    )
    env.reset(seed=5)
    play(env, random_actions(env, 18))
    restore(other, capture(env))
    assert list(other.return_queue) == list(env.return_queue)
    assert other.return_queue.maxlen == 2
    assert (other.episode_count, other.episode_lengths) == (3, 3)
    assert 0 <= other.time_queue[-1] < 60


class Subclass(wrappers.TimeLimit):
    """Hold any state."""


def test_what_is_not_known_exactly_is_not_captured():
    hopper = make_env("Hopper-v4")
    assert capture(Subclass(hopper, 10)) is None
    assert capture(wrappers.TransformReward(hopper, lambda reward: reward)) is None
    assert capture(make_env("CartPole-v1")) is not None

    class Own(type(hopper.unwrapped)):
        pass

    assert capture(Own()) is None


def test_pybullet_is_not_captured():
    pytest.importorskip("pybullet_envs_gymnasium")
    env = make_env("HumanoidPyBulletEnv-v0")
    env.reset(seed=0)
    assert capture(env) is None


def is_plain(value):
    if isinstance(value, dict):
        return all(is_plain(key) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    if isinstance(value, np.ndarray):
        return value.dtype != object and value.base is None
    return value is None or isinstance(value, bool | int | float | str | np.generic)


@pytest.mark.parametrize("env_id", ["Humanoid-v4", "Ant-v5", "Pendulum-v1"])
def test_the_state_is_plain_and_small(env_id):
    env = make_env(env_id)
    env.reset(seed=0)
    state = capture(env)
    assert is_plain(state)
    assert len(pickle.dumps(state)) < 100_000


def test_a_state_of_something_else_is_refused():
    env = make_env("Hopper-v4")
    env.reset(seed=0)
    state = capture(env)
    with pytest.raises(CheckpointError, match=r"hopper_v4.HopperEnv.*walker2d_v4.Walker2dEnv"):
        restore(make_env("Walker2d-v4"), state)
    with pytest.raises(CheckpointError, match="RecordEpisodeStatistics"):
        restore(wrappers.RecordEpisodeStatistics(make_env("Hopper-v4")), state)
    with pytest.raises(CheckpointError, match="different MuJoCo model"):
        restore(env, state | {"mujoco": state["mujoco"] | {"integration": np.zeros(3)}})
    with pytest.raises(CheckpointError, match=r"saved with MuJoCo 1\.0"):
        restore(env, state | {"mujoco": state["mujoco"] | {"version": "1.0"}})

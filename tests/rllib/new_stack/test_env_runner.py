"""Test the environment runner: exact step counts, true successors, and streams that checkpoints continue."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_hpo.errors import NonFiniteError, SettingsError, UserCodeError, UserError
from rllib_hpo.replay.layout import Batch
from rllib_hpo.results import read_rows
from rllib_hpo.rllib.new_stack.env_runner import ColumnarEnvRunner
from rllib_hpo.rllib.new_stack.messages import Block
from rllib_hpo.streams import seed_sequence
from tests.rllib.environments import CountingEnv, NoisyEnv
from tests.rllib.tiny import EVERY_ALGORITHM, running, tiny_config

MakeRunner = Callable[..., ColumnarEnvRunner]


@pytest.fixture
def make_runner() -> Iterator[MakeRunner]:
    """Make runners without Ray, and close them."""
    runners: list[ColumnarEnvRunner] = []

    def make(
        env: Any = "Pendulum-v1",
        num_envs: int = 1,
        algorithm: str = "sac",
        env_config: dict[str, Any] | None = None,
        seed: int = 3,
    ) -> ColumnarEnvRunner:
        config = tiny_config(algorithm, env, seed).env_runners(num_envs_per_env_runner=num_envs)
        if env_config is not None:
            config.environment(env_config=env_config)
        config.validate()
        runners.append(ColumnarEnvRunner(config=config))
        return runners[-1]

    yield make
    for runner in runners:
        runner.stop()


def columns(runner: ColumnarEnvRunner, *blocks: Block) -> Batch:
    """Return the rows of blocks as columns."""
    return runner.layout.unpack(torch.from_numpy(np.concatenate([block.rows for block in blocks])))


def by_hand(make: Callable[[], gym.Env[Any, Any]], seed: int, actions: list[np.ndarray]) -> list[Any]:
    """Return (obs, reward, terminated, next_obs) of the environment stepped alone, reset at the ends of episodes."""
    env = make()
    obs, _ = env.reset(seed=seed)
    steps = []
    for action in actions:
        next_obs, reward, terminated, truncated, _ = env.step(action)
        steps.append((np.float32(obs), np.float32(reward), float(terminated), np.float32(next_obs)))
        obs = env.reset()[0] if terminated or truncated else next_obs
    env.close()
    return steps


@pytest.mark.parametrize("random_actions", [True, False], ids=["warm-up", "policy"])
@pytest.mark.parametrize(
    "env", ["Pendulum-v1", "Hopper-v4", NoisyEnv], ids=["Pendulum", "Hopper", "asymmetric bounds"]
)
def test_rows_are_what_the_environment_did(make_runner: MakeRunner, env: Any, random_actions: bool) -> None:
    """Two environments in turn equal each of them stepped by hand from the same seed, across many resets."""
    runner = make_runner(env, num_envs=2)
    batch = columns(runner, runner.sample(num_steps=160, random_actions=random_actions))
    low, high = runner.envs[0].action_space.low, runner.envs[0].action_space.high
    assert batch.action.abs().max() <= 1
    for i in range(2):
        seed = seed_sequence(3, "runner", 0, 0, "environment", i, 0).generate_state(1)[0] >> 1
        unit = batch.action[i::2].numpy()
        actions = [
            np.clip((low + high) / 2 + (high - low) / 2 * a, low, high).astype(np.float32) for a in unit
        ]
        alone = by_hand(runner._make, int(seed), actions)
        for row, (obs, reward, terminated, next_obs) in enumerate(alone):
            np.testing.assert_allclose(batch.obs[i::2][row], obs, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(batch.next_obs[i::2][row], next_obs, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(batch.reward[i::2][row], reward, rtol=1e-4, atol=1e-4)
            assert batch.terminated[i::2][row] == terminated


def test_a_time_limit_is_not_an_end(make_runner: MakeRunner) -> None:
    """Pendulum never terminates; its episodes are cut after 25 steps, and the successor is the true one."""
    runner = make_runner("Pendulum-v1")
    block = runner.sample(num_steps=80, random_actions=True)
    batch = columns(runner, block)
    assert batch.terminated.sum() == 0
    assert [episode.length for episode in block.episodes] == [25, 25, 25]
    follows = (batch.next_obs[:-1] == batch.obs[1:]).all(-1)
    assert follows.logical_not().nonzero().flatten().tolist() == [24, 49, 74]
    # One step turns the pendulum by 8 dt at most; a reset would put it anywhere.
    angles = (
        torch.atan2(batch.obs[:, 1], batch.obs[:, 0]),
        torch.atan2(batch.next_obs[:, 1], batch.next_obs[:, 0]),
    )
    turn = torch.remainder(angles[1] - angles[0] + torch.pi, 2 * torch.pi) - torch.pi
    assert turn.abs().max() < 0.41


def test_hopper_terminates(make_runner: MakeRunner) -> None:
    runner = make_runner("Hopper-v4", env_config={"max_episode_steps": 15})
    block = runner.sample(num_steps=300, random_actions=True)
    batch = columns(runner, block)
    limits = sum(episode.length == 15 for episode in block.episodes)
    assert 0 < limits < len(block.episodes)
    assert len(block.episodes) - limits <= batch.terminated.sum() <= len(block.episodes)


def test_episodes_report_their_return_and_length(make_runner: MakeRunner) -> None:
    runner = make_runner(CountingEnv, num_envs=3, env_config={"length": 4})
    episodes = runner.sample(num_steps=24, random_actions=True).episodes
    assert [(episode.episode_return, episode.length) for episode in episodes] == [(1 + 2 + 3 + 4, 4)] * 6
    assert all(episode.seconds > 0 for episode in episodes)


@pytest.mark.parametrize("num_envs", [1, 2, 3, 5])
def test_any_number_of_steps_can_be_asked_for(make_runner: MakeRunner, num_envs: int) -> None:
    """Requests of odd sizes continue in turn: no environment loses or repeats a step."""
    runner = make_runner(CountingEnv, num_envs=num_envs, env_config={"length": 1000})
    sizes = [1, 4, 7, 2, 1, 1, 9]
    blocks = [runner.sample(num_steps=size, random_actions=True) for size in sizes]
    assert [len(block.rows) for block in blocks] == sizes
    numbers = columns(runner, *blocks).next_obs[:, 1].long()
    assert numbers.tolist() == [1 + step // num_envs for step in range(sum(sizes))]


def test_the_warm_up_is_uniform(make_runner: MakeRunner) -> None:
    runner = make_runner(NoisyEnv, num_envs=2)
    actions = columns(runner, runner.sample(num_steps=6000, random_actions=True)).action.numpy()
    for component in actions.T:
        shares = np.histogram(component, bins=10, range=(-1, 1))[0] / len(actions)
        assert np.abs(shares - 0.1).max() < 0.02
    assert abs(np.corrcoef(actions.T)[0, 1]) < 0.05


@EVERY_ALGORITHM
def test_the_policy_explores(make_runner: MakeRunner, algorithm: str) -> None:
    """Two equal states get two actions, which differ from the warm-up's."""
    runner = make_runner(NoisyEnv, algorithm=algorithm)
    obs = np.zeros((2, 2), np.float32)
    runner._remember([0])
    actions = runner._actions(obs, [0] * len(obs), random=False)
    assert not np.array_equal(actions[0], actions[1])
    assert np.abs(actions).max() <= 1


def test_environments_start_differently(make_runner: MakeRunner) -> None:
    runner = make_runner("Pendulum-v1", num_envs=4)
    assert len({row.tobytes() for row in runner._obs}) == 4


def test_runners_of_one_seed_are_equal_and_of_two_seeds_are_not(make_runner: MakeRunner) -> None:
    one, same, other = (make_runner(NoisyEnv, seed=seed).sample(num_steps=30).rows for seed in (3, 3, 4))
    assert np.array_equal(one, same)
    assert not (one == other).all(-1).any()


def test_a_replacement_has_streams_of_its_own(make_runner: MakeRunner) -> None:
    """Otherwise it would repeat what the dead runner already delivered."""
    runners = [make_runner(NoisyEnv) for _ in range(3)]
    for runner, env_steps in zip(runners, (0, 40, 80), strict=True):
        runner.join(env_steps)
    for random_actions in (True, False):
        rows = [runner.sample(num_steps=20, random_actions=random_actions).rows for runner in runners]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert not (rows[one] == rows[other]).all(-1).any()


@pytest.mark.parametrize("joined_at", [0, 40])
def test_a_runner_joins_once(make_runner: MakeRunner, joined_at: int) -> None:
    """Every request carries the run's progress; only the first one of a process matters."""
    runner, undisturbed = make_runner(NoisyEnv), make_runner(NoisyEnv)
    undisturbed.join(joined_at)
    runner.join(joined_at)
    for env_steps in (joined_at, joined_at + 5, joined_at + 10):
        runner.join(env_steps)
        assert np.array_equal(runner.sample(num_steps=5).rows, undisturbed.sample(num_steps=5).rows)


def test_whether_it_has_joined_is_part_of_its_state(make_runner: MakeRunner) -> None:
    """A replacement saved before its first request still uses other streams than the dead runner."""
    dead = make_runner(NoisyEnv)
    dead.join(0)
    replacement, restored = make_runner(NoisyEnv), make_runner(NoisyEnv)
    restored.set_state(copy.deepcopy(replacement.get_state()))
    restored.join(40)
    assert restored._owner == ("runner", 0, 40)
    assert not (restored.sample(num_steps=20).rows == dead.sample(num_steps=20).rows).all(-1).any()
    again = make_runner(NoisyEnv)
    again.set_state(copy.deepcopy(dead.get_state()))
    again.join(40)
    assert again._owner == ("runner", 0, 0)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("env", ["Pendulum-v1", "Hopper-v4"])
def test_the_state_continues_bitwise(make_runner: MakeRunner, env: str, num_envs: int) -> None:
    runner = make_runner(env, num_envs)
    for random_actions in (True, False):
        runner.sample(num_steps=37, random_actions=random_actions)
    assert runner.is_savable()
    state = pickle.dumps(runner.get_state())
    expected = [runner.sample(num_steps=40, random_actions=random) for random in (False, True)]
    other = make_runner(env, num_envs)
    other.sample(num_steps=5)
    other.set_state(pickle.loads(state))
    for block, random in zip(expected, (False, True), strict=True):
        again = other.sample(num_steps=40, random_actions=random)
        assert np.array_equal(again.rows, block.rows)
        assert [episode[:2] for episode in again.episodes] == [episode[:2] for episode in block.episodes]


def test_rebuilt_environments_continue_bitwise(make_runner: MakeRunner) -> None:
    """Unsaveable environments are rebuilt at scheduled checkpoints, whether the run is interrupted or not."""
    runner = make_runner(NoisyEnv, num_envs=2)
    runner.sample(num_steps=17)
    assert not runner.is_savable()
    for _ in range(2):
        runner.rebuild_unsavable_envs()
        assert runner.is_savable()
        state = pickle.dumps(runner.get_state())
        expected = runner.sample(num_steps=30)
        other = make_runner(NoisyEnv, num_envs=2)
        other.set_state(pickle.loads(state))
        assert np.array_equal(other.sample(num_steps=30).rows, expected.rows)


@pytest.mark.parametrize("num_steps", [7, 11], ids=["within an episode", "at the end of an episode"])
def test_off_schedule_nothing_is_repeated(make_runner: MakeRunner, num_steps: int) -> None:
    """A lost simulator is replaced by one with randomness that was never used before."""
    runner = make_runner(NoisyEnv)
    first = runner.sample(num_steps=num_steps).rows
    assert not runner.is_savable()
    state = runner.get_state()
    other = make_runner(NoisyEnv)
    other.set_state(copy.deepcopy(state))
    assert other.is_savable()
    again = other.sample(num_steps=num_steps).rows
    assert not (first[:, :2] == again[:, :2]).all(-1).any()
    # And restored twice, twice the same.
    third = make_runner(NoisyEnv)
    third.set_state(copy.deepcopy(state))
    assert np.array_equal(third.sample(num_steps=num_steps).rows, again)


def test_savable_environments_are_not_rebuilt(make_runner: MakeRunner) -> None:
    runner = make_runner("Pendulum-v1")
    runner.sample(num_steps=3)
    env = runner.envs[0]
    runner.rebuild_unsavable_envs()
    assert runner.envs == [env]


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -np.inf, 1e39], ids=["nan", "inf", "-inf", "float32's inf"]
)
@pytest.mark.parametrize("bad", ["observation", "reward"])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_what_is_not_finite_is_named(make_runner: MakeRunner, bad: str, value: float) -> None:
    config = {"length": 4, "bad": bad, "bad_step": 6, "value": value}
    runner = make_runner(CountingEnv, env_config=config)
    assert np.isfinite(runner.sample(num_steps=5).rows).all()
    with pytest.raises(
        NonFiniteError, match=f"The {bad} of .*CountingEnv.* is not finite at step 2 of an episode"
    ):
        runner.sample(num_steps=5)


def test_the_users_own_error_comes_through(make_runner: MakeRunner) -> None:
    runner = make_runner(CountingEnv, env_config={"bad": "error", "bad_step": 2})
    message = r"'CountingEnv' raised RuntimeError in step\(\): the user's own mistake \(environments.py, line"
    with pytest.raises(UserCodeError, match=message) as caught:
        runner.sample(num_steps=5)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.traceback.count("Traceback") == 1
    assert "in _fail" in caught.value.traceback
    assert "boundary.py" not in caught.value.traceback


class ImageEnv(CountingEnv):
    """Observe pictures."""

    observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)


class UnboundedEnv(CountingEnv):
    """Accept any number."""

    action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)


@pytest.mark.parametrize(
    ("env", "phrase"),
    [
        ("CartPole-v1", "Discrete actions"),
        (ImageEnv, "image observations"),
        (UnboundedEnv, "unbounded actions"),
    ],
)
def test_spaces_that_cannot_be_handled_are_refused(make_runner: MakeRunner, env: Any, phrase: str) -> None:
    with pytest.raises(UserError, match=phrase):
        make_runner(env, env_config={})


def test_environments_get_their_options(make_runner: MakeRunner) -> None:
    """An id gets env_config as keyword arguments; a class gets RLlib's EnvContext."""
    assert make_runner("Pendulum-v1", env_config={"g": 5.0}).env.unwrapped.g == 5.0
    runner = make_runner(CountingEnv, env_config={"length": 9})
    assert runner.env.config == {"length": 9}


class NarrowEnv(CountingEnv):
    """Declare three numbers and return one; take float64 actions with bounds that float32 cannot represent."""

    action_space = gym.spaces.Box(-0.1, 0.1, (1,), np.float64)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Return an observation that broadcasts into a row unless it is checked."""
        assert action in self.action_space
        observation, *others = super().step(action)
        return (observation[:1] if self.config["narrow"] else observation), *others  # type: ignore[return-value]


def test_an_observation_is_not_broadcast(make_runner: MakeRunner) -> None:
    runner = make_runner(NarrowEnv, env_config={"narrow": True})
    with pytest.raises(
        UserCodeError, match=r"'NarrowEnv' returned .* as the observation from step\(\).*shape \(3,\)"
    ):
        runner.sample(num_steps=1)


def test_actions_stay_inside_bounds_that_are_no_float32(make_runner: MakeRunner) -> None:
    runner = make_runner(NarrowEnv, env_config={"narrow": False})
    runner._actions = lambda obs, which, random: np.ones((len(obs), 1), np.float32)
    runner.sample(num_steps=5)


def test_an_environment_that_was_made_already_is_refused() -> None:
    with pytest.raises(SettingsError, match="env=CountingEnv is an environment object: give its class"):
        tiny_config(env=CountingEnv({})).environment(env_config={}).build_algo()


class FragileEnv(CountingEnv):
    """Raise an error at every seventh step, and in the resets whose numbers are in `bad_resets`."""

    made = 0

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        type(self).made += 1
        self.number = type(self).made

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Fail in the given resets."""
        if self.number in self.config.get("bad_resets", ()):
            raise RuntimeError("no such scene")
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Fail at every seventh step."""
        if self.life == self.config.get("life", 6):
            raise RuntimeError("the simulator exploded")
        return super().step(action)


@pytest.mark.parametrize("option", ["restart_failed_sub_environments", "ignore_env_runner_failures"])
def test_environments_that_raise_an_error_are_rebuilt_if_that_is_asked_for(
    option: str, tmp_path: Path
) -> None:
    config = tiny_config(env=FragileEnv, evaluation_episodes=1).environment(env_config={"length": 4})
    message = r"raised RuntimeError in step\(\): the simulator exploded"
    with running(config.copy()) as algorithm, pytest.raises(UserCodeError, match=message):
        algorithm.train()
    config.fault_tolerance(**{option: True}).results(results_dir=str(tmp_path))
    config.environment(env_config={"length": 4, "bad_resets": (FragileEnv.made + 4,)})
    with running(config) as algorithm:
        result = algorithm.train()
        rows = np.concatenate(algorithm.local_learner.replay.read(0, 40))
        batch = columns(algorithm.env_runner, Block(rows, 0, len(rows), [], 0, False))
        # Of the six steps of each life four are the first episode, and two are lost with the second.
        assert algorithm.env_restarts == result["env_runners"]["num_env_restarts_lifetime"] == 6
        np.testing.assert_array_equal(batch.obs[:8, 1], [0, 1, 2, 3, 0, 1, 0, 1])
        np.testing.assert_array_equal(batch.next_obs[:8, 1], [1, 2, 3, 4, 1, 2, 1, 2])
        assert result["env_runners"]["episode_len_mean"] == 4
        progress = algorithm._progress()  # of a checkpoint
        algorithm.env_restarts = 0
        algorithm._set_progress(progress)
        assert algorithm.env_restarts == 6
    assert read_rows(tmp_path)["env_restarts"].to_pylist() == [0, 6]


def test_one_that_never_works_ends_the_run(make_runner: MakeRunner) -> None:
    config = tiny_config(env=FragileEnv).environment(env_config={"life": 0})
    config.fault_tolerance(restart_failed_sub_environments=True).validate()
    runner = ColumnarEnvRunner(config=config)
    with pytest.raises(UserCodeError, match="the simulator exploded"):
        runner.sample(num_steps=1)
    runner.stop()

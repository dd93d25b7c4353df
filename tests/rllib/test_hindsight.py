"""Test hindsight experience replay: what reaches the replay, resumes, several learners, refusals, and its benefit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from rllib_hpo.errors import SettingsError, UserCodeError, UserError
from rllib_hpo.replay.layout import Batch
from rllib_hpo.results import read_rows
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.algorithms import make_config
from rllib_hpo.rllib.new_stack.messages import Block
from rllib_hpo.tasks import make_env
from rllib_hpo.tasks.point_reach import ENV_ID, PointReach
from tests.rllib.old_stack.test_policy_stack import old_config
from tests.rllib.tiny import (
    EVERY_ALGORITHM_IN_TIME,
    assert_equal,
    facts,
    loaded,
    running,
    tiny_config,
    train_to,
)

NUM_ENVS, EPISODE, RATIO = 2, 10, 4
ACHIEVED, DESIRED = slice(0, 3), slice(3, 6)


def her_config(algorithm: str = "sac-hpo", **settings: Any) -> Any:
    config = tiny_config(algorithm, ENV_ID, replay="her", **settings)
    return config.environment(env_config={"max_episode_steps": EPISODE})


class Trained(NamedTuple):
    """A finished run and a checkpoint in the middle of episodes."""

    built: ActorCriticAlgorithm
    checkpoint: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train SAC-HPO in two environments with episodes of ten steps, and statistics of observations."""
    config = her_config(
        leapfrog_steps=1, checkpoint_every=50, steps_per_iteration=50, normalize_observations=True
    )
    with running(config.env_runners(num_envs_per_env_runner=NUM_ENVS)) as built:
        train_to(built, 50)
        checkpoint = Path(built.save_to_path(tmp_path_factory.mktemp("checkpoint") / "c"))
        train_to(built, 100)
        yield Trained(built, checkpoint)


def rows_of(built: ActorCriticAlgorithm) -> Batch:
    replay = built.local_learner.replay
    rows = np.concatenate(replay.read(0, replay.total_rows))
    return replay.layout.unpack(torch.from_numpy(rows))


def test_the_replay_holds_relabelled_copies_of_finished_episodes(trained: Trained) -> None:
    """Each copy is of a transition that happened, with a goal that its episode achieved later."""
    batch = rows_of(trained.built)
    assert len(batch.reward) == 100 * (1 + RATIO)  # ten episodes, all over
    goals = {tuple(goal) for goal in batch.obs[:, DESIRED].tolist()}
    env, happened = PointReach(), {}
    for k in range(len(batch.reward)):
        key = (*batch.obs[k, ACHIEVED].tolist(), *batch.action[k].tolist())
        happened.setdefault(key, []).append(k)
        expected = env.compute_reward(
            batch.next_obs[k, ACHIEVED].numpy(), batch.next_obs[k, DESIRED].numpy(), {}
        )
        assert float(batch.reward[k]) == expected
    assert len(happened) == 100
    assert {len(copies) for copies in happened.values()} == {1 + RATIO}
    achieved = {tuple(goal) for goal in batch.next_obs[:, ACHIEVED].tolist()}
    assert len(goals - achieved) == 100 // EPISODE  # the desired goals
    assert float((batch.reward == 0).float().mean()) > 0.2
    assert torch.equal(batch.obs[:, DESIRED], batch.next_obs[:, DESIRED])


def test_updates_and_statistics_follow_from_real_steps(trained: Trained) -> None:
    assert trained.built.num_updates == 100 - 20  # after the warm-up, one for each step
    normalizer = trained.built.actor.observation_normalizer
    assert normalizer is not None
    assert float(normalizer.count) == 100 + 1e-4


def test_a_run_resumed_in_the_middle_of_episodes_is_the_same(trained: Trained) -> None:
    with loaded(trained.checkpoint) as resumed:
        train_to(resumed, 100)
        assert_equal(facts(resumed), facts(trained.built))


def test_a_block_that_is_cut_keeps_its_copies_at_the_end() -> None:
    rows = np.arange(14, dtype=np.float32)[:, None]
    first, last = Block(rows, 0, 6, ["e"], 0, False, num_relabelled=8).cut(4)  # type: ignore[list-item]
    assert last is not None
    assert (first.place, first.num_steps, first.num_relabelled) == (slice(0, 4), 4, 0)
    assert (last.place, last.num_steps, last.num_relabelled) == (slice(4, 14), 2, 8)
    again = last._replace(episodes=[]).fetched_block()
    assert (again.place, again.rows[:, 0].tolist()) == (slice(0, 10), list(range(4, 14)))


@EVERY_ALGORITHM_IN_TIME
def test_every_algorithm_learns_from_copies(algorithm: str) -> None:
    with running(her_config(algorithm)) as built:
        train_to(built, 40)
        assert built.local_learner.replay.total_rows == 40 * (1 + RATIO)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_copies_reach_remote_learners(tmp_path: Path) -> None:
    config = her_config("sac", replay_capacity=1000)
    config.env_runners(num_env_runners=2, max_lead_steps=0).learners(num_learners=2)
    with running(config) as built:
        train_to(built, 80)
        assert built.stack.call_core("total_rows") == 80 * (1 + RATIO)
        assert built.num_updates == 60


class Grumpy(PointReach):
    """Fail to say what a step is worth."""

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> float:
        """Raise an error for any goal but that of the episode."""
        if desired_goal is self.goal:
            return -1.0
        raise ValueError("not my goal")


class Silent(PointReach):
    """Keep the reward function to itself."""

    compute_reward = None  # type: ignore[assignment]

    def step(self, action: Any) -> Any:
        """Return no reward."""
        return self._observation(), 0.0, False, False, {}


def test_what_cannot_be_relabelled_is_refused() -> None:
    def refused(env: Any, env_config: dict[str, Any], match: str) -> None:
        config = tiny_config("sac", env, replay="her").environment(env_config=env_config)
        with pytest.raises(UserError, match=match), running(config) as built:
            train_to(built, 80)

    refused("Pendulum-v1", {}, "'Pendulum-v1' has no such goals: replay=her needs a goal environment")
    refused(ENV_ID, {"wrappers": ["action-repeat"]}, "which the wrapper ActionRepeat would not change")
    refused(lambda _: Silent(), {}, "'Silent' has no compute_reward: replay=her needs")
    with pytest.raises(SettingsError, match="replay='her' relabels whole episodes"):
        old_config("sac", ENV_ID, replay="her").build_algo()
    with pytest.raises(SettingsError, match="her_ratio=8 would have no effect, since replay='uniform'"):
        tiny_config("sac", ENV_ID, her_ratio=8).build_algo()


def test_an_error_of_the_reward_function_is_the_users() -> None:
    config = her_config("sac").environment(lambda _: make_env_of(Grumpy()), env_config={})
    with (
        running(config) as built,
        pytest.raises(UserCodeError, match=r"raised ValueError in compute_reward\(\): not my goal"),
    ):
        train_to(built, 40)


def make_env_of(env: Any) -> Any:
    from gymnasium.wrappers import TimeLimit

    return TimeLimit(env, EPISODE)


def test_point_reach_is_a_goal_environment() -> None:
    env = make_env(ENV_ID, num_dims=2)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (6,)
    truncated, steps = False, 0
    while not truncated:
        action = np.clip((obs[2:4] - obs[0:2]) / 0.1, -1, 1)
        obs, reward, terminated, truncated, info = env.step(action)
        steps += 1
    assert (reward, terminated, info["is_success"], steps) == (0.0, False, True, 50)


def test_fetch_reach_is_relabelled_with_its_own_rewards() -> None:
    pytest.importorskip("gymnasium_robotics")
    env = make_env("gymnasium_robotics:FetchReach-v4").unwrapped
    config = her_config("sac").environment(
        "gymnasium_robotics:FetchReach-v4", env_config={"max_episode_steps": EPISODE}
    )
    with running(config) as built:
        result = train_to(built, 40)
        batch = rows_of(built)
        assert "success_rate" in result["env_runners"]
    assert len(batch.reward) == 40 * (1 + RATIO)
    places = batch.next_obs[:, ACHIEVED].double().numpy(), batch.next_obs[:, DESIRED].double().numpy()
    np.testing.assert_array_equal(batch.reward, env.compute_reward(*places, {}))
    assert float((batch.reward == 0).float().mean()) > 0.2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("replay", "least", "most"), [("her", 0.9, 1.0), ("uniform", 0.0, 0.3)])
def test_hindsight_solves_what_is_not_solved_without(
    replay: str, least: float, most: float, tmp_path: Path
) -> None:
    """SAC-HPO reaches almost every goal of the cube with HER, and almost none without."""
    assert least <= _success_rate(replay, tmp_path) <= most


def _success_rate(replay: str, folder: Path) -> float:
    steps = 4_000
    config = make_config("sac-hpo").environment(ENV_ID).debugging(seed=0, log_level="ERROR")
    config.training(
        replay=replay,
        hidden_units=64,
        gamma=0.95,
        alpha=0.05,
        lr=1e-3,
        leapfrog_steps=1,
        warmup_steps=500,
        evaluation_every=steps,
        evaluation_episodes=50,
        checkpoint_every=steps,
    )
    rows = folder / replay
    with running(config.results(results_dir=str(rows))) as built:
        train_to(built, steps)
    return float(read_rows(rows)["success_rate"].to_pylist()[-1])

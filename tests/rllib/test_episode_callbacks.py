"""Test RLlib's episode callbacks: on the runner that plays, in evaluations, across resumes, and what they log."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback

from tests.rllib.environments import CountingEnv
from tests.rllib.tiny import assert_equal, facts, loaded, running, tiny_config, train_to

EPISODE = 25  # of Pendulum in `tiny_config`


class Listening(RLlibCallback):
    """Note every event, and log the largest speed of each episode."""

    heard: ClassVar[list[tuple[Any, ...]]] = []

    def on_episode_start(self, *, episode: Any, env_runner: Any, env_index: int, **_: Any) -> None:
        self._note("start", episode, env_runner, env_index)
        episode.custom_data["speeds"] = []

    def on_episode_step(self, *, episode: Any, env_runner: Any, env: Any, env_index: int, **_: Any) -> None:
        self._note("step", episode, env_runner, env_index)
        episode.custom_data["speeds"].append(abs(float(episode.get_observations(-1)[2])))
        np.testing.assert_allclose(env.envs[env_index].state[1], episode.get_observations(-1)[2], rtol=1e-5)
        given = episode.get_extra_model_outputs("actions_for_env", -1)
        np.testing.assert_allclose(given, 2 * episode.get_actions(-1), rtol=1e-5)

    def on_episode_end(
        self, *, episode: Any, env_runner: Any, metrics_logger: Any, rl_module: Any, env_index: int, **_: Any
    ) -> None:
        self._note("end", episode, env_runner, env_index)
        assert rl_module.model.obs_dim == 3
        metrics_logger.log_value("speed_max", max(episode.custom_data["speeds"]), window=100)

    def on_sample_end(self, *, samples: list[Any], env_runner: Any, metrics_logger: Any, **_: Any) -> None:
        metrics_logger.log_value("samples", len(samples), reduce="sum")

    @staticmethod
    def _note(event: str, episode: Any, env_runner: Any, index: int) -> None:
        evaluates = env_runner.config.in_evaluation
        Listening.heard.append((event, evaluates, index, len(episode), episode.id_, episode.get_return()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train in two environments; return the algorithm, its last result, the events and a checkpoint mid-episode."""
    Listening.heard = []
    config = tiny_config().callbacks(Listening).env_runners(num_envs_per_env_runner=2)
    with running(config) as built:
        first = train_to(built, 40)
        checkpoint = Path(built.save_to_path(tmp_path_factory.mktemp("checkpoint") / "c"))
        train_to(built, 80)
        result = train_to(built, 120)
        yield built, (first, result), list(Listening.heard), checkpoint


def test_each_episode_is_told_from_start_to_end(trained: Any) -> None:
    _, _, heard, _ = trained
    training = [one for one in heard if not one[1]]
    for index in (0, 1):
        events = [(event, length) for event, _, i, length, *_ in training if i == index]
        whole = [("start", 0), *(("step", t) for t in range(1, EPISODE + 1)), ("end", EPISODE)]
        assert events == [*whole, *whole, *whole][: len(events)]
        assert len(events) == 60 + 3 + 2  # steps, starts and ends
    assert len({one[4] for one in training}) == 6


def test_evaluations_are_heard_too_and_their_returns_are_those_reported(trained: Any) -> None:
    _, (_, result), heard, _ = trained
    ends = [one for one in heard if one[0] == "end" and one[1]]
    assert [one[2:4] for one in ends] == [(i, EPISODE) for _ in range(4) for i in (0, 1)]  # at 0, 40, 80, 120
    reported = result["evaluation"]["env_runners"]
    assert reported["episode_return_mean"] == pytest.approx(np.mean([one[5] for one in ends[-2:]]), rel=1e-5)
    assert 0 < reported["speed_max"] <= 8


def test_what_callbacks_log_is_in_results(trained: Any) -> None:
    _, (first, result), *_ = trained
    assert first["env_runners"]["samples"] == 40  # two in each of 20 requests
    assert 0 < result["env_runners"]["speed_max"] <= 8


def test_a_resumed_run_goes_on_with_its_episodes(trained: Any) -> None:
    built, _, heard, checkpoint = trained
    Listening.heard = []
    with loaded(checkpoint) as resumed:
        train_to(resumed, 120)
        mine, theirs = facts(resumed), facts(built)
    again = [one for one in Listening.heard if not one[1]]
    training = [one for one in heard if not one[1]]
    assert [one[:4] for one in again] == [one[:4] for one in training[-len(again) :]]
    assert again[0][3:5] == training[-len(again)][3:5] == (21, training[0][4])  # the same episode
    for facts_of_run in (mine, theirs):
        for runner in facts_of_run["runners"]:
            for environment in runner["environments"]:
                environment.pop("episode")  # which holds times
    assert_equal(mine, theirs)


def test_functions_are_called_and_rows_stay_the_same() -> None:
    seen: list[float] = []
    with running(tiny_config()) as plain:
        train_to(plain, 80)
        expected = facts(plain)
    config = tiny_config().callbacks(on_episode_end=lambda episode, **_: seen.append(episode.get_return()))
    with running(config) as built:
        train_to(built, 80)
        assert_equal({**facts(built), "runners": None}, {**expected, "runners": None})
    assert len(seen) == 3 + 3 * 2  # training, and three evaluations


class Failing(CountingEnv):
    """Raise an error in every seventh step."""

    steps = 0

    def step(self, action: np.ndarray) -> Any:
        """Fail, or step."""
        Failing.steps += 1
        if Failing.steps > 0 and Failing.steps % 7 == 0:
            raise ValueError("no")
        return super().step(action)


def test_an_episode_that_an_error_cuts_ends_without_a_word() -> None:
    heard: list[tuple[str, int]] = []
    config = tiny_config(env=Failing, evaluation_every=1000).environment(env_config={})
    config.fault_tolerance(restart_failed_sub_environments=True).callbacks(
        on_episode_start=lambda episode, env_runner, **_: heard.append(("start", len(episode))),
        on_episode_end=lambda episode, env_runner, **_: heard.append(("end", len(episode))),
    )
    Failing.steps = -8  # the steps of the evaluation
    with running(config) as built:
        train_to(built, 40)
    assert ("end", 4) in heard
    starts, ends = (sum(event == name for event, _ in heard) for name in ("start", "end"))
    assert starts > ends


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_remote_runners_call_them_where_they_play(tmp_path: Path) -> None:
    class Logging(RLlibCallback):
        """Log the length of episodes."""

        def on_episode_end(self, *, episode: Any, metrics_logger: Any, **_: Any) -> None:
            metrics_logger.log_value("steps_played", len(episode), reduce="sum")

    config = tiny_config().callbacks(Logging).env_runners(num_env_runners=2, max_lead_steps=0)
    with running(config.evaluation(evaluation_num_env_runners=1)) as built:
        results = [built.train() for _ in range(3)]
    assert sum(result["env_runners"].get("steps_played", 0) for result in results) == 4 * EPISODE
    assert results[-1]["evaluation"]["env_runners"]["steps_played"] == 2 * EPISODE

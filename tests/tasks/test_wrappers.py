"""Test wrappers by name: their effect, what evaluations omit, and their state in resumed runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import NormalizeObservation, TimeAwareObservation

from rllib_hpo.errors import SettingsError
from rllib_hpo.experiments.config.run_config import resolve
from rllib_hpo.experiments.runs.evaluate import evaluate_checkpoint
from rllib_hpo.experiments.storage.export import export_policy
from rllib_hpo.results import read_rows, without_volatile
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.tasks import make_env
from rllib_hpo.tasks.wrappers import ActionRepeat, get_state, parse_wrappers, set_state
from tests.rllib.tiny import assert_equal, facts, running, tiny_config, train_to


class Counting(gym.Wrapper[Any, Any, Any, Any]):
    """Count steps, and observe the count."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.count = 0

    def step(self, action: Any) -> Any:
        self.count += 1
        obs, *rest = self.env.step(action)
        return (obs + np.float32(1e-3 * self.count)).astype(np.float32), *rest

    def get_state(self) -> int:
        return self.count

    def set_state(self, state: int) -> None:
        self.count = state


COUNTING = f"{__name__}:Counting"
ALL = ["normalize-observation", "normalize-reward", {"action-repeat": {"num_repeats": 2}}, COUNTING]


def test_names_arguments_and_order() -> None:
    env = make_env("Pendulum-v1", wrappers=[{"action-repeat": {"num_repeats": 3}}, "normalize-observation"])
    assert isinstance(env, NormalizeObservation)
    assert isinstance(env.env, ActionRepeat)
    assert env.env.num_repeats == 3
    other = make_env("Pendulum-v1", wrappers=["gymnasium.wrappers:TimeAwareObservation"])
    assert isinstance(other, TimeAwareObservation)


def test_an_action_is_repeated_and_its_rewards_added() -> None:
    one, repeated = make_env("Pendulum-v1"), make_env("Pendulum-v1", wrappers=["action-repeat"])
    one.reset(seed=0), repeated.reset(seed=0)
    action = np.array([0.5], np.float32)
    (_, first, *_), (obs, second, *_) = one.step(action), one.step(action)
    both, reward, *_ = repeated.step(action)
    np.testing.assert_array_equal(both, obs)
    assert reward == pytest.approx(float(first) + float(second))
    lengths, over = 1, False
    while not over:
        *_, truncated, _ = repeated.step(action)
        lengths, over = lengths + 1, truncated
    assert lengths == 100  # of the 200 steps of an episode


def test_evaluations_measure_the_environments_own_reward() -> None:
    training = make_env("Pendulum-v1", wrappers=["normalize-reward", "normalize-observation"])
    evaluation = make_env(
        "Pendulum-v1", wrappers=["normalize-reward", "normalize-observation"], training=False
    )
    assert {type(layer).__name__ for layer in _layers(training)} - {
        type(layer).__name__ for layer in _layers(evaluation)
    } == {"NormalizeReward"}


def _layers(env: Any) -> list[Any]:
    return [env, *_layers(env.env)] if isinstance(env, gym.Wrapper) else [env]


def test_state_goes_through_json_and_is_frozen() -> None:
    one, other = make_env("Pendulum-v1", wrappers=ALL), make_env("Pendulum-v1", wrappers=ALL, training=False)
    one.reset(seed=0)
    for _ in range(20):
        one.step(one.action_space.sample())
    state = get_state(one)
    assert [name.rpartition(".")[2] for name, _ in state] == [
        "Counting",
        "NormalizeReward",
        "NormalizeObservation",
    ]
    set_state(other, json.loads(json.dumps(state)), frozen=True)
    kept = [entry for entry in state if not entry[0].endswith("NormalizeReward")]
    assert get_state(other) == kept
    other.reset(seed=1)
    other.step(other.action_space.sample())
    assert get_state(other)[1] == kept[1]  # the count goes on, the statistics do not


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ("normalize-observation", "must be a list"),
        (["normalise-observation"], "Did you mean 'normalize-observation'"),
        ([{"a": {}, "b": {}}], "must be a name, or a name with its arguments"),
        ([{"action-repeat": 2}], "must be a name, or a name with its arguments"),
        (["nowhere:Wrapper"], "cannot be imported"),
        (["gymnasium.wrappers:Nothing"], "cannot be imported"),
        (["gymnasium:Env"], "is not a gymnasium.Wrapper"),
    ],
)
def test_mistakes_are_named(listed: Any, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        parse_wrappers(listed)
    with pytest.raises(SettingsError, match=f"^env_config: .*{says}"):
        resolve({"task": "Pendulum-v1", "env_config": {"wrappers": listed}})


@pytest.mark.parametrize("kwargs", [{"num_repeats": 0}, {"times": 2}])
def test_arguments_that_do_not_fit_are_named(kwargs: dict[str, int]) -> None:
    says = f"'action-repeat' does not fit the environment: .*{next(iter(kwargs))}"
    with pytest.raises(SettingsError, match=says):
        make_env("Pendulum-v1", wrappers=[{"action-repeat": kwargs}])


WRAPPED = {
    "saved mid-episode": ("Pendulum-v1", ALL[:3]),
    "a wrapper of one's own": ("Pendulum-v1", ALL),
    "MuJoCo": ("Hopper-v4", ["normalize-observation"]),
    "PyBullet": ("HumanoidPyBulletEnv-v0", ["normalize-observation", "normalize-reward"]),
}


@pytest.mark.parametrize(
    ("env", "listed"),
    [
        pytest.param(*case, id=name, marks=[] if name in ("MuJoCo", "PyBullet") else pytest.mark.exhaustive)
        for name, case in WRAPPED.items()
    ],
)
def test_a_resumed_run_remembers_what_they_gathered(env: str, listed: list[Any], tmp_path: Path) -> None:
    """The run is bitwise equal, evaluations included; those use the statistics of training."""

    def config(name: str) -> Any:
        made = tiny_config("sac-hpo", env)
        made.env_config = {**made.env_config, "wrappers": listed}
        return made.results(results_dir=str(tmp_path / name), trial_id="t")

    with running(config("rows")) as whole:
        train_to(whole, 80)
        whole.save_to_path(tmp_path / "checkpoint")
        train_to(whole, 160)
        expected, gathered = facts(whole), whole.stack.wrapper_state()
    resumed = ActorCriticAlgorithm.from_checkpoint(tmp_path / "checkpoint", config=config("again"))
    try:
        train_to(resumed, 160)
        assert_equal(expected, facts(resumed))
        assert resumed.stack.wrapper_state() == gathered
    finally:
        resumed.stop()
    rows, again = (without_volatile(read_rows(tmp_path / name)).to_pylist() for name in ("rows", "again"))
    assert rows[-len(again) :] == again
    assert len(again) == 2


def test_a_checkpoint_evaluates_as_the_run_did(tmp_path: Path) -> None:
    config = tiny_config("sac", "Pendulum-v1")
    config.env_config = {**config.env_config, "wrappers": ["normalize-observation"]}
    with running(config) as algorithm:
        train_to(algorithm, 80)
        algorithm.save_to_path(tmp_path / "checkpoint")
    played, manifest = evaluate_checkpoint(tmp_path / "checkpoint", 2)
    assert manifest["wrappers"][0][0].endswith("NormalizeObservation")
    manifest_file = tmp_path / "checkpoint" / "manifest.json"
    manifest_file.write_text(json.dumps({**json.loads(manifest_file.read_text()), "wrappers": []}))
    without, _ = evaluate_checkpoint(tmp_path / "checkpoint", 2)
    assert played.returns != without.returns
    with pytest.raises(SettingsError, match="'normalize-observation' gathered in training"):
        export_policy(tmp_path / "checkpoint", "safetensors", tmp_path / "policy.safetensors")


@pytest.mark.parametrize("scattered", [{"num_envs_per_env_runner": 2}, {"num_env_runners": 1}])
def test_statistics_need_one_environment(scattered: dict[str, int]) -> None:
    config = tiny_config("sac").env_runners(**scattered)
    config.env_config = {"wrappers": ["normalize-observation"]}
    with pytest.raises(SettingsError, match="'normalize-observation' gathers statistics"):
        config.validate()
    config.env_config = {"wrappers": ["action-repeat"]}
    config.validate()

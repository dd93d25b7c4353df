"""Test that meaningless numbers are rejected in a sentence, and that NumPy's numbers are accepted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest

from rllib_hpo.algorithms import registry
from rllib_hpo.algorithms.registry import make_method, register_algorithm
from rllib_hpo.errors import SettingsError
from rllib_hpo.results import read_rows
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.rllib.validation import EFFECTIVE_OPTIONS, NEW_STACK_OPTIONS
from rllib_hpo.samplers import register_sampler
from rllib_hpo.samplers.base import Sample
from rllib_hpo.samplers.gaussian import GaussianSampler
from rllib_hpo.settings import SACSettings
from tests.rllib.tiny import running, tiny_config

NUMBERS = """
    seed num_env_runners num_envs_per_env_runner num_cpus_per_env_runner num_cpus_for_main_process sample_timeout_s
    rollout_fragment_length max_num_env_runner_restarts metrics_num_episodes_for_smoothing num_learners local_gpu_idx
    env_runner_health_probe_timeout_s num_gpus_per_learner num_cpus_per_learner evaluation_num_env_runners
    max_lead_steps
""".split()


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1, np.int64(-1)])
def test_minus_one_is_refused_and_not_dropped(name: str, value: Any) -> None:
    assert name in EFFECTIVE_OPTIONS | NEW_STACK_OPTIONS
    config = tiny_config()
    setattr(config, name, value)
    assert getattr(config.copy(copy_frozen=False), name) == -1
    with pytest.raises(SettingsError, match=rf"{name}=-1 must be"):
        config.build_algo()


@pytest.mark.parametrize(
    "name", ["gamma", "lr", "alpha", "warmup_steps", "evaluation_every", "replay_capacity"]
)
def test_hyperparameters_of_minus_one_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name}=-1"):
        tiny_config(**{name: -1}).build_algo()


def test_a_target_entropy_of_minus_one_is_what_it_is() -> None:
    config = tiny_config(alpha="auto", target_entropy=-1.0)
    assert config.copy(copy_frozen=False).settings().target_entropy == -1.0


def test_numbers_of_numpy_are_numbers(tmp_path: Any) -> None:
    config: ActorCriticConfig = tiny_config(
        seed=np.int64(5), lr=np.float32(0.5) / 1024, warmup_steps=np.int32(20), cuda_graph=np.bool_(False)
    )
    config.env_runners(num_envs_per_env_runner=np.int64(1)).results(results_dir=str(tmp_path))
    with running(config) as algorithm:
        algorithm.train()
    row = read_rows(tmp_path).to_pylist()[0]
    assert (row["seed"], json.loads(row["config_json"])["warmup_steps"]) == (5, 20)


class WithoutDensity(GaussianSampler):
    """Draw actions without a density."""

    def forward(self, *args: Any, **kwargs: Any) -> Sample:
        return super().forward(*args, **kwargs)._replace(log_prob=None)


class WithoutDensitySettings(SACSettings):
    sampler: ClassVar[str] = "without-density"


@pytest.fixture
def without_density() -> Iterator[str]:
    register_sampler("without-density", WithoutDensity)
    register_algorithm("sac-without-density", WithoutDensitySettings)
    yield "sac-without-density"
    del registry._ENTRIES["sac-without-density"]


@pytest.mark.parametrize("is_new", [True, False])
def test_a_temperature_that_cannot_be_tuned_is_refused(without_density: str, is_new: bool) -> None:
    config = tiny_config(without_density, alpha="auto").api_stack(is_new, is_new)
    with pytest.raises(
        SettingsError, match=r"alpha='auto' cannot be tuned: the sampler 'without-density'.*alpha=0\.2"
    ):
        config.build_algo()
    with running(config.copy(copy_frozen=False).training(alpha=0.2)) as algorithm:
        assert float(algorithm.actor.alpha) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("sac", {}),
        ("sac-nf", {}),
        ("sac-hpo", {}),
        ("sac-hpo", {"train_sampler": "gaussian"}),
        ("sac-hpo", {"explore_sampler": "gaussian", "leapfrog_steps": 0}),
        ("sac-hpo", {"force_gate": "none", "force_scale": "inverse_temperature", "momentum_noise": False}),
    ],
)
def test_every_sampler_here_has_a_density(algorithm: str, settings: dict[str, Any]) -> None:
    method = make_method(tiny_config(algorithm, alpha="auto", **settings).settings())
    method.check(method.make_actor(3, 1, seed=0))

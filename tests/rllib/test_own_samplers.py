"""Test user-defined samplers: checked when an algorithm is built, and known in other processes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ray import cloudpickle

from rllib_hpo.algorithms import registry
from rllib_hpo.algorithms.registry import find_settings, register_algorithm
from rllib_hpo.errors import UserCodeError
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.samplers import SAMPLERS, register_sampler
from rllib_hpo.samplers.base import Sample
from rllib_hpo.samplers.gaussian import GaussianSampler
from rllib_hpo.settings import SACSettings
from tests.rllib.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[2]


class Changed(GaussianSampler):
    """Draw from the Gaussian, and apply `change` to each draw."""

    change: ClassVar[Any] = staticmethod(lambda sample: sample)

    def forward(self, *args: Any, **kwargs: Any) -> Sample:
        changed: Sample = type(self).change(super().forward(*args, **kwargs))
        return changed


class ChangedSettings(SACSettings):
    sampler: ClassVar[str] = "changed"


@pytest.fixture
def changed() -> Iterator[str]:
    register_sampler("changed", Changed)
    register_algorithm("sac-changed", ChangedSettings)
    yield "sac-changed"
    registry._ENTRIES.pop("sac-changed", None)
    SAMPLERS.pop("changed", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s._replace(log_prob=s.log_prob[:, None]),
            r"log_prob of shape \(7, 1\) for 7 states: it must have shape \(7,\)",
        ),
        (lambda s: s._replace(penalty=s.action), r"penalty of shape \(7, 1\)"),
        (lambda s: s._replace(action=3 + s.action), r"an action component of absolute value .*\[-1, 1\]"),
        (lambda s: s._replace(action=s.action * float("nan")), r"an action component of absolute value nan"),
        (lambda s: s._replace(action=s.action[:, 0]), r"actions of shape \(7,\) for 7 states with 1 action"),
    ],
)
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "old"])
def test_what_it_returns_is_checked_by_name(
    changed: str, change: Any, message: str, is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Changed, "change", staticmethod(change))
    with pytest.raises(UserCodeError, match=f"^The sampler 'changed' returned {message}"):
        tiny_config(changed).api_stack(is_new, is_new).build_algo()


@pytest.mark.parametrize("way", ["pickle", "dict"])
def test_a_config_brings_it_along(changed: str, way: str) -> None:
    """Remote runners get it pickled, and Tune's trials as a dict."""
    config = tiny_config(changed)
    sent = cloudpickle.dumps(config if way == "pickle" else config.to_dict())
    del registry._ENTRIES["sac-changed"], SAMPLERS["changed"]
    received = pickle.loads(sent)
    if way == "dict":
        received = ActorCriticConfig().update_from_dict(received)
    assert SAMPLERS["changed"] is Changed
    assert find_settings("sac-changed") is received.settings_class is ChangedSettings
    assert tiny_config("sac")._sampler is None  # those of this package are known everywhere


SCRIPT = """
from typing import ClassVar
import ray
from ray import tune
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.samplers import register_sampler
from rllib_hpo.samplers.gaussian import GaussianSampler
from rllib_hpo.algorithms.registry import register_algorithm
from rllib_hpo.settings import SACSettings
from tests.rllib.tiny import tiny_config

class Mine(GaussianSampler):
    pass

class MySettings(SACSettings):
    sampler: ClassVar[str] = "mine"

register_sampler("mine", Mine)
register_algorithm("sac-mine", MySettings)
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
config = tiny_config("sac-mine").env_runners(num_env_runners=1).evaluation(evaluation_num_env_runners=1)
config.learners(num_learners=1)
algorithm = config.build_algo()
algorithm.train()
algorithm.stop()
run = tune.RunConfig(storage_path=STORAGE, stop={"training_iteration": 1}, verbose=0)
result = tune.Tuner(ActorCriticAlgorithm, param_space=tiny_config("sac-mine"), run_config=run).fit()[0]
assert result.error is None, result.error
print("steps:", algorithm.env_steps, result.metrics["env_runners"]["num_env_steps_sampled_lifetime"])
"""


@pytest.mark.slow
def test_one_that_a_script_defines_works_in_other_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("STORAGE", repr(str(tmp_path / "storage"))))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [sys.executable, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "steps: 40 40" in finished.stdout

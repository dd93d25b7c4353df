"""Test whole runs whose learner has a GPU: they act, learn, evaluate, save and resume as on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.rllib.trained_policy import load_policy
from tests.devices import GPU_MARKS
from tests.rllib.old_stack.test_policy_stack import old_config
from tests.rllib.tiny import EVERY_ALGORITHM, loaded, running, tiny_config, train_to

pytestmark = GPU_MARKS


def _config(stack: str, algorithm: str) -> ActorCriticConfig:
    if stack == "new":
        return tiny_config(algorithm).learners(num_gpus_per_learner=1)
    return old_config(algorithm).resources(num_gpus=1)


@EVERY_ALGORITHM
@pytest.mark.parametrize("stack", ["new", "old"])
def test_a_run_in_one_process(stack: str, algorithm: str, tmp_path: Path) -> None:
    """Acting uses the learner's own networks; the trained policy loads onto the CPU; no Ray cluster is started."""
    with running(_config(stack, algorithm)) as run:
        result = train_to(run, 80)
        assert run.actor.device.type == "cuda"
        assert result["learners"]["default_policy"]["num_updates"] == 60
        assert "episode_return_mean" in run.evaluate()["env_runners"]
        run.save_to_path(str(tmp_path))
    assert load_policy(tmp_path).actor.device.type == "cpu"
    with loaded(tmp_path) as again:
        assert again.env_steps == 80
        train_to(again, 120)
    assert not ray.is_initialized()

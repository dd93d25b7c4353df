"""Test structured observations and success rates from the environment to rows, checkpoints and exported policies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from rllib_hpo.deployment import load_policy_file
from rllib_hpo.errors import UserCodeError
from rllib_hpo.experiments.storage.export import export_policy, load_deployed
from rllib_hpo.results import read_rows
from rllib_hpo.tasks.observations import Flattening
from tests.rllib.old_stack.test_policy_stack import old_config
from tests.rllib.tiny import assert_equal, facts, loaded, running, tiny_config, train_to

SPACE = Dict(
    {
        "joints": Box(-1, 1, (2, 2)),
        "mode": Tuple([Discrete(3, start=1), MultiDiscrete([2, 3])]),
        "switches": MultiBinary(2),
    }
)
ORDER = "Observations are flattened to 14 numbers: joints (4), mode.0 (3, one-hot), mode.1 (5, one-hot), switches (2)."


class StructuredEnv(gym.Env[Any, Any]):
    """Observe everything; every second episode of five steps succeeds."""

    observation_space: gym.Space[Any] = SPACE
    action_space = Box(-2.0, 2.0, (1,))

    def __init__(self, config: Any = None) -> None:
        self.episodes = self.step_number = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Begin an episode."""
        super().reset(seed=seed)
        self.step_number, self.episodes = 0, self.episodes + 1
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        """Report success at the last step."""
        self.step_number += 1
        is_success = self.step_number == 5 and self.episodes % 2 == 0
        return self._observation(), float(action[0]), False, self.step_number == 5, {"is_success": is_success}

    def _observation(self) -> dict[str, Any]:
        draw = self.np_random
        return {
            "joints": draw.uniform(-1, 1, (2, 2)),
            "mode": (int(draw.integers(1, 4)), draw.integers(0, [2, 3])),
            "switches": draw.integers(0, 2, 2).astype(np.int8),
        }


class Trained(NamedTuple):
    """A finished run, its last result, a checkpoint half-way and the folder of its rows."""

    built: Any
    result: dict[str, Any]
    checkpoint: Path
    rows: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train SAC-HPO on structured observations."""
    rows = tmp_path_factory.mktemp("rows")
    config = tiny_config("sac-hpo", StructuredEnv, leapfrog_steps=1).results(results_dir=str(rows))
    with running(config) as built:
        train_to(built, 40)
        checkpoint = Path(built.save_to_path(tmp_path_factory.mktemp("checkpoint") / "c"))
        yield Trained(built, train_to(built, 80), checkpoint, rows)


def test_a_run_learns_from_the_vector_and_says_its_order(trained: Trained) -> None:
    assert trained.built.actor.obs_dim == 14
    assert trained.built.observation_order == ORDER


def test_a_resumed_run_is_the_same(trained: Trained) -> None:
    with loaded(trained.checkpoint) as resumed:
        train_to(resumed, 80)
        assert_equal(facts(resumed), facts(trained.built))


def test_success_is_in_results_and_rows(trained: Trained) -> None:
    assert trained.result["env_runners"]["success_rate"] == 0.5  # of training episodes
    assert (
        trained.result["evaluation"]["env_runners"]["success_rate"] == 0.0
    )  # each in an environment of its own
    assert read_rows(trained.rows)["success_rate"].to_pylist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("file_format", ["torch-export", "onnx", "safetensors"])
def test_exported_policies_take_the_structure(trained: Trained, file_format: str, tmp_path: Path) -> None:
    structured = [StructuredEnv().reset(seed=seed)[0] for seed in range(5)]
    flat = torch.from_numpy(np.stack([Flattening(SPACE, "env")(one) for one in structured]))
    policy = load_deployed(trained.checkpoint)
    expected = policy(flat)
    obs = {
        "joints": torch.tensor(np.stack([one["joints"] for one in structured]), dtype=torch.float32),
        "mode": (
            torch.tensor([one["mode"][0] for one in structured]),
            torch.tensor(np.stack([one["mode"][1] for one in structured])),
        ),
        "switches": torch.tensor(np.stack([one["switches"] for one in structured])),
    }
    assert torch.equal(policy(obs), expected)
    path = tmp_path / "policy"
    export_policy(trained.checkpoint, file_format, path)
    if file_format == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(str(path))
        leaves = [obs["joints"], *obs["mode"], obs["switches"]]
        names = [one.name for one in session.get_inputs()]
        assert names == ["joints", "mode.0", "mode.1", "switches"]
        inputs = {name: leaf.numpy() for name, leaf in zip(names, leaves, strict=True)}
        action = torch.from_numpy(session.run(["action"], inputs)[0])
    elif file_format == "safetensors":
        action = load_policy_file(path)(obs)
    else:
        action = torch.export.load(path).module()(obs)
    torch.testing.assert_close(action, expected, rtol=1e-5, atol=1e-6)


def test_the_old_stack_learns_from_the_vector_too(tmp_path: Path) -> None:
    config = old_config("sac", StructuredEnv)
    config.environment(env_config={})
    with running(config) as built:
        train_to(built, 40)
        assert (built.actor.obs_dim, built.observation_order) == (14, ORDER)
        checkpoint = Path(built.save_to_path(tmp_path / "c"))
    assert [part.size for part in load_deployed(checkpoint).metadata.observation_parts] == [4, 3, 5, 2]


@pytest.mark.slow
def test_the_example_of_serving_feeds_each_part(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    config = tiny_config("sac", "PointReach-v0")
    with running(config) as built:
        train_to(built, 40)
        checkpoint = Path(built.save_to_path(tmp_path / "c"))
    export_policy(checkpoint, "onnx", tmp_path / "policy.onnx")
    script = Path(__file__).parents[2] / "notebooks" / "serve_policy.py"
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path / "policy.onnx")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "sac on PointReach-v0 after 40 steps: return -" in done.stdout


class Unsure(StructuredEnv):
    """Report success in words."""

    def step(self, action: Any) -> Any:
        """Say maybe."""
        return *super().step(action)[:4], {"is_success": "maybe"}


def test_success_must_be_a_number() -> None:
    with (
        running(tiny_config("sac", Unsure)) as built,
        pytest.raises(UserCodeError, match="reports 'maybe' as 'is_success' in the info of step"),
    ):
        built.train()

"""Test runs from images through RLlib: training, exact resumes, remote runners and learners, export, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rllib_hpo.deployment import load_policy_file
from rllib_hpo.errors import SettingsError, UserError
from rllib_hpo.experiments.storage.export import export_policy
from rllib_hpo.replay.frames import FrameReplay
from rllib_hpo.results import read_rows
from rllib_hpo.results.schema import without_volatile
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.algorithms import make_config
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.tasks.observations import flattened
from tests.kinds import OF_IMAGES
from tests.rllib.tiny import (
    TINY,
    assert_equal,
    facts,
    learner_facts,
    running,
    tiny_config,
    train_to,
)
from tests.tasks.pixels.dot import EPISODE, FRAMES, SIZE, make_dot

EVERY = pytest.mark.parametrize("algorithm", OF_IMAGES)
SMALL: dict[str, Any] = {
    "frame_stack": FRAMES, "conv_layers": 2, "conv_filters": 4, "latent_dim": 6,
    "train_batch_size_per_learner": 8, "replay_capacity": 300,
}  # fmt: skip


def dot_config(algorithm: str = "sac-ae-hpo", env: Any = make_dot, **settings: Any) -> ActorCriticConfig:
    config = make_config(algorithm).environment(env).training(**TINY | SMALL | settings)
    return config.debugging(seed=3, log_level="ERROR", log_sys_usage=False)


@EVERY
def test_it_trains(algorithm: str) -> None:
    """All learned tensors have changed, all values are finite, and each frame is stored once."""
    with running(dot_config(algorithm)) as built:
        model = built.local_learner.trainer.model
        before = {name: value.clone() for name, value in model.named_parameters()}
        result = train_to(built, 80)
        for name, value in model.named_parameters():
            assert torch.isfinite(value).all(), name
            assert not torch.equal(value, before[name]), name
        replay = built.local_learner.replay
        assert isinstance(replay, FrameReplay)
        assert replay.total_rows == 80
        assert replay.rings["frames"].total_rows <= 80 + 80 // EPISODE + 1
    learned = result["learners"]["default_policy"]
    assert {"critic_loss", "policy_loss", "reconstruction_loss", "alpha", "q_mean"} <= learned.keys()
    assert result["evaluation"]["env_runners"]["episode_len_mean"] == EPISODE
    assert result["evaluation"]["outcome"] == {"frames": 80.0}


@pytest.mark.parametrize("algorithm", [pytest.param("sac-ae", marks=pytest.mark.exhaustive), "sac-ae-hpo"])
def test_a_resumed_run_is_the_uninterrupted_one(algorithm: str, tmp_path: Path) -> None:
    """Parameters, optimizers, frames, streams, counters and rows are equal, with two environments."""

    def config(name: str) -> Any:
        made = dot_config(algorithm, replay_capacity=100).env_runners(num_envs_per_env_runner=2)
        return made.results(results_dir=str(tmp_path / name), trial_id="t")

    with running(config("rows")) as whole:
        train_to(whole, 80)
        whole.save_to_path(tmp_path / "checkpoint")
        at_checkpoint = facts(whole)
        train_to(whole, 160)
        expected = facts(whole)
    resumed = ActorCriticAlgorithm.from_checkpoint(tmp_path / "checkpoint", config=config("other rows"))
    try:
        assert_equal(at_checkpoint, facts(resumed))
        train_to(resumed, 160)
        assert_equal(expected, facts(resumed))
    finally:
        resumed.stop()
    first, second = (without_volatile(read_rows(tmp_path / name)) for name in ("rows", "other rows"))
    assert first["env_steps"].to_pylist() == [0, 40, 80, 120, 160]
    assert second["env_steps"].to_pylist() == [120, 160]
    assert first.slice(3).equals(second)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_frames_cross_the_wire_once() -> None:
    """Two runners of two environments, whose fragments follow each other, and a remote learner."""
    config = dot_config(warmup_steps=40).learners(num_learners=1)
    config.env_runners(
        num_env_runners=2, num_envs_per_env_runner=2, rollout_fragment_length=5, max_lead_steps=0
    )
    with running(config) as built:
        train_to(built, 80)
        found = built.learner_group.foreach_learner(
            lambda learner, **_: (
                learner.core.replay.total_rows,
                learner.core.replay.rings["frames"].total_rows,
                learner_facts(learner)["rows"]["observations"],
            )
        )
    ((total, frames, observations),) = [each.get() for each in found]
    assert total == 80
    assert frames <= 80 + 4 * (80 // 4 // EPISODE + 1)
    stacks = observations.reshape(80, 2, FRAMES, -1)
    assert np.array_equal(stacks[:, 0, 1:], stacks[:, 1, :-1])  # the next observation has the newer frames
    assert len(np.unique(stacks[:, 1, -1], axis=0)) > 40


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_several_learners_share_the_frames(tmp_path: Path) -> None:
    """Each holds its shard; a checkpoint of two goes on with one."""
    config = dot_config().learners(num_learners=2).env_runners(num_env_runners=1, rollout_fragment_length=4)
    with running(config) as built:
        train_to(built, 80)
        assert built.learner_group.foreach_learner(lambda learner, **_: learner.core.replay.total_rows)
        built.save_to_path(tmp_path / "checkpoint")
    alone = dot_config().learners(num_learners=0).env_runners(num_env_runners=0)
    resumed = ActorCriticAlgorithm.from_checkpoint(tmp_path / "checkpoint", config=alone)
    try:
        assert resumed.local_learner.replay.num_rows == 80
        train_to(resumed, 120)
    finally:
        resumed.stop()


@pytest.mark.parametrize(
    "file_format", [pytest.param("torch-export", marks=pytest.mark.exhaustive), "onnx", "safetensors"]
)
def test_an_exported_policy_takes_images(file_format: str, tmp_path: Path) -> None:
    """It takes images as the environment gives them, and acts as the policy does."""
    with running(dot_config()) as built:
        train_to(built, 40)
        checkpoint = Path(built.save_to_path(tmp_path / "checkpoint"))
        env = flattened(make_dot())
        obs = torch.from_numpy(np.stack([env.reset(seed=seed)[0] for seed in range(3)]))
        expected = built.actor.act(obs)
    path, *_ = export_policy(checkpoint, file_format, tmp_path / "policy")
    images = obs.reshape(3, 3 * FRAMES, SIZE, SIZE)
    if file_format == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(path.read_bytes())
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    else:
        is_program = file_format == "torch-export"
        policy = torch.export.load(path).module() if is_program else load_policy_file(path)
        found = policy(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_images_are_refused_where_they_are_not_taken() -> None:
    with pytest.raises(UserError, match="image observations need sac-ae or sac-ae-hpo"):
        tiny_config("sac", make_dot).build_algo()
    with pytest.raises(UserError, match=r"learns from images: let it render them .*wrappers: \[pixels\]"):
        dot_config(env="Pendulum-v1").build_algo()
    with pytest.raises(SettingsError, match=r"are not frame_stack=3 square RGB frames"):
        dot_config(frame_stack=3).build_algo()
    with pytest.raises(SettingsError, match=r"sac-ae-hpo stores images as bytes.*set api_stack to 'new'"):
        dot_config().api_stack(False, False).build_algo()


def test_images_too_small_for_the_convolutions_are_refused() -> None:
    with pytest.raises(SettingsError, match="21 x 21 pixels are too small for conv_layers=6"):
        dot_config(conv_layers=6).build_algo()

"""Test normalisation in the model: VecNormalize's formulas, checkpoints, evaluations, exports and several learners."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_hpo.errors import CheckpointError, SettingsError
from rllib_hpo.experiments.storage.export import export_policy, load_deployed
from rllib_hpo.replay.normalization import ObservationNormalizer
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.converting import convert
from rllib_hpo.tasks import ActionScaling
from tests.reference.vec_normalize import VecNormalize
from tests.rllib.old_stack.test_policy_stack import old_config
from tests.rllib.tiny import (
    EVERY_ALGORITHM_IN_TIME,
    assert_equal,
    facts,
    learner_facts,
    loaded,
    running,
    tiny_config,
    train_to,
)

BOTH = {"normalize_observations": True, "normalize_rewards": True}
NUM_ENVS = 2
EPISODE = 25
STEPS = 80


class Trained(NamedTuple):
    """A finished run and a checkpoint half-way."""

    built: ActorCriticAlgorithm
    checkpoint: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train SAC-HPO in two environments whose observations and rewards are normalised."""
    config = tiny_config("sac-hpo", leapfrog_steps=1, gamma=0.9, **BOTH)
    with running(config.env_runners(num_envs_per_env_runner=NUM_ENVS)) as built:
        train_to(built, STEPS // 2)
        checkpoint = Path(built.save_to_path(tmp_path_factory.mktemp("checkpoint") / "c"))
        train_to(built, STEPS)
        yield Trained(built, checkpoint)


def normalizer_of(built: ActorCriticAlgorithm) -> ObservationNormalizer:
    normalizer = built.actor.observation_normalizer
    assert normalizer is not None
    return normalizer


def test_statistics_and_values_are_those_of_vec_normalize(trained: Trained) -> None:
    core = trained.built.local_learner
    rows = np.concatenate(core.replay.read(0, STEPS)).astype(np.float64)
    batch = core.replay.layout.unpack(torch.from_numpy(rows))
    obs = batch.obs.numpy().reshape(-1, NUM_ENVS, 3)  # environments act in turn
    reward = batch.reward.numpy().reshape(-1, NUM_ENVS)
    reference = VecNormalize(NUM_ENVS, 3, gamma=0.9)
    reference.reset(obs[0])
    for t in range(len(obs)):
        done = np.full(NUM_ENVS, (t + 1) % EPISODE == 0)
        if t + 1 < len(obs):
            reference.step(obs[t + 1], reward[t], done)
        else:  # the observation after it was not acted on yet
            reference._returns = reference._returns * 0.9 + reward[t]
            reference.ret_rms.update(reference._returns)
    normalizer, scaler = normalizer_of(trained.built), core.trainer.model.reward_scaler
    for mine, theirs in ((normalizer, reference.obs_rms), (scaler, reference.ret_rms)):
        for name in ("mean", "var", "count"):
            np.testing.assert_allclose(
                getattr(mine, name).numpy().squeeze(), getattr(theirs, name), rtol=1e-6
            )
    normalised = core.trainer.method.normalized(core.trainer.model, batch)
    for name in ("obs", "next_obs"):
        expected = reference.normalize_obs(getattr(batch, name).numpy())
        np.testing.assert_allclose(getattr(normalised, name), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(normalised.reward, reference.normalize_reward(batch.reward.numpy()), rtol=1e-6)


def test_a_resumed_run_is_the_same(trained: Trained) -> None:
    with loaded(trained.checkpoint) as resumed:
        train_to(resumed, STEPS)
        assert_equal(facts(resumed), facts(trained.built))


def test_evaluations_use_frozen_statistics_and_the_environments_rewards(trained: Trained) -> None:
    before = {name: value.clone() for name, value in trained.built.actor.state_dict().items()}
    result = trained.built.evaluate()
    assert_equal(dict(trained.built.actor.state_dict()), before)
    assert result["env_runners"]["episode_return_mean"] < -20  # of 25 steps that cost up to 16 each


@pytest.mark.parametrize("file_format", ["torch-export", "onnx"])
def test_exported_policies_normalise(trained: Trained, file_format: str, tmp_path: Path) -> None:
    obs = torch.randn((6, 3), generator=torch.Generator().manual_seed(0))
    policy = load_deployed(trained.checkpoint)
    actor = policy.actor
    expected = ActionScaling.of(gym.make("Pendulum-v1").action_space).to_env(actor.act(obs))
    assert not np.allclose(expected, 2 * actor(obs).numpy(), atol=1e-3)  # without normalisation
    torch.testing.assert_close(policy(obs), torch.from_numpy(expected))
    export_policy(trained.checkpoint, file_format, path := tmp_path / "policy")
    if file_format == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
        (action,) = session.run(["action"], {"obs": obs.numpy()})
    else:
        action = torch.export.load(path).module()(obs).numpy()
    np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-5)


@EVERY_ALGORITHM_IN_TIME
def test_every_algorithm_learns_from_normalised_transitions(algorithm: str) -> None:
    with running(tiny_config(algorithm, "MountainCarContinuous-v0", **BOTH)) as built:
        train_to(built, 40)
        assert float(normalizer_of(built).count) == 40 + 1e-4


def test_statistics_move_between_stacks(trained: Trained, tmp_path: Path) -> None:
    config = tiny_config("sac", normalize_observations=True)
    with running(config) as built:
        train_to(built, 40)
        checkpoint = Path(built.save_to_path(tmp_path / "new"))
    convert(checkpoint, tmp_path / "old")
    obs = torch.ones((1, 3))
    assert torch.equal(load_deployed(tmp_path / "old")(obs), load_deployed(checkpoint)(obs))
    with running(old_config("sac", normalize_observations=True)) as old:
        train_to(old, 40)
        assert float(normalizer_of(old).count) == 40 + 1e-4


def test_networks_of_normalised_observations_need_the_statistics(trained: Trained) -> None:
    config = tiny_config("sac-hpo", leapfrog_steps=1).checkpointing(initialize_from=str(trained.checkpoint))
    with running(config) as built, pytest.raises(CheckpointError, match="set normalize_observations=true"):
        built.train()
    config = config.copy(copy_frozen=False).training(**BOTH)
    with running(config) as built:
        assert float(normalizer_of(built).count) == STEPS // 2 + 1e-4
        assert float(built.local_learner.trainer.model.reward_scaler.count) == 1e-4


def test_what_cannot_be_combined_is_refused() -> None:
    config = tiny_config("sac", normalize_observations=True)
    config.environment(env_config={"wrappers": ["normalize-observation"]})
    with pytest.raises(
        SettingsError, match="what the wrapper 'normalize-observation' has normalised already"
    ):
        config.build_algo()
    with pytest.raises(SettingsError, match="normalize_rewards=true needs the discounted returns"):
        old_config("sac", normalize_rewards=True).build_algo()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_runners_and_learners_share_the_statistics(tmp_path: Path) -> None:
    """Two runners and two learners hold the statistics of all rows, also in a run that is resumed."""
    config = tiny_config("sac", replay_capacity=1000, **BOTH)
    config.env_runners(num_env_runners=2, max_lead_steps=0).learners(num_learners=2)

    def statistics(built: ActorCriticAlgorithm) -> list[dict[str, Any]]:
        found = built.learner_group.foreach_learner(lambda learner, **_: learner_facts(learner))
        return [one.get()["parameters"] for one in found]

    with running(config) as built:
        train_to(built, 40)
        checkpoint = built.save_to_path(tmp_path / "c")
        train_to(built, 80)
        first, second = statistics(built)
        assert float(first["observation_normalizer.count"]) == 80 + 1e-4
        assert_equal(first, second)
    with loaded(checkpoint) as resumed:
        train_to(resumed, 80)
        assert_equal(statistics(resumed)[0], first)

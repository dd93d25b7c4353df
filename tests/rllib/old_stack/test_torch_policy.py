"""Test the TorchPolicy: the engine's update and actions behind RLlib's Policy API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.policy.policy import Policy
from ray.rllib.policy.sample_batch import SampleBatch
from ray.rllib.policy.torch_policy_v2 import TorchPolicyV2
from ray.rllib.utils.metrics.learner_info import LEARNER_STATS_KEY

from rllib_hpo.errors import NonFiniteError, SettingsError
from rllib_hpo.rllib.algorithms import SACHPOConfig, make_config
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.rllib.old_stack.policy import (
    POLICIES,
    ActorCriticTorchPolicy,
    DDPGTorchPolicy,
    LangevinPOTorchPolicy,
    MCMCPOTorchPolicy,
    SACGaussianTorchPolicy,
    SACHPOTorchPolicy,
    SACNFTorchPolicy,
    SoftQTorchPolicy,
    TD3TorchPolicy,
)
from rllib_hpo.settings import ActorCriticSettings
from tests.learning.options import SETTINGS
from tests.rllib.tiny import EVERY_ALGORITHM_OF_BOTH_STACKS, TINY, assert_equal, running, tiny_config, tuned

OBS, ACT, ROWS = 11, 3, 16
OBS_SPACE = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float64)
ACTION_SPACE = gym.spaces.Box(-2.0, 3.0, (ACT,), np.float32)


def make_policy(algorithm: str = "sac-hpo", worker_index: int = 0, **settings: Any) -> ActorCriticTorchPolicy:
    """Make a tiny policy of Hopper's dimensions."""
    config = make_config(algorithm).training(**TINY | settings).debugging(seed=3)
    config.worker_index = worker_index
    return POLICIES.get(algorithm, ActorCriticTorchPolicy)(OBS_SPACE, ACTION_SPACE, config)


def columns(rows: int = ROWS, seed: int = 0) -> dict[str, np.ndarray]:
    """Make transitions as RLlib's samplers collect them: float64 observations, booleans, and float32 for the rest."""
    rng = np.random.default_rng(seed)
    return {
        SampleBatch.OBS: rng.normal(size=(rows, OBS)),
        SampleBatch.ACTIONS: rng.uniform(-1, 1, (rows, ACT)).astype(np.float32),
        SampleBatch.REWARDS: rng.normal(size=rows).astype(np.float32),
        SampleBatch.TERMINATEDS: np.arange(rows) % 4 == 0,
        SampleBatch.TRUNCATEDS: np.arange(rows) % 5 == 0,
        SampleBatch.NEXT_OBS: rng.normal(size=(rows, OBS)),
    }


OBSERVATIONS = columns(seed=9)[SampleBatch.OBS]


# --- what it is ---


def test_the_classes_are_rllibs() -> None:
    for algorithm, policy in {
        "sac": SACGaussianTorchPolicy,
        "sac-nf": SACNFTorchPolicy,
        "sac-hpo": SACHPOTorchPolicy,
        "td3": TD3TorchPolicy,
        "ddpg": DDPGTorchPolicy,
        "langevin-po": LangevinPOTorchPolicy,
        "mcmc-po": MCMCPOTorchPolicy,
        "soft-q": SoftQTorchPolicy,
    }.items():
        config = make_config(algorithm).api_stack(
            enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False
        )
        assert config.algo_class.get_default_policy_class(config) is policy
        assert issubclass(policy, TorchPolicyV2)


def test_a_dict_of_what_differs_is_config_enough() -> None:
    policy = SACHPOTorchPolicy(OBS_SPACE, ACTION_SPACE, {"hidden_units": 8, "leapfrog_steps": 3, "seed": 1})
    assert policy.settings == SACHPOConfig().training(hidden_units=8, leapfrog_steps=3).settings()
    with pytest.raises(SettingsError, match="leapfrog_steps=-1"):
        SACHPOTorchPolicy(OBS_SPACE, ACTION_SPACE, {"leapfrog_steps": -1})


def test_without_a_seed_two_policies_differ() -> None:
    first, second = (SACGaussianTorchPolicy(OBS_SPACE, ACTION_SPACE, {"hidden_units": 8}) for _ in range(2))
    assert not np.array_equal(first.compute_actions(OBSERVATIONS)[0], second.compute_actions(OBSERVATIONS)[0])


# --- its update is the engine's ---


def engine_of(settings: ActorCriticSettings, algorithm: str) -> ActorCriticConfig:
    """Make the new stack's engine with the same hyperparameters."""
    config = tiny_config(algorithm, "Hopper-v4")
    return config.training(**settings.model_dump() | {"train_batch_size_per_learner": ROWS})


@pytest.mark.parametrize("name", [name for name in SETTINGS if not SETTINGS[name].normalize_rewards])
def test_an_update_is_that_of_the_new_stack(name: str) -> None:
    """Equal weights, batches and noise give equal parameters, targets, temperature, optimizers and reports."""
    algorithm, settings = name.split(",")[0], SETTINGS[name]
    config = engine_of(settings, algorithm)
    policy = POLICIES[algorithm](OBS_SPACE, ACTION_SPACE, config)
    with running(config) as engine:
        learner = engine.local_learner
        rows = np.empty((ROWS, learner.replay.layout.width), np.float32)
        for seed in range(3):
            batch = columns(seed=seed)
            learner.replay.layout.pack(
                *(batch[name] for name in ("obs", "actions", "rewards", "terminateds", "new_obs")), out=rows
            )
            theirs = learner.trainer.learn(learner.replay.layout.unpack(torch.from_numpy(rows)))
            mine = policy.learn_on_batch(SampleBatch(batch))[LEARNER_STATS_KEY]
            assert mine == pytest.approx({k: v.item() for k, v in theirs.items()}, abs=1e-6)
        weights = policy.get_weights()
        for name, value in learner.trainer.model.state_dict().items():
            np.testing.assert_allclose(weights[f"model.{name}"], value, rtol=0, atol=1e-6, err_msg=name)


@EVERY_ALGORITHM_OF_BOTH_STACKS
def test_a_loaded_batch_teaches_the_same(algorithm: str) -> None:
    direct, loaded = make_policy(algorithm), make_policy(algorithm)
    batch = columns(rows=2 * ROWS)
    assert loaded.load_batch_into_buffer(SampleBatch(batch)) == 2 * ROWS
    assert loaded.get_num_samples_loaded_into_buffer() == 2 * ROWS
    for start in (0, ROWS):
        direct.learn_on_batch(SampleBatch({k: v[start : start + ROWS] for k, v in batch.items()}))
        loaded.learn_on_loaded_batch(offset=start)
    assert_equal(direct.get_weights(), loaded.get_weights())
    assert not np.array_equal(
        direct.get_weights()["model.critics.weights.0"],
        make_policy(algorithm).get_weights()["model.critics.weights.0"],
    )


def test_nothing_loaded_is_said() -> None:
    with pytest.raises(ValueError, match="load_batch_into_buffer"):
        make_policy().learn_on_loaded_batch()


def test_gradients_alone_are_not_to_be_had() -> None:
    with pytest.raises(NotImplementedError, match="learn_on_batch"):
        make_policy().compute_gradients(SampleBatch(columns()))


def test_a_loss_that_is_not_finite_names_the_update() -> None:
    policy = make_policy()
    policy.learn_on_batch(SampleBatch(columns()))
    batch = columns()
    batch[SampleBatch.REWARDS][3] = np.nan
    with pytest.raises(NonFiniteError, match="The critic loss is nan at update 2"):
        policy.learn_on_batch(SampleBatch(batch))


def test_callbacks_see_each_batch() -> None:
    class Watching(RLlibCallback):
        """Record what RLlib passes."""

        def on_learn_on_batch(
            self, *, policy: Any, train_batch: Any, result: dict[str, Any], **_: Any
        ) -> None:
            result["rows"] = train_batch.count

    policy = make_policy()
    policy.callbacks = Watching()
    fetched = policy.learn_on_batch(SampleBatch(columns()))
    assert fetched["custom_metrics"] == {"rows": ROWS}
    assert (fetched["num_agent_steps_trained"], fetched["num_grad_updates_lifetime"]) == (ROWS, 1)


# --- how it acts ---


@EVERY_ALGORITHM_OF_BOTH_STACKS
def test_actions_are_the_engines(algorithm: str) -> None:
    """Noise-free actions are the actor's; exploring ones are not, and differ between calls. All are in [-1, 1]."""
    policy = make_policy(algorithm, **({"momentum_std_explore": 3.0} if algorithm == "sac-hpo" else {}))
    obs = torch.from_numpy(OBSERVATIONS).float()
    actions, state, extra = policy.compute_actions(OBSERVATIONS, explore=False)
    assert torch.equal(torch.from_numpy(actions), policy.model.model.act(obs))
    assert (state, set(extra)) == ([], set())
    explored = [policy.compute_actions(OBSERVATIONS, explore=True)[0] for _ in range(2)]
    assert not np.array_equal(explored[0], explored[1])
    assert not np.isclose(explored[0], actions).all(axis=1).any()
    assert np.abs(np.stack([actions, *explored])).max() <= 1
    again, _, _ = policy.compute_actions(OBSERVATIONS, explore=False)
    assert np.array_equal(again, actions)


@EVERY_ALGORITHM_OF_BOTH_STACKS
def test_a_single_action_is_a_row_of_many(algorithm: str) -> None:
    policy = make_policy(algorithm)
    single, _, _ = policy.compute_single_action(OBSERVATIONS[0], explore=False)
    assert single.shape == (ACT,)
    np.testing.assert_allclose(single, policy.compute_actions(OBSERVATIONS, explore=False)[0][0], atol=1e-6)
    assert not np.allclose(policy.compute_single_action(OBSERVATIONS[0], explore=True)[0], single)


def test_momentum_noise_is_what_differs_without_gaussian_noise() -> None:
    """With a deterministic base policy, exploration differs by the momentum alone."""
    actions = {}
    for momentum in (True, False):
        policy = make_policy(momentum_noise=momentum, momentum_std_explore=2.0, step_size=0.2)
        with torch.no_grad():
            policy.model.model.sampler.policy.network[-1].weight[ACT:].zero_()
            policy.model.model.sampler.policy.network[-1].bias[ACT:].fill_(-20.0)
        noisy, _, _ = policy.compute_actions(OBSERVATIONS, explore=True)
        silent, _, _ = policy.compute_actions(OBSERVATIONS, explore=False)
        actions[momentum] = np.abs(noisy - silent).max()
    assert actions[False] < 1e-6 < 0.05 < actions[True]


def test_random_actions_are_uniform() -> None:
    policy = make_policy()
    policy.random_actions = True
    actions, _, _ = policy.compute_actions(np.zeros((4000, OBS)), explore=True)
    assert np.abs(actions).max() <= 1
    quantiles = np.quantile(actions, [0.1, 0.5, 0.9], axis=0)
    np.testing.assert_allclose(quantiles, np.array([[-0.8], [0.0], [0.8]]) + np.zeros(ACT), atol=0.06)
    noise_free, _, _ = policy.compute_actions(OBSERVATIONS, explore=False)
    assert torch.equal(
        torch.from_numpy(noise_free), policy.model.model.act(torch.from_numpy(OBSERVATIONS).float())
    )


# --- its state ---


@EVERY_ALGORITHM_OF_BOTH_STACKS
def test_a_restored_policy_goes_on_as_if_nothing_had_happened(algorithm: str) -> None:
    """Weights, targets, temperature, optimizers, counters, and the noise of learning and exploration are restored."""
    settings = tuned(algorithm)
    original = make_policy(algorithm, **settings)
    for seed in range(3):
        original.learn_on_batch(SampleBatch(columns(seed=seed)))
        original.compute_actions(OBSERVATIONS, explore=True)
    other = make_policy(algorithm, **settings)
    other.set_state(original.get_state())
    for policy in (original, other):
        policy.learn_on_batch(SampleBatch(columns(seed=5)))
    assert_equal(original.get_weights(), other.get_weights())
    assert_equal(original.get_state()["_optimizer_variables"], other.get_state()["_optimizer_variables"])
    assert original.num_grad_updates == other.num_grad_updates == 4
    explored = [policy.compute_actions(OBSERVATIONS, explore=True)[0] for policy in (original, other)]
    assert np.array_equal(*explored)


def test_weights_are_copies() -> None:
    """RLlib's own are views of parameters, which training would change for their holder."""
    policy = make_policy()
    before = policy.get_weights()
    kept = {name: value.copy() for name, value in before.items()}
    policy.learn_on_batch(SampleBatch(columns()))
    assert_equal(before, kept)
    assert not np.array_equal(
        policy.get_weights()["model.critics.weights.0"], kept["model.critics.weights.0"]
    )


def test_weights_carry_targets_and_temperature() -> None:
    learner, worker = make_policy(alpha="auto"), make_policy(alpha="auto", worker_index=1)
    for seed in range(3):
        learner.learn_on_batch(SampleBatch(columns(seed=seed)))
    worker.set_weights(learner.get_weights())
    assert_equal(worker.get_weights(), learner.get_weights())
    names = set(worker.get_weights())
    assert {"model.target_critics.weights.0", "model.log_alpha"} <= names
    acted = [policy.compute_actions(OBSERVATIONS, explore=False)[0] for policy in (learner, worker)]
    assert np.array_equal(*acted)


def test_two_workers_explore_differently_whatever_state_they_are_given() -> None:
    first, second = make_policy(worker_index=1), make_policy(worker_index=2)
    drawn = [policy.compute_actions(OBSERVATIONS, explore=True)[0] for policy in (first, second)]
    assert not np.array_equal(*drawn)
    learner = make_policy()
    learner.global_timestep = 500
    for policy in (first, second):
        policy.set_state(learner.get_state())
    later = [policy.compute_actions(OBSERVATIONS, explore=True)[0] for policy in (first, second)]
    assert not np.array_equal(*later)
    assert not np.array_equal(later[0], drawn[0])


@EVERY_ALGORITHM_OF_BOTH_STACKS
def test_a_policy_can_be_saved_and_loaded_alone(algorithm: str, tmp_path: Path) -> None:
    policy = make_policy(algorithm)
    policy.learn_on_batch(SampleBatch(columns()))
    policy.export_checkpoint(str(tmp_path / "policy"))
    restored = Policy.from_checkpoint(str(tmp_path / "policy"))
    assert type(restored) is type(policy)
    assert_equal(restored.get_weights(), policy.get_weights())
    actions = [each.compute_actions(OBSERVATIONS, explore=False)[0] for each in (restored, policy)]
    assert np.array_equal(*actions)
    restored.learn_on_batch(SampleBatch(columns()))

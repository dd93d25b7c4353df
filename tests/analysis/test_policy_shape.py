"""Test actions before and after the leapfrog, and the contours below them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from rllib_hpo.algorithms.registry import find_settings, make_method
from rllib_hpo.algorithms.sac import SamplerActor
from rllib_hpo.analysis.policy_shape import policy_shape, rollout_state, write_policy_shape
from rllib_hpo.deployment import DeployedPolicy, PolicyMetadata, write_policy
from rllib_hpo.deployment.metadata import BoxMetadata
from rllib_hpo.errors import SettingsError
from rllib_hpo.tasks import make_env
from tests.analysis.test_report import cli


def deployed(algorithm: str = "sac-hpo", **settings: object) -> DeployedPolicy:
    """Make an untrained policy for Hopper."""
    env = make_env("Hopper-v4")
    parsed = find_settings(algorithm)(hidden_units=32, **settings)
    metadata = PolicyMetadata(
        algorithm=algorithm,
        task="hopper",
        env="Hopper-v4",
        env_config={},
        env_steps=7,
        observation_space=BoxMetadata.of(env.observation_space),
        action_space=BoxMetadata.of(env.action_space),
        settings=parsed.model_dump(),
        versions={},
    )
    env.close()
    return DeployedPolicy(SamplerActor(11, 3, parsed, seed=0), metadata)


def state() -> np.ndarray:
    return np.random.default_rng(0).normal(size=11).astype(np.float32)


def test_after_is_the_policy_and_before_where_its_chains_began() -> None:
    policy = deployed(step_size=0.3, leapfrog_steps=3, momentum_std_explore=1.0)
    shape = policy_shape(policy, state(), (0, 2), num_actions=500, resolution=11)
    assert shape.before.shape == shape.after.shape == (500, 3)
    assert (np.abs(shape.before) < 1).all()
    assert (np.abs(shape.after) <= 1).all()
    assert np.linalg.norm(shape.after - shape.before, axis=1).mean() > 0.1
    still = policy_shape(
        deployed(momentum_noise=False, force_gate="none", step_size=1e-6), state(), num_actions=500
    )
    np.testing.assert_allclose(still.before, still.after, atol=1e-4)


def test_contours_are_the_target_critics_minimum() -> None:
    policy, obs = deployed(), state()
    shape = policy_shape(policy, obs, (2, 0), num_actions=10, resolution=5)
    for row, column in ((0, 0), (1, 4), (3, 2)):
        action = shape.noise_free.copy()
        action[2], action[0] = shape.axis[column], shape.axis[row]
        inputs = (torch.from_numpy(obs)[None], torch.from_numpy(action)[None])
        assert shape.q[row, column] == pytest.approx(
            policy.actor.target_critics.minimum(*inputs).item(), abs=1e-6
        )


def test_the_same_seed_draws_the_same_actions() -> None:
    one, other = (policy_shape(deployed(), state(), num_actions=20, resolution=3) for _ in range(2))
    np.testing.assert_array_equal(one.after, other.after)
    another = policy_shape(deployed(), state(), num_actions=20, resolution=3, seed=1)
    assert not np.array_equal(one.after, another.after)


def test_a_gaussian_has_no_leapfrog() -> None:
    shape = policy_shape(deployed("sac"), state(), num_actions=20, resolution=3)
    np.testing.assert_array_equal(shape.before, shape.after)


def test_a_state_is_of_the_policys_own_episode() -> None:
    policy = deployed()
    env = make_env("Hopper-v4")
    np.testing.assert_array_equal(rollout_state(policy, 3, 0), env.reset(seed=3)[0].astype(np.float32))
    env.close()
    assert not np.array_equal(rollout_state(policy, 3, 1), rollout_state(policy, 3, 0))


def test_policies_of_images_are_refused() -> None:
    policy = deployed()
    policy.actor = make_method(find_settings("sac-ae")()).make_actor(9 * 15**2, 3, seed=0)
    with pytest.raises(SettingsError, match=r"acts from images: give policies .* with vectors"):
        policy_shape(policy, state(), (0, 1))


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--dims 3 must be from 0 to 2"):
        policy_shape(deployed(), state(), (0, 3))
    with pytest.raises(SettingsError, match=r"must end in \.png"):
        write_policy_shape([deployed()], tmp_path / "shape.gif")
    elsewhere = deployed()
    elsewhere.metadata = elsewhere.metadata.model_copy(update={"env": "Hopper-v5"})
    with pytest.raises(
        SettingsError, match="Policies of Hopper-v5 and Hopper-v4 cannot be drawn side by side"
    ):
        write_policy_shape([elsewhere, deployed()], tmp_path / "shape.png")


def test_q_of_the_draws_is_that_of_whole_actions() -> None:
    policy, obs = deployed(step_size=0.3), state()
    shape = policy_shape(policy, obs, num_actions=50, resolution=3)
    states = torch.from_numpy(obs)[None].expand(50, -1)
    for actions, q in ((shape.before, shape.q_before), (shape.after, shape.q_after)):
        expected = policy.actor.target_critics.minimum(states, torch.from_numpy(actions))
        np.testing.assert_allclose(q, expected.numpy(), atol=1e-6)


def test_the_gradient_alone_raises_q() -> None:
    """A chain without momentum and gate raises Q in every draw off the border; momentum spreads the draws."""
    climbing = deployed(momentum_noise=False, force_gate="none", step_size=0.05, leapfrog_steps=2)
    numbers = policy_shape(climbing, state(), num_actions=300, resolution=3).numbers()
    assert numbers.share_rising.estimate > 0.95
    wide = deployed(momentum_std_explore=1.5, step_size=0.3, leapfrog_steps=3)
    assert policy_shape(wide, state(), num_actions=300, resolution=3).numbers().variance_ratio.low > 1
    gaussian = policy_shape(deployed("sac"), state(), num_actions=300, resolution=3).numbers()
    assert gaussian.share_rising == (0, 0, 0)
    assert gaussian.variance_ratio == (1, 1, 1)


def test_the_command_draws_an_exported_policy(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    write_policy(deployed(), "safetensors", tmp_path / "policy.safetensors")
    out = tmp_path / "shape.png"
    words = ("policy-shape", str(tmp_path / "policy.safetensors"), "--out", str(out), "--actions", "100")
    printed = cli(*words, "--dims", "0,1")
    assert str(out) in printed
    assert "sac-hpo" in printed
    assert imread(out).std() > 0.05
    assert "--dims 0 must be two numbers" in cli(*words, "--dims", "0", code=2)


def test_the_command_draws_policies_side_by_side(tmp_path: Path) -> None:
    """There is one column per policy, in the given order, with the numbers in a table and beside the figure."""
    pytest.importorskip("safetensors")
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for number, file in enumerate(files):
        policy = deployed()
        policy.metadata = policy.metadata.model_copy(update={"env_steps": 1_000 * (1 + number // 2)})
        write_policy(policy, "safetensors", file)
    several = tmp_path / "several.png"
    cli("policy-shape", *map(str, files), "--out", str(several), "--actions", "60")
    height, width, _ = imread(several).shape
    assert width > height
    lines = (tmp_path / "several.csv").read_text().splitlines()
    assert lines[0] == "policy,Q rises,variance ratio,non-Gaussianity before,non-Gaussianity after"
    assert [line.split('"')[1] for line in lines[1:]] == [
        "sac-hpo after 1,000 steps (1)",
        "sac-hpo after 1,000 steps (2)",
        "sac-hpo after 2,000 steps",
    ]

"""Test runs under a cost limit: what is stored, updated, recorded, resumed, exported and rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rllib_hpo.algorithms.sac_lagrangian import ConstrainedModel
from rllib_hpo.analysis.policy_shape import policy_shape, rollout_state
from rllib_hpo.deployment import DeployedPolicy, PolicyMetadata, load_policy_file, write_policy
from rllib_hpo.errors import SettingsError
from rllib_hpo.experiments.config.run_config import resolve
from rllib_hpo.experiments.runs.files import RunFiles, start_run
from rllib_hpo.experiments.runs.train import TrainingRun
from rllib_hpo.experiments.sweeps.dashboard import SAFETY
from rllib_hpo.experiments.tracking.training_metrics import flat_metrics
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from rllib_hpo.results import COST_COLUMNS, read_rows
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.rllib.trained_policy import newest_policy
from tests.algorithms.toy import CostlyEnv
from tests.rllib.tiny import assert_equal, facts, loaded, running, tiny_config, train_to

STEPS, NUM_ENVS = 80, 3
COSTLY = {"cost": {"kind": "info"}, "cost_limit": 3.0, "lagrange_every": 10}
"""Settings for `CostlyEnv`, whose episodes have 8 steps, of which the odd ones cost 1."""
DISCOUNTED = sum(0.99**t for t in (0, 2, 4, 6))


SHIELD_STEPS = 2
"""Few: exported, each is a part of the graph of its own."""


def safe_config(algorithm: str = "sac-hpo-lagrangian", **settings: Any) -> ActorCriticConfig:
    config = tiny_config(algorithm, CostlyEnv, alpha="auto", **COSTLY | settings)
    return config.env_runners(num_envs_per_env_runner=NUM_ENVS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train a shielded run in three environments; return it, its checkpoint half-way, its last result and its rows."""
    rows = tmp_path_factory.mktemp("rows")
    config = safe_config(shield_steps=SHIELD_STEPS, leapfrog_steps=1).results(results_dir=str(rows))
    with running(config) as built:
        train_to(built, STEPS // 2)
        checkpoint = built.save_to_path(tmp_path_factory.mktemp("checkpoint"))
        result = train_to(built, STEPS)
        yield built, checkpoint, result, read_rows(rows).to_pylist()


def model_of(built: ActorCriticAlgorithm) -> ConstrainedModel:
    model: ConstrainedModel = built.local_learner.trainer.model
    return model


def test_costs_are_stored_and_the_multiplier_follows_them(trained: Any) -> None:
    """Episodes cost 3.9 with limit 3: six changes of at most 0.1 x 0.9, none before an episode has ended."""
    built = trained[0]
    assert [column.name for column in built.local_learner.replay.layout.columns] == ["cost"]
    model = model_of(built)
    assert model.mean_of_latest[0].item() == pytest.approx(DISCOUNTED, rel=1e-5)
    moves = model.multiplier.item() / (0.1 * (DISCOUNTED - 3))
    assert moves == pytest.approx(round(moves), abs=1e-3)
    assert 3 <= round(moves) <= 6


def test_rows_and_results_say_what_the_shield_and_the_multiplier_do(trained: Any) -> None:
    _, _, result, rows = trained
    first, last = rows[0], rows[-1]
    assert first["diagnostics"] == []
    assert (last["cost_mean"], last["violation_share"], last["cost_limit"]) == (4.0, 0.5, 3.0)
    diagnostics = dict(last["diagnostics"])
    for name in ("lambda", "q_cost_mean", "q_cost_start", "cost_estimate", "train_cost_total"):
        assert name in diagnostics
    assert 0 <= diagnostics["shield_accept"] <= 1
    assert 1 <= diagnostics["shield_steps_mean"] <= SHIELD_STEPS
    assert diagnostics["cost_discounted_latest"] == pytest.approx(DISCOUNTED, rel=1e-5)
    learned = result["learners"]["default_policy"]
    assert {"cost_loss", "lambda", "q_cost_mean", "shield_accept"} <= learned.keys()


def test_a_resumed_run_goes_on_bitwise(trained: Any) -> None:
    """The last episodes, the multiplier, the first observations and the shield's stream are restored."""
    built, checkpoint, *_ = trained
    with loaded(checkpoint) as resumed:
        train_to(resumed, STEPS)
        assert_equal(facts(resumed), facts(built))


def test_a_run_says_once_that_its_shield_hardly_chooses(tmp_path: Path) -> None:
    """The event log holds it once, with the step; under so high a limit all actions pass."""
    tiny = {
        "hidden_units": 8,
        "train_batch_size_per_learner": 8,
        "warmup_steps": 20,
        "diagnostics_interval": 5,
    }
    tiny |= {"evaluation_every": 40, "evaluation_episodes": 1, "checkpoint_every": 120, "steps": 120}
    tiny |= {"env_config": {"max_episode_steps": 10}, "cost": {"kind": "torque"}, "cost_limit": 1e6}
    config = resolve({"algorithm": "sac-hpo-lagrangian", "task": "Pendulum-v1", **tiny})
    with TrainingRun(config, RunFiles(tmp_path / "run"), wandb=WandbOptions("disabled")) as training:
        while not training.is_complete:
            metrics = flat_metrics(training.iterate())
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (warning,) = [event for event in events if event["event"] == "warning"]
    assert warning["env_steps"] in (40, 80, 120)
    assert warning["text"].startswith("The shield found a safe action in 100 % of the last episodes' steps")
    assert {f"learner/{name}" for name in SAFETY} <= metrics.keys()
    assert {"train/cost_mean", "train/cost_discounted_mean", "train/cost_total"} <= metrics.keys()
    assert {f"evaluation/{name}" for name in COST_COLUMNS} <= metrics.keys()


@pytest.mark.parametrize(
    "file_format", ["safetensors", pytest.param("torch-export", marks=pytest.mark.slow), "onnx"]
)
def test_exported_policies_keep_the_shield(trained: Any, file_format: str, tmp_path: Path) -> None:
    """They take the episode's first observation; another one changes the action where the test binds."""
    policy = newest_policy(trained[0])
    policy.actor.target_cost_critics.weights[-1].data.mul_(100)
    metadata = PolicyMetadata.of_manifest(policy.manifest, policy.observation_space, policy.action_space)
    deployed = DeployedPolicy(policy.actor, metadata)
    assert deployed.memory == ["first_obs"]
    write_policy(deployed, file_format, tmp_path / "policy")
    obs, first = 2 * torch.randn(2, 64, 2, generator=torch.Generator().manual_seed(0))

    def acted(start: torch.Tensor) -> torch.Tensor:
        if file_format == "safetensors":
            action, remembered = load_policy_file(tmp_path / "policy")(obs, start)
        elif file_format == "torch-export":
            action, remembered = torch.export.load(tmp_path / "policy").module()(obs, start)
        else:
            session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "policy")
            found = session.run(None, {"obs": obs.numpy(), "first_obs": start.numpy()})
            action, remembered = map(torch.from_numpy, found)
        torch.testing.assert_close(remembered, start)
        return action

    expected = policy.actor.act(obs, memory={"first_obs": first})
    # A rounding of Q_C may decide whether an action passes, so a few may differ by a step.
    far = (acted(first) - expected).abs().amax(-1) > 1e-4
    assert far.float().mean() <= 0.05
    other = policy.actor.act(obs, memory={"first_obs": first.flip(0)})
    assert not torch.equal(expected, other)
    policy.actor.target_cost_critics.weights[-1].data.div_(100)


def test_a_shielded_policy_has_a_shape() -> None:
    """The shield acts on the way to the shown state."""
    config = tiny_config("sac-hpo-lagrangian", cost={"kind": "torque"}, cost_limit=0.0)
    with running(config) as built:
        policy = newest_policy(built)
        metadata = PolicyMetadata.of_manifest(policy.manifest, policy.observation_space, policy.action_space)
        deployed = DeployedPolicy(policy.actor, metadata)
    state = rollout_state(deployed, seed=0, num_steps=3)
    shape = policy_shape(deployed, state, (0, 0), num_actions=8, resolution=5)
    assert shape.after.shape == (8, 1)


@pytest.mark.parametrize("algorithm", ["sac-lagrangian", "sac-hpo-lagrangian"])
def test_the_old_stack_says_what_it_lacks(algorithm: str) -> None:
    config = safe_config(algorithm).api_stack(False, False).env_runners(num_envs_per_env_runner=1)
    with pytest.raises(SettingsError, match=rf"algorithm='{algorithm}' .* needs the column 'cost'"):
        config.build_algo()


@pytest.mark.parametrize("algorithm", ["sac-lagrangian", "sac-hpo-lagrangian"])
def test_a_task_without_a_cost_is_refused_before_anything_starts(algorithm: str, tmp_path: Path) -> None:
    config = resolve({"algorithm": algorithm, "task": "Pendulum-v1", "steps": 2000, "warmup_steps": 100})
    with pytest.raises(SettingsError, match="cost=None: a safe algorithm needs a cost"):
        start_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_step_that_costs_more_than_is_possible_is_named() -> None:
    """Two steps of a repeated action cost up to 2, while the critic's targets are clipped at 1."""
    config = tiny_config(
        "sac-lagrangian", "HalfCheetah-v4", cost={"kind": "speed", "limit": 0.0}, cost_limit=5.0
    )
    config.environment(env_config={"max_episode_steps": 25, "wrappers": ["action-repeat"]})
    with (
        running(config) as built,
        pytest.raises(SettingsError, match="cost_max=1 is less than the cost 2 of a step of HalfCheetah-v4"),
    ):
        built.train()
    with running(config.copy(copy_frozen=False).training(cost_max=2.0)) as built:
        train_to(built, 40)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_several_learners_agree_on_the_multiplier() -> None:
    config = safe_config().learners(num_learners=2)
    config.env_runners(num_env_runners=1, num_envs_per_env_runner=2, rollout_fragment_length=4)
    with running(config) as built:
        train_to(built, STEPS)
        one, other = (
            result.get()
            for result in built.learner_group.foreach_learner(
                lambda learner, **_: {
                    k: v.numpy() for k, v in learner.core.trainer.model.state_dict().items()
                }
            )
        )
    assert_equal(one, other)
    assert one["multiplier"] > 0

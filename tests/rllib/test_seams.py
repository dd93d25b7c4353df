"""Test the seams of an algorithm, with a toy that uses them all: see `tests.algorithms.toy`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rllib_hpo.deployment import DeployedPolicy, PolicyMetadata, load_policy_file, write_policy
from rllib_hpo.errors import NonFiniteError, SettingsError, UserCodeError
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.rllib.new_stack.learners import Learners
from rllib_hpo.rllib.new_stack.messages import TrainCall
from rllib_hpo.rllib.trained_policy import newest_policy
from tests.algorithms.toy import CostlyEnv, ToyModel
from tests.rllib.tiny import assert_equal, facts, loaded, running, tiny_config, train_to

STEPS, NUM_ENVS = 80, 3


def toy_config(env_config: dict[str, Any] | None = None, **settings: Any) -> ActorCriticConfig:
    config = tiny_config("toy", CostlyEnv, leapfrog_units=8, alpha="auto", **settings)
    config.environment(env_config=env_config or {}, imports=["tests.algorithms.toy"])
    return config.env_runners(num_envs_per_env_runner=NUM_ENVS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train the toy for `STEPS` steps of three environments; return it and its checkpoint half-way."""
    config = toy_config().results(results_dir=str(tmp_path_factory.mktemp("rows")))
    with running(config) as built:
        train_to(built, STEPS // 2)
        checkpoint = built.save_to_path(tmp_path_factory.mktemp("checkpoint"))
        result = train_to(built, STEPS)
        yield built, checkpoint, result


def model_of(built: ActorCriticAlgorithm) -> ToyModel:
    model: ToyModel = built.local_learner.trainer.model
    return model


def test_columns_come_from_info(trained: Any) -> None:
    """They arrive in order: the cost of step n of an episode is n modulo 2, the place [n, -n]."""
    replay = trained[0].local_learner.replay
    assert replay.layout.width == 2 * 2 + 1 + 2 + 3
    columns = replay.layout.unpack(torch.from_numpy(np.concatenate(replay.read(0, STEPS))))
    number = columns.extras["place"][:, 0]
    assert set(number.tolist()) == set(range(1, 9))
    assert torch.equal(columns.extras["place"][:, 1], -number)
    assert torch.equal(columns.extras["cost"], number % 2)
    assert torch.equal(columns.reward, torch.ones(STEPS))


def test_rows_and_episodes_are_seen_in_order(trained: Any) -> None:
    built, _, result = trained
    model, replay = model_of(built), built.local_learner.replay
    rows = np.concatenate(replay.read(0, STEPS))
    assert model.num_rows == STEPS
    np.testing.assert_allclose(model.row_sum, rows[:, :2].astype(np.float64).sum(0), rtol=1e-12)
    assert model.num_episodes == 6  # of 3 environments, which were built anew after 13 steps of each
    assert model.multiplier == 1  # the costs of an episode are 4
    assert result["env_runners"]["num_episodes_lifetime"] == 6


def test_kinds_of_updates_are_counted_and_averaged(trained: Any) -> None:
    """Every third of 60 updates copies; metrics of that kind alone are averaged over it."""
    built, _, result = trained
    assert model_of(built).num_copies == 20
    learned = result["learners"]["default_policy"]
    assert {"cost_loss", "critic_loss", "alpha"} <= learned.keys()
    assert 0 < learned["cost_loss"] < 100


def test_a_resumed_run_goes_on_bitwise(trained: Any) -> None:
    """The buffers and the streams of both laws are restored."""
    built, checkpoint, _ = trained
    with loaded(checkpoint) as resumed:
        train_to(resumed, STEPS)
        assert_equal(facts(resumed), facts(built))


def test_the_force_follows_q_less_costs(trained: Any) -> None:
    actor, obs = trained[0].actor, torch.randn(5, 2)
    action = torch.rand(5, 1).requires_grad_()
    critic = actor.force_critic(obs, actor.target_critics.condition(obs))
    value, gradient = critic.minimum_and_gradient(action)
    expected = (
        actor.target_critics(obs, action).amin(0) - actor.multiplier * actor.target_cost(obs, action)[0]
    )
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), action)[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(critic.rows(slice(2, 5)).minimum(action[2:]), expected[2:])


def test_actions_depend_on_where_the_episode_began(trained: Any) -> None:
    """This holds for noise-free actions too; without memory the observation counts as the first."""
    actor, obs = trained[0].actor, torch.zeros(2, 2)
    memory = actor.begin(torch.tensor([[3.0, 0.0], [0.0, 0.0]]), explores=False)
    assert list(memory) == ["first_obs"]
    one, other = actor.act(obs, memory=memory)
    assert one > other
    assert torch.equal(actor.act(obs)[0], other)


@pytest.mark.parametrize("file_format", ["safetensors", "torch-export", "onnx"])
def test_exported_policies_take_their_memory(trained: Any, file_format: str, tmp_path: Path) -> None:
    policy = newest_policy(trained[0])
    metadata = PolicyMetadata.of_manifest(
        {**policy.manifest, "imports": ["tests.algorithms.toy"]},
        policy.observation_space,
        policy.action_space,
    )
    deployed = DeployedPolicy(policy.actor, metadata)
    write_policy(deployed, file_format, tmp_path / "policy")
    obs, first = torch.randn(3, 2), torch.randn(3, 2)
    expected = deployed(obs, first)[0]
    torch.testing.assert_close(expected, policy.actor.act(obs, memory={"first_obs": first}))
    if file_format == "safetensors":
        action, remembered = load_policy_file(tmp_path / "policy")(obs, first)
    elif file_format == "torch-export":
        action, remembered = torch.export.load(tmp_path / "policy").module()(obs, first)
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "policy")
        found = session.run(None, {"obs": obs.numpy(), "first_obs": first.numpy()})
        action, remembered = map(torch.from_numpy, found)
    torch.testing.assert_close(action, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(remembered, first)


def test_an_environment_that_reports_no_cost_is_named() -> None:
    with (
        running(toy_config({"silent": True})) as built,
        pytest.raises(UserCodeError, match="'CostlyEnv' reports no 'cost' in the info of step"),
    ):
        built.train()


def test_the_old_stack_says_what_it_lacks() -> None:
    with pytest.raises(
        SettingsError, match=r"algorithm='toy' .* needs the column 'cost', which RLlib's old API"
    ):
        toy_config().api_stack(False, False).env_runners(num_envs_per_env_runner=1).build_algo()


def test_updates_in_bulk_name_the_loss_and_its_update(trained: Any) -> None:
    """The kinds have different losses."""
    with loaded(trained[1]) as built:
        learner = built.local_learner
        learner.trainer.update_in_bulk(None)
        learner.update_from_replay(7)
        learner.replay.rows[:] = torch.nan
        learner.update_from_replay(9)
        with pytest.raises(NonFiniteError, match="The cost loss is not finite at update 28"):
            learner.check_finite()


class _Actor:
    """Replace a remote learner's actor: record the calls, and make them on request."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.apply = self

    def options(self, num_returns: int) -> _Actor:
        return self

    def remote(self, *call: Any) -> tuple[Any, Any]:
        self.calls.append(call)
        return call, call


class _Group:
    def __init__(self, num: int) -> None:
        self.actors_, self._worker_manager = {k: _Actor() for k in range(num)}, self

    def __len__(self) -> int:
        return len(self.actors_)

    def actors(self) -> dict[int, _Actor]:
        return self.actors_


@pytest.mark.parametrize("all_see_rows", [True, False])
def test_every_learner_is_told_of_episodes_and_sees_rows_if_it_must(all_see_rows: bool) -> None:
    """One learner stores rows; all others receive them too for a method that watches rows."""
    group, rows = _Group(2), np.zeros((6, 10), np.float32)
    learners = Learners(group, all_see_rows=all_see_rows)
    learners.train(rows, slice(2, 5), 3, ["an episode"])
    (call, *seen), (other, *also_seen) = (actor.calls[0] for actor in group.actors_.values())
    assert isinstance(call, TrainCall)
    assert call.episodes == other.episodes == ["an episode"]
    assert (call.keeps_rows, other.keeps_rows) == (True, False)
    assert (len(seen), len(also_seen)) == (1, int(all_see_rows))

    class Learner:
        idle_since, core = None, None

    class Core:
        def add_transitions(self, rows: Any, episodes: Any, *, keep: bool, num_relabelled: int) -> None:
            self.told = (None if rows is None else len(rows), episodes, keep)
            assert num_relabelled == 0

        def update_from_replay(self, num_updates: int) -> None:
            self.num_updates = num_updates

    for which, given, expected in ((call, seen, (3, True)), (other, also_seen, (3 * all_see_rows, False))):
        learner = Learner()
        learner.core = Core()
        which._replace(gives_weights=False)(learner, *given)
        assert learner.core.told == (expected[0] or None, ["an episode"], expected[1])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_several_learners_agree_on_what_they_count() -> None:
    config = toy_config().learners(num_learners=2).env_runners(num_env_runners=1, num_envs_per_env_runner=2)
    with running(config.env_runners(rollout_fragment_length=4)) as built:
        train_to(built, STEPS)
        models = [
            result.get()
            for result in built.learner_group.foreach_learner(
                lambda learner, **_: {
                    k: v.numpy() for k, v in learner.core.trainer.model.state_dict().items()
                }
            )
        ]
        assert_equal(*models)
        assert models[0]["num_rows"] == STEPS
        assert models[0]["num_episodes"] >= 4

"""Test SAC and SAC-HPO under a cost limit: cost critic, multiplier, force and shield, each against an oracle."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from rllib_hpo.algorithms.base import Episode
from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.algorithms.sac_lagrangian import (
    ConstrainedActor,
    ConstrainedModel,
    ConstrainedSoftActorCritic,
    ConstraintSettings,
    SACHPOLagrangianSettings,
    SACLagrangianSettings,
)
from rllib_hpo.errors import SettingsError
from rllib_hpo.networks.critics import Critics, SubtractedCritic
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch
from rllib_hpo.samplers.base import draw_noise
from rllib_hpo.settings import SACHPOSettings, SACSettings, parse_settings
from rllib_hpo.streams import TorchStreams
from tests.reference.shield import algorithm_3

OBS, DIM, ROWS = 5, 3, 32
COST: dict[str, Any] = {"cost": {"kind": "torque"}, "cost_limit": 10.0}
SMALL: dict[str, Any] = {"hidden_units": 16, **COST}
HPO: dict[str, Any] = {"leapfrog_units": 8, "leapfrog_steps": 3, "step_size": 0.2}


def lagrangian(**changes: Any) -> SACLagrangianSettings:
    return parse_settings(SACLagrangianSettings, SMALL | changes)


def shielded_settings(**changes: Any) -> SACHPOLagrangianSettings:
    return parse_settings(SACHPOLagrangianSettings, SMALL | HPO | changes)


def model_of(settings: ConstraintSettings, seed: int = 0) -> ConstrainedModel:
    return ConstrainedModel(OBS, DIM, settings, seed)


def method_of(settings: ConstraintSettings) -> ConstrainedSoftActorCritic:
    method = make_method(settings)
    assert isinstance(method, ConstrainedSoftActorCritic)
    return method


def batch_of(seed: int, *, costly: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, ROWS, OBS, generator=generator)
    action = 2 * torch.rand(ROWS, DIM, generator=generator) - 1
    reward, cost = torch.randn(2, ROWS, generator=generator)
    cost = cost.abs().clamp(max=1) if costly else torch.zeros(ROWS)
    terminated = (torch.arange(ROWS) % 4 == 0).float()
    return Batch(obs, action, reward, terminated, next_obs, {"cost": cost})


# --- equal to SAC and SAC-HPO without a cost ---


@pytest.mark.parametrize("alpha", [0.2, "auto"])
@pytest.mark.parametrize(
    ("plain", "constrained"),
    [
        (SACSettings(hidden_units=16), lagrangian()),
        (SACHPOSettings(hidden_units=16, **HPO), shielded_settings()),
        (
            SACHPOSettings(hidden_units=16, objective_critic="target", **HPO),
            shielded_settings(objective_critic="target"),
        ),
    ],
    ids=["sac", "sac-hpo", "sac-hpo, target critics"],
)
def test_without_multiplier_and_cost_it_is_the_unconstrained_one_bit_for_bit(
    plain: Any, constrained: Any, alpha: Any
) -> None:
    """Five float32 updates from one seed agree, with noise of the same streams."""
    found = []
    for settings in (plain, constrained):
        settings = settings.model_copy(update={"alpha": alpha})
        method = make_method(settings)
        model = method.make_model(OBS, DIM, seed=0)
        steps, streams = Steps(method.make_optimizers(model)), TorchStreams(0, "learner")
        metrics: dict[str, Tensor] = {}
        for k in range(5):
            noise = draw_noise(model.sampler, 2 * ROWS, streams)
            metrics = method.update(model, batch_of(k, costly=False), noise, steps, method.kind(k + 1))
        found.append((model.state_dict(), metrics))
    (state, metrics), (ours, our_metrics) = found
    assert all(torch.equal(ours[name], value) for name, value in state.items())
    assert all(torch.equal(our_metrics[name], value) for name, value in metrics.items())


def test_a_multiplier_changes_the_policy_and_not_the_critics() -> None:
    """The first update from equal networks changes the policy alone."""
    found = []
    for multiplier in (0.0, 2.0):
        settings = lagrangian()
        method, model = method_of(settings), model_of(settings)
        model.multiplier.fill_(multiplier)
        noise = draw_noise(model.sampler, 2 * ROWS, TorchStreams(0, "learner"))
        method.update(model, batch_of(0), noise, Steps(method.make_optimizers(model)), "update")
        found.append(model.state_dict())
    one, other = found
    changed = {name.split(".")[0] for name, value in one.items() if not torch.equal(value, other[name])}
    assert changed == {"sampler", "multiplier"}


# --- cost critic ---


@pytest.mark.parametrize("num", [1, 2])
def test_the_target_of_the_cost_critic_by_hand(num: int) -> None:
    settings = lagrangian(cost_critics=num, terminated_cost=3.0, gamma=0.9)
    method, model = method_of(settings), model_of(settings)
    model.target_cost_critics.biases[-1].data.add_(torch.linspace(4, 12, num)[:, None, None])
    batch, action = batch_of(0), torch.rand(ROWS, DIM) * 2 - 1
    found = method.cost_target(model, batch, action)
    for row in range(ROWS):
        values = model.target_cost_critics(batch.next_obs[row : row + 1], action[row : row + 1])
        to_come = min(max(*values[:, 0].tolist(), 0.0), 1 / (1 - 0.9))  # C_max is 1 for torques
        follows = 3.0 if batch.terminated[row] else to_come
        assert found[row].item() == pytest.approx(float(batch.extras["cost"][row]) + 0.9 * follows, rel=1e-5)


@pytest.mark.parametrize("terminated_cost", [0.0, 4.0])
def test_the_cost_critic_finds_what_dynamic_programming_does(terminated_cost: float) -> None:
    """The chain is 0 -> 1 -> 2; its last state ends the episode in half of its transitions, and else returns to 0."""
    gamma, cost = 0.8, torch.tensor([1.0, 0.25, 0.5])
    settings = lagrangian(
        gamma=gamma, tau=0.05, lr=3e-3, terminated_cost=terminated_cost, cost_max=1.0, lagrange_lr=0.0
    )
    method, model = method_of(settings), model_of(settings)
    steps = Steps(method.make_optimizers(model))
    states = torch.eye(OBS)[:3]
    state = torch.arange(ROWS) % 4  # states 0, 1, 2 and 2 again, which ends
    ends = state == 3
    state = state.clamp(max=2)
    successor = torch.tensor([1, 2, 0])[state]
    generator = torch.Generator().manual_seed(0)
    for k in range(600):
        action = torch.rand(ROWS, DIM, generator=generator) * 2 - 1
        batch = Batch(
            states[state], action, torch.zeros(ROWS), ends.float(), states[successor], {"cost": cost[state]}
        )
        noise = draw_noise(model.sampler, 2 * ROWS, TorchStreams(k, "learner"))
        method.update(model, batch, noise, steps, "update")
    value = torch.zeros(3, dtype=torch.float64)
    for _ in range(200):  # value iteration
        after = torch.stack([value[1], value[2], 0.5 * value[0] + 0.5 * terminated_cost])
        value = cost.double() + gamma * after
    with torch.no_grad():
        found = model.cost_critics(states, torch.zeros(3, DIM))[0]
    torch.testing.assert_close(found.double(), value, rtol=0.05, atol=0.05)


def test_where_cost_critics_begin() -> None:
    """The setting, a number or the limit, is added to the outputs of online and target networks."""
    obs, action = torch.randn(4, OBS), torch.rand(4, DIM)
    zero, seven, limit = (model_of(lagrangian(cost_initial=initial)) for initial in (0.0, 7.0, "limit"))
    for name in ("cost_critics", "target_cost_critics"):
        base = getattr(zero, name)(obs, action)
        torch.testing.assert_close(getattr(seven, name)(obs, action), base + 7.0)
        torch.testing.assert_close(getattr(limit, name)(obs, action), base + 10.0)


def test_an_undiscounted_limit_is_spread_over_the_episode() -> None:
    """25 costs in 1,000 steps have a discounted sum of about 2.5."""
    settings = lagrangian(cost_limit=25.0, cost_discounting="undiscounted")
    evenly = sum(0.99**t * 25 / 1000 for t in range(1000))
    assert settings.discounted_limit == pytest.approx(evenly)
    assert settings.discounted_limit == pytest.approx(2.5, rel=1e-3)
    assert lagrangian().discounted_limit == 10.0


# --- multiplier ---


def ended(settings: ConstraintSettings, cost: float, at: int = 20_000, **changes: Any) -> Episode:
    return Episode(0.0, 100, cost=2 * cost, cost_discounted=cost, ended_at=at, **changes)


def moved(method: ConstrainedSoftActorCritic, model: ConstrainedModel) -> float:
    method.move_multiplier(model, Steps({}))
    return model.multiplier.item()


def test_the_multiplier_by_hand() -> None:
    """J_C of 50, 50 and 0 with limit 10 and eta 0.1: 4, 8, 7. Ten episodes of each fill the mean."""
    settings = lagrangian()
    method, model = method_of(settings), model_of(settings)
    found = []
    for cost in (50.0, 50.0, 0.0):
        method.episodes_ended(model, [ended(settings, cost)] * 10)
        found.append(moved(method, model))
    assert found == pytest.approx([4.0, 8.0, 7.0])


def test_episodes_of_the_warm_up_do_not_count() -> None:
    """Nothing changes before another episode has ended; then J_C is the mean of the existing ones."""
    settings = lagrangian()
    method, model = method_of(settings), model_of(settings)
    method.episodes_ended(model, [ended(settings, 50.0, at=settings.warmup_steps)] * 30)
    assert moved(method, model) == 0.0
    method.episodes_ended(model, [ended(settings, 50.0, at=settings.warmup_steps + 1), ended(settings, 30.0)])
    assert moved(method, model) == pytest.approx(0.1 * (40 - 10))
    method.episodes_ended(model, [ended(settings, 10.0)] * 9)
    assert model.mean_of_latest[0].item() == pytest.approx((30 + 90) / 10)  # the first has left


def test_the_multiplier_stays_within_its_bounds() -> None:
    settings = lagrangian(lagrange_max=5.0)
    method, model = method_of(settings), model_of(settings)
    method.episodes_ended(model, [ended(settings, 0.0)])
    assert moved(method, model) == 0.0
    method.episodes_ended(model, [ended(settings, 500.0)] * 10)
    assert moved(method, model) == 5.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 3.0),
        ({"cost_discounting": "undiscounted"}, 6.0),
        ({"lagrange_estimate": "mean"}, 0.06 / (1 - 0.99)),
        ({"lagrange_estimate": "mean", "cost_discounting": "undiscounted", "cost_horizon": 500}, 0.06 * 500),
    ],
)
def test_what_an_episode_is_taken_to_cost(changes: dict[str, Any], expected: float) -> None:
    """The episode has 100 steps, which cost 6 in all and 3 discounted."""
    settings = lagrangian(**changes)
    assert settings.estimate(ended(settings, 3.0)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("update_to_data", "expected"), [(1.0, [4, 8, 12]), (0.5, [2, 4, 6]), (0.375, [2, 3, 5])]
)
def test_the_multiplier_moves_every_so_many_environment_steps(
    update_to_data: float, expected: list[int]
) -> None:
    """It changes at the first update due at or after that step, counted from 12 steps after the warm-up."""
    method = method_of(lagrangian(lagrange_every=4, update_to_data=update_to_data))
    updates = range(1, int(12 * update_to_data) + 2)
    found = [u for u in updates if method.kind(u) != "update"]
    assert found == expected


def test_the_pid_rule_equals_a_transcription() -> None:
    """The rule equals Stooke et al. 2020, Algorithm 2, with J_C / d_0 and a delayed derivative, for 40 steps."""
    settings = lagrangian(lagrange="pid", lagrange_kp=0.3, lagrange_kd=0.7, lagrange_lr=0.2)
    method, model = method_of(settings), model_of(settings)
    costs = (10 + 30 * torch.rand(40, generator=torch.Generator().manual_seed(0))).tolist()
    integral = error = smooth = 0.0
    past = [0.0] * 10
    for cost in costs:
        method.episodes_ended(model, [ended(settings, cost)] * 10)
        delta = cost / 10 - 1
        integral = max(0.0, integral + 0.2 * delta)
        error, smooth = 0.95 * error + 0.05 * delta, 0.95 * smooth + 0.05 * cost / 10
        expected = max(0.0, 0.3 * error + integral + 0.7 * max(0.0, smooth - past[0]))
        past = [*past[1:], smooth]
        assert moved(method, model) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("rule", ["integral", "pid"])
def test_the_multiplier_converges_on_a_bandit(rule: str) -> None:
    """Reward a, cost a^2, limit 1/4: the best response is min(1, 1 / (2 lambda)), the optimum a = 1/2 at lambda = 1."""
    settings = lagrangian(cost_limit=0.25, lagrange=rule, lagrange_lr=0.5 if rule == "integral" else 0.05)
    method, model = method_of(settings), model_of(settings)
    action = 1.0
    for _ in range(400):
        multiplier = model.multiplier.item()
        action = 1.0 if multiplier < 0.5 else 1 / (2 * multiplier)
        method.episodes_ended(model, [ended(settings, action**2)] * 10)
        moved(method, model)
    assert model.multiplier.item() == pytest.approx(1.0, abs=0.02)
    assert action == pytest.approx(0.5, abs=0.01)


def test_rescaling_divides_the_policys_loss() -> None:
    losses = []
    for rescale in (False, True):
        settings = lagrangian(lagrange_rescale=rescale)
        method, model = method_of(settings), model_of(settings)
        model.multiplier.fill_(3.0)
        noise = draw_noise(model.sampler, 2 * ROWS, TorchStreams(0, "learner"))
        metrics = method.update(model, batch_of(0), noise, Steps(method.make_optimizers(model)), "update")
        losses.append(metrics["policy_loss"].item())
    assert losses[0] == pytest.approx(4 * losses[1], rel=1e-5)


# --- force ---


@pytest.mark.parametrize("num", [1, 2])
def test_the_force_is_the_gradient_of_q_less_costs(num: int) -> None:
    """The force equals central differences, the minimum's gradient autograd; float64, kinks over 1e-6 away."""
    generator = torch.Generator().manual_seed(3)
    critics, costs = (Critics(OBS, DIM, 16, 2, generator, n).double() for n in (2, num))
    obs = torch.randn(8, OBS, generator=generator, dtype=torch.float64)
    action = torch.rand(8, DIM, generator=generator, dtype=torch.float64) * 2 - 1
    weight = torch.tensor(1.7, dtype=torch.float64)
    critic = SubtractedCritic(critics.condition(obs), costs.condition(obs), weight)
    value, gradient = critic.minimum_and_gradient(action)
    expected = critics(obs, action).amin(0) - 1.7 * costs(obs, action).amax(0)
    torch.testing.assert_close(value, expected.detach())
    for k in range(DIM):
        shift = torch.zeros(DIM, dtype=torch.float64)
        shift[k] = 1e-6
        slope = (critic.minimum(action + shift) - critic.minimum(action - shift)) / 2e-6
        torch.testing.assert_close(gradient[:, k], slope, rtol=1e-5, atol=1e-7)
    leaf = action.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(critic.minimum(leaf).sum(), leaf)[0], gradient)


# --- shield ---


def actor_of(settings: ConstraintSettings) -> ConstrainedActor:
    """Make an actor with a multiplier, and with cost critics of relevant size."""
    actor = ConstrainedActor(OBS, DIM, settings, seed=1)
    actor.multiplier.fill_(0.5)
    for weight in actor.target_cost_critics.weights:
        weight.data.mul_(3)
    return actor


@pytest.mark.parametrize("explores", [True, False])
@pytest.mark.parametrize("cost_limit", [0.0, 10.0])
def test_acting_is_algorithm_3(explores: bool, cost_limit: float) -> None:
    """Each state's action equals the transcription's, with the same noise."""
    settings = shielded_settings(cost_limit=cost_limit, momentum_std_explore=0.8, force_gate="none")
    actor = actor_of(settings).double()
    rows, chain = 16, actor.sampler.chains["explore" if explores else "train"]  # type: ignore[union-attr,index]
    obs, first = torch.randn(2, rows, OBS, dtype=torch.float64)
    noise = {name: torch.zeros(rows, DIM, dtype=torch.float64) for name in ("base", "momentum")}
    refreshed = torch.zeros(rows, settings.shield_steps, DIM, dtype=torch.float64)
    if explores:
        noise = {name: torch.randn_like(value) for name, value in noise.items()}
        refreshed = torch.randn_like(refreshed)
    found = actor._shielded(obs, first, noise, refreshed, "explore" if explores else "train")
    actions, steps = [], []
    for row in range(rows):
        own, start = obs[row : row + 1], first[row : row + 1]

        def value(action: Tensor, where: Tensor = own) -> Tensor:
            return actor.target_cost_critics(where, action[None])[0, 0]

        def force(action: Tensor, where: Tensor = own) -> Tensor:
            leaf = action[None].detach().requires_grad_()
            q = actor.target_critics(where, leaf).amin(0) - 0.5 * actor.target_cost_critics(where, leaf).amax(
                0
            )
            gradient = torch.autograd.grad(q.sum(), leaf)[0][0]
            return -gradient / (gradient.norm() + 1e-8)

        mean, log_std = actor.sampler.policy(own)  # type: ignore[operator]
        action, passed, num_steps = algorithm_3(
            torch.tanh(mean + log_std.exp() * noise["base"][row])[0],
            chain.momentum_std * noise["momentum"][row],
            chain.momentum_std * refreshed[row],
            force,
            value,
            actor.reference(own)[0],
            value(actor.reference(start)[0], start).item(),
            step_size=0.2,
            limit=cost_limit,
            gamma=0.99,
        )
        actions.append(action)
        steps.append((passed, num_steps))
    torch.testing.assert_close(found.action, torch.stack(actions), rtol=0, atol=1e-9)
    assert list(zip(found.accepted.bool().tolist(), found.num_steps.int().tolist(), strict=True)) == steps
    assert len(set(steps)) > 1


def test_evaluation_within_budget_passes_by_the_reference_at_the_latest() -> None:
    """The noise-free chain reaches b after `leapfrog_steps` steps, which satisfies the test by definition."""
    settings = shielded_settings(cost_limit=1e4)
    actor = actor_of(settings)
    obs = torch.randn(64, OBS)
    zero = torch.zeros(64, DIM)
    refreshed = torch.zeros(64, settings.shield_steps, DIM)
    actor.target_cost_critics.biases[-1].data.sub_(1e3)
    found = actor._shielded(obs, obs, {"base": zero, "momentum": zero}, refreshed, "train")
    assert found.accepted.all()
    assert found.num_steps.max() <= settings.leapfrog_steps


def test_evaluations_are_deterministic_and_under_the_test() -> None:
    """Another first observation gives another budget, and so other actions."""
    actor = actor_of(shielded_settings(cost_limit=0.0))
    actor.target_cost_critics.weights[-1].data.mul_(30)
    obs, first = torch.randn(2, 32, OBS)
    one, again = (actor.act(obs, memory={"first_obs": first}) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, actor.act(obs, memory={"first_obs": first.flip(0)}))
    plain = copy.deepcopy(actor)
    plain.settings = shielded_settings(shield="none")
    assert not torch.equal(one, plain.act(obs))


def test_streams_do_not_depend_on_what_passed() -> None:
    """All actions pass under one limit and few under the other, with equal noise."""
    states, accepted = [], []
    for limit, shift in ((1e4, 0.0), (0.0, 500.0)):
        actor, streams = actor_of(shielded_settings(cost_limit=limit)), TorchStreams(0, "runner")
        actor.target_cost_critics.biases[-1].data.add_(shift)  # far over a budget of 0
        memory = actor.begin(torch.zeros(4, OBS))
        for _ in range(5):
            actor.act(torch.randn(4, OBS, generator=torch.Generator().manual_seed(0)), streams, memory)
        states.append({name: streams[name].get_state() for name in ("base", "momentum", "shield")})
        decisions, passed, steps = memory["shield"].sum(0).tolist()
        assert decisions == 20
        assert passed <= steps <= 10 * decisions
        accepted.append(passed / decisions)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert accepted[0] == 1
    assert accepted[1] < 0.5


def test_an_episode_begins_with_the_cost_that_is_predicted_for_it() -> None:
    for settings in (lagrangian(), shielded_settings()):
        actor, obs = actor_of(settings), torch.randn(4, OBS)
        begun = actor.begin(obs)
        expected = actor.target_cost_critics(obs, actor.reference(obs))[0]
        torch.testing.assert_close(begun["q_cost_start"], expected)
        assert ("first_obs" in actor.begin(obs, explores=False)) == actor.has_shield


def test_diagnostics_are_of_the_last_episodes() -> None:
    """There are none before the first episode."""
    settings = shielded_settings()
    method, model = method_of(settings), model_of(settings)
    noise = draw_noise(model.sampler, 2 * ROWS, TorchStreams(0, "learner"))
    names = ("cost_estimate", "cost_discounted_latest", "q_cost_start", "shield_accept", "shield_steps_mean")
    before = method.diagnose(model, batch_of(0), noise)
    assert all(before[name].isnan() for name in names)
    for cost, predicted, counts in ((4.0, 1.0, (10.0, 5.0, 30.0)), (8.0, 2.0, (30.0, 20.0, 90.0))):
        recorded = {"q_cost_start": (predicted,), "shield": counts}
        method.episodes_ended(model, [ended(settings, cost, recorded=recorded)])
    after = method.diagnose(model, batch_of(0), noise)
    assert [after[name].item() for name in names] == pytest.approx([6.0, 6.0, 1.5, 25 / 40, 3.0])


def test_a_shield_that_tells_nothing_apart_deserves_a_warning() -> None:
    method = method_of(shielded_settings())
    about = {"q_cost_start": 2.0, "cost_discounted_latest": 40.0}
    for rate in (0.05, 0.5, 0.95):
        assert method.concerns({"shield_accept": rate} | about) == {}
    assert method.concerns(about) == {}
    (sentence,) = method.concerns({"shield_accept": 0.98} | about).values()
    assert sentence == (
        "The shield found a safe action in 98 % of the last episodes' steps, so its test hardly discriminates. The "
        "cost critic predicts 2 per episode, and the discounted cost is 40."
    )


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"tempering": True, "momentum_std_train": 1.0},
            "tempering=true scales the momentum by a schedule over leapfrog_steps",
        ),
        ({"explore_sampler": "gaussian"}, "set explore_sampler='hamiltonian' or shield='none'"),
        ({"train_sampler": "gaussian"}, "set train_sampler='hamiltonian' or shield='none'"),
        ({"shield_steps": 0}, "shield_steps=0 must be greater than or equal to 1"),
        ({"fallback": "first"}, "fallback='first' must be 'last' or 'safest'"),
        (
            {"lagrange": "pid", "cost_limit": 0.0},
            "lagrange='pid' divides by cost_limit, which must be above 0",
        ),
        ({"cost_critics": 3}, "cost_critics=3 must be 1 or 2"),
    ],
)
def test_settings_that_do_not_work_together_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        shielded_settings(**changes)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (lagrangian(lagrange_kp=1.0), "lagrange_kp=1.0 has no effect with lagrange='integral'."),
        (
            shielded_settings(shield="none", shield_steps=5),
            "shield_steps=5 has no effect with shield='none'.",
        ),
    ],
)
def test_settings_without_effect_are_named(settings: ConstraintSettings, says: str) -> None:
    assert settings.notices() == [says]


def test_a_task_without_a_cost_is_refused() -> None:
    settings = SACLagrangianSettings(hidden_units=16)
    with pytest.raises(SettingsError, match="cost=None: a safe algorithm needs a cost"):
        make_method(settings).check(make_method(settings).make_actor(OBS, DIM, seed=0))

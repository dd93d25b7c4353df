"""Test the Hamiltonian policy: Algorithm 2 and equations (9)-(13) of arXiv 2103.12020."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_hpo.algorithms.sac import SoftActorCriticModel
from rllib_hpo.errors import SettingsError
from rllib_hpo.networks.critics import ConditionedCritic, Critics
from rllib_hpo.samplers.base import Noise, Sample, draw_noise, zero_noise
from rllib_hpo.samplers.gaussian import GaussianSampler
from rllib_hpo.samplers.hamiltonian import HamiltonianSampler
from rllib_hpo.settings import SACHPOSettings, SACSettings
from rllib_hpo.streams import TorchStreams
from tests.readout import networks_of
from tests.reference import update as reference

OBS, DIM, ROWS = 5, 3, 64
ALPHA = torch.tensor(0.2, dtype=torch.float64)

PROPOSED: dict[str, Any] = {"leapfrog_steps": 3, "step_size": 0.25, "momentum_std_train": 0.5}
CONVENTIONAL: dict[str, Any] = PROPOSED | {"force_scale": "inverse_temperature", "force_gate": "none"}
VARIANTS: dict[str, dict[str, Any]] = {
    "proposed": PROPOSED,
    "conventional": CONVENTIONAL,
    "unit gradient without gate": PROPOSED | {"force_gate": "none"},
    "gated gradient over temperature": PROPOSED | {"force_scale": "inverse_temperature"},
    "no state input": PROPOSED | {"leapfrog_state_input": False},
    "one step": PROPOSED | {"leapfrog_steps": 1},
    "no steps": PROPOSED | {"leapfrog_steps": 0},
    "steps per dimension": PROPOSED | {"step_size": [0.125, 0.25, 0.5]},
    "learned steps": PROPOSED | {"learn_step_size": True},
    "consistent mass": PROPOSED | {"mass_matrix": "consistent"},
    "cooling": PROPOSED | {"tempering": True, "momentum_std_train": 1.5},
    "heating": PROPOSED | {"tempering": True, "tempering_allow_heating": True},
    "penalty": PROPOSED | {"momentum_penalty": True},
    "no momentum noise": PROPOSED | {"momentum_noise": False},
    "straight through": PROPOSED | {"clip_gradient": "straight_through"},
    "gaussian training": PROPOSED | {"train_sampler": "gaussian"},
    "two policy layers": PROPOSED | {"policy_layers": 2},
}
# These give the proposed chain's actions, or have other networks or another std.
NEUTRAL = ("proposed", "penalty", "straight through", "cooling", "no state input", "two policy layers")


def _settings(**changes: Any) -> SACHPOSettings:
    return SACHPOSettings(hidden_units=16, leapfrog_units=8, **changes)


def _model(settings: SACHPOSettings, seed: int = 0, dim: int = DIM) -> SoftActorCriticModel:
    """Make a float64 model with critics of some size and leapfrog networks away from their small initial values."""
    model = SoftActorCriticModel(OBS, dim, settings, seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if model.sampler.gated_force is not None:
            for parameter in model.sampler.gated_force.parameters():
                parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def _inputs(model: SoftActorCriticModel, rows: int = ROWS, seed: int = 1) -> tuple[Tensor, Noise]:
    obs = torch.randn(rows, OBS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise = draw_noise(model.sampler, rows, TorchStreams(seed, "test"))
    return obs, {name: value.double() for name, value in noise.items()}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_equals_the_literal_chain(changes: dict[str, Any]) -> None:
    """Action, log pi(a_0 | s) and penalty of every composition equal loops with autograd gradients of Q."""
    model = _model(_settings(**changes))
    obs, noise = _inputs(model)
    sample = model.sample(obs, noise, "train")
    action, log_prob, momentum = reference.sample(networks_of(model), model.settings, obs, noise)
    torch.testing.assert_close(sample.action, action, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(sample.log_prob, log_prob, rtol=0.0, atol=1e-9)
    if changes.get("momentum_penalty"):
        penalty = model.alpha * momentum.pow(2).sum(-1) / (2 * 0.5**2)
        torch.testing.assert_close(sample.penalty, penalty, rtol=0.0, atol=1e-9)
    else:
        assert sample.penalty is None


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in NEUTRAL])
def test_variants_differ(name: str) -> None:
    """Each choice has an effect, so no comparison above compares the default chain with itself."""
    model, other = _model(_settings(**PROPOSED)), _model(_settings(**VARIANTS[name]))
    other.load_state_dict(model.state_dict(), strict=False)
    if name == "learned steps":
        with torch.no_grad():
            other.sampler.raw_step_size.add_(0.5)
    obs, noise = _inputs(model)
    changed = other.sample(obs, noise, "train").action
    assert (model.sample(obs, noise, "train").action - changed).abs().max() > 1e-3


def _joint_density(model: SoftActorCriticModel, obs: Tensor, end: Tensor, end_momentum: Tensor) -> Tensor:
    """Return q(a_K, rho_K | s) = pi(a_0 | s) N(rho_0 | 0, std^2), eq. (10), with (a_0, rho_0) by the reversed chain."""
    sampler = model.sampler
    obs = obs.expand(len(end), -1)
    with torch.no_grad():
        force = sampler.force(obs, model.target_critics.condition(obs), model.alpha)
        start, start_momentum = sampler.evolve(end, -end_momentum, force, "train", final_kick=True)
        inside = (start.abs() < 1)[:, 0]
        mean, log_std = sampler.policy(obs)
        noise = (torch.atanh(start.clamp(-1 + 1e-15, 1 - 1e-15)) - mean) / log_std.exp()
        sample = model.sample(obs, {"base": noise, "momentum": -start_momentum / 0.5}, "train")
        momentum_density = torch.exp(-(start_momentum**2) / (2 * 0.5**2))[:, 0] / (
            0.5 * math.sqrt(2 * math.pi)
        )
        # The same chain forwards ends where it should, clipped.
        close = (sample.action - end.clamp(-1, 1)).abs()[:, 0] < 1e-6
        assert close[inside].float().mean() > 0.999
        return torch.where(inside, sample.log_prob.exp() * momentum_density, 0.0)


@pytest.mark.parametrize("name", ["proposed", "conventional", "unit gradient without gate"])
def test_joint_density_integrates_to_one(name: str) -> None:
    """int int q(a_K, rho_K) da_K drho_K = 1 before clipping: the chain's Jacobian is one.

    One action dimension, midpoint rule on a grid. The force jumps where Q has a kink, hence the tolerance.
    """
    model = _model(_settings(**VARIANTS[name]), dim=1)
    if name == "conventional":  # A force of some size, but not one that throws the action out of the grid.
        model.log_alpha.data.fill_(0.0)
    with torch.no_grad():
        model.sampler.policy.network[-1].bias.copy_(torch.tensor([0.1, math.log(0.4)]))
    obs, _ = _inputs(model, rows=1)
    points, half_width = 300, 3.0
    nodes = (torch.arange(points, dtype=torch.float64) + 0.5) * (2 * half_width / points) - half_width
    grid = torch.cartesian_prod(nodes, nodes)
    density = _joint_density(model, obs, grid[:, :1], grid[:, 1:])
    assert float(density.sum() * (2 * half_width / points) ** 2) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("name", ["proposed", "conventional", "consistent mass", "steps per dimension"])
def test_chain_has_unit_jacobian(name: str) -> None:
    """|det d(a_K, rho_K) / d(a_0, rho_0)| = 1 with the composed force, although autograd treats g as constant."""
    model = _model(_settings(**VARIANTS[name]))
    obs, _ = _inputs(model, rows=1)
    force = model.sampler.force(obs, model.target_critics.condition(obs), model.alpha)

    def chain(phase: Tensor) -> Tensor:
        end = model.sampler.evolve(phase[None, :DIM], phase[None, DIM:], force, "train", final_kick=True)
        return torch.cat(end, -1)[0]

    start = torch.tensor([0.3, -0.2, 0.1, 0.4, -0.5, 0.2], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(chain, start)
    assert torch.linalg.det(jacobian).item() == pytest.approx(1.0, abs=1e-10)
    shift = 1e-7 * torch.eye(2 * DIM, dtype=torch.float64)
    differences = torch.stack([(chain(start + d) - chain(start - d)) / 2e-7 for d in shift], -1)
    torch.testing.assert_close(jacobian, differences, rtol=0.0, atol=1e-6)


class _QuadraticCritic(ConditionedCritic):
    """Define Q(a) = -alpha a^T P a / 2, so that U = -Q / alpha is a quadratic; count its evaluations."""

    def __init__(self, precision: Tensor) -> None:
        self.precision, self.evaluations = precision, 0

    def minimum_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        gradient = -ALPHA * action @ self.precision
        return (action * gradient).sum(-1) / 2, gradient


def test_conventional_force_is_the_gradient_of_the_energy() -> None:
    """F = grad U with U = -Q / alpha, equation (9): the force for which the chain targets exp(Q / alpha)."""
    precision = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    model = _model(_settings(**CONVENTIONAL))
    obs, _ = _inputs(model)
    action = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    force = model.sampler.force(obs, _QuadraticCritic(precision), ALPHA)
    torch.testing.assert_close(force(action), action @ precision, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("penalty", "evaluations"), [(False, 3), (True, 4)])
def test_number_of_force_evaluations(penalty: bool, evaluations: int) -> None:
    """K evaluations of grad Q where rho_K is not used, K + 1 where the penalty needs it."""
    settings = _settings(**PROPOSED, momentum_penalty=penalty)
    sampler = HamiltonianSampler(OBS, DIM, settings).double()
    critic = _QuadraticCritic(torch.eye(DIM, dtype=torch.float64))
    noise = {"base": torch.zeros(ROWS, DIM).double(), "momentum": torch.zeros(ROWS, DIM).double()}
    sampler(torch.zeros(ROWS, OBS).double(), noise, mode="train", critic=critic, alpha=ALPHA)
    assert critic.evaluations == evaluations


GAUSSIAN = {"train_sampler": "gaussian", "explore_sampler": "gaussian"}


@pytest.mark.parametrize("changes", [{"leapfrog_steps": 0}, GAUSSIAN])
@pytest.mark.parametrize("mode", ["explore", "train"])
@pytest.mark.parametrize("layers", [1, 2])
def test_without_steps_it_is_the_gaussian_bit_for_bit(
    changes: dict[str, Any], mode: Any, layers: int
) -> None:
    """K = 0, equal layers: the same weights from the same generator, the same action and log-density."""
    ours = HamiltonianSampler(
        OBS, DIM, _settings(policy_layers=layers, **changes), torch.Generator().manual_seed(0)
    )
    gaussian = GaussianSampler(
        OBS, DIM, SACSettings(policy_layers=layers, hidden_units=16), torch.Generator().manual_seed(0)
    )
    critic = Critics(OBS, DIM, 16).condition(torch.zeros(ROWS, OBS))
    obs, streams = torch.randn(ROWS, OBS), TorchStreams(0)
    noise = draw_noise(ours, ROWS, streams)
    results: list[Sample] = [
        sampler(obs, noise, mode=mode, critic=critic, alpha=torch.tensor(0.2)) for sampler in (ours, gaussian)
    ]
    assert torch.equal(results[0].action, results[1].action)
    assert torch.equal(results[0].log_prob, results[1].log_prob)


def test_momentum_has_its_own_stream() -> None:
    """Drawing momenta, or not, does not change the base policy's noise."""
    with_momentum = HamiltonianSampler(OBS, DIM, _settings())
    without = HamiltonianSampler(OBS, DIM, _settings(momentum_noise=False))
    gaussian = GaussianSampler(OBS, DIM, SACSettings())
    pairs = [(sampler, TorchStreams(0, "learner")) for sampler in (with_momentum, without, gaussian)]
    for _ in range(2):  # The second draw too: no stream runs ahead of another.
        draws = [draw_noise(sampler, 4, streams) for sampler, streams in pairs]
    assert set(draws[0]) == {"base", "momentum"}
    assert set(draws[1]) == set(draws[2]) == {"base"}
    assert torch.equal(draws[0]["base"], draws[1]["base"])
    assert torch.equal(draws[0]["base"], draws[2]["base"])
    assert not torch.equal(draws[0]["base"], draws[0]["momentum"])


def test_base_log_density_does_not_depend_on_the_momentum() -> None:
    """log_prob is log pi(a_0 | s), as in (12), whatever the momentum did to the action."""
    model = _model(_settings(**PROPOSED))
    obs, noise = _inputs(model)
    other = noise | {"momentum": noise["momentum"] + 1}
    first, second = model.sample(obs, noise, "train"), model.sample(obs, other, "train")
    assert torch.equal(first.log_prob, second.log_prob)
    assert (first.action - second.action).abs().max() > 0.05


def test_evaluation_is_noise_free() -> None:
    """Zero noise: a_0 = tanh(mu), rho_0 = 0, and the same K steps."""
    model = _model(_settings(**PROPOSED))
    obs, _ = _inputs(model)
    noise = {name: value.double() for name, value in zero_noise(model.sampler, ROWS).items()}
    action = model.sample(obs, noise, "train").action
    start = torch.tanh(model.sampler.policy(obs)[0])
    force = model.sampler.force(obs, model.target_critics.condition(obs), model.alpha)
    end, _ = model.sampler.evolve(start, torch.zeros_like(start), force, "train", final_kick=False)
    assert torch.equal(action, end.clamp(-1, 1))
    assert (end - start).abs().max() > 0.05


def test_exploring_and_training_have_their_own_momentum() -> None:
    """rho_0 = std * noise with the std of the mode, such as 1.5 in exploration and 0.1 in losses."""
    settings = _settings(leapfrog_steps=2, step_size=0.125, momentum_std_explore=1.5, momentum_std_train=0.1)
    model = _model(settings)
    obs, noise = _inputs(model)
    start = torch.tanh(torch.zeros(ROWS, DIM, dtype=torch.float64))
    for mode, std in (("explore", 1.5), ("train", 0.1)):
        momentum = model.sampler.initial_momentum(start, noise, mode)
        torch.testing.assert_close(momentum, std * noise["momentum"])
    explored, trained = (model.sample(obs, noise, mode).action for mode in ("explore", "train"))
    assert (explored - trained).abs().mean() > 0.1


@pytest.mark.parametrize(
    ("explore", "train"),
    [("hamiltonian", "gaussian"), ("gaussian", "hamiltonian")],
    ids=["baseline 2", "baseline 3"],
)
def test_samplers_of_exploring_and_training_are_two_choices(explore: str, train: str) -> None:
    """Table II: the chain may act in exploration only, or in training only."""
    model = _model(_settings(**PROPOSED, explore_sampler=explore, train_sampler=train))
    obs, noise = _inputs(model)
    mean, log_std = model.sampler.policy(obs)
    start = torch.tanh(mean + log_std.exp() * noise["base"])
    for mode, sampler in (("explore", explore), ("train", train)):
        moved = (model.sample(obs, noise, mode).action - start).abs().max()
        assert moved == 0.0 if sampler == "gaussian" else moved > 0.05


def _far_out(clip_gradient: str) -> tuple[Tensor, Tensor]:
    """Return the action and its gradient in the policy's last bias, with a chain that leaves [-1, 1]."""
    model = _model(
        _settings(**PROPOSED | {"step_size": 1.0, "momentum_std_train": 2.0}, clip_gradient=clip_gradient)
    )
    obs, noise = _inputs(model)
    action = model.sample(obs, noise, "train").action
    bias = model.sampler.policy.network[-1].bias
    outside = action.abs() == 1
    assert 0.2 < outside.float().mean() < 0.95
    (gradient,) = torch.autograd.grad(action[outside].sum(), bias)
    return action, gradient


def test_actions_are_clipped_once_at_the_end() -> None:
    """Returned actions are in [-1, 1]; the chain itself is not clipped (the literal chain also clips at the end)."""
    for clip_gradient in ("zero", "straight_through"):
        action, _ = _far_out(clip_gradient)
        assert action.abs().max() == 1.0


def test_gradient_of_clipped_components() -> None:
    """`zero`: none, as of min and max; `straight_through`: as if the component had not been clipped."""
    assert (_far_out("zero")[1] == 0).all()
    assert (_far_out("straight_through")[1] != 0).any()


def test_gradient_reaches_the_sampler_only() -> None:
    """The critics inside the chain are constants; only policy and leapfrog networks get gradients."""
    model = _model(_settings(**PROPOSED, learn_step_size=True))
    model.target_critics.requires_grad_(True)
    obs, noise = _inputs(model)
    sample = model.sample(obs, noise, "train")
    (sample.action.sum() + sample.log_prob.sum()).backward()
    assert all(p.grad is None for p in model.target_critics.parameters())
    assert all(p.grad is not None and (p.grad != 0).any() for p in model.sampler.parameters())


def test_detached_rows() -> None:
    """The first rows have the same values and no gradient, since next states and states run as one batch."""
    model = _model(_settings(**PROPOSED, momentum_penalty=True))
    obs, noise = _inputs(model)
    whole = model.sample(obs, noise, "train")
    cut = model.sample(obs, noise, "train", detached_rows=ROWS // 2)
    for all_rows, some_rows in zip(whole, cut, strict=True):
        torch.testing.assert_close(all_rows, some_rows, rtol=1e-13, atol=1e-13)
    parameters = list(model.sampler.policy.parameters())
    halves = []
    for sample in (whole, cut):
        loss = sum(part[ROWS // 2 :].sum() for part in sample)
        halves.append(torch.autograd.grad(loss, parameters, retain_graph=True))
    torch.testing.assert_close(halves[0], halves[1], rtol=1e-10, atol=1e-12)
    first = torch.autograd.grad(cut.log_prob[: ROWS // 2].sum(), parameters, allow_unused=True)
    assert all(g is None or (g == 0).all() for g in first)


def test_step_sizes() -> None:
    """One number, one per dimension, or learned through a softplus that starts at the given number(s)."""
    assert HamiltonianSampler(OBS, DIM, _settings(step_size=0.25)).step_size == 0.25
    several = HamiltonianSampler(OBS, DIM, _settings(step_size=[0.125, 0.25, 0.5])).step_size
    torch.testing.assert_close(several, torch.tensor([0.125, 0.25, 0.5]))
    learned = HamiltonianSampler(OBS, DIM, _settings(step_size=[0.05, 0.25, 3.0], learn_step_size=True))
    torch.testing.assert_close(learned.step_size, torch.tensor([0.05, 0.25, 3.0]))
    assert "raw_step_size" in dict(learned.named_parameters())


def test_step_sizes_of_a_wrong_number() -> None:
    """A list must have one number per action dimension."""
    with pytest.raises(SettingsError, match="2 numbers, but actions have 3"):
        HamiltonianSampler(OBS, DIM, _settings(step_size=[0.1, 0.2]))


def test_diagnostics() -> None:
    """The displacement is split into the chain without momentum (drift) and the rest (noise)."""
    model = _model(_settings(**PROPOSED | {"momentum_std_train": 1.0}))
    obs, noise = _inputs(model)
    critic = model.target_critics.condition(obs)
    ours = model.sampler.diagnose(obs, noise, mode="train", critic=critic, alpha=model.alpha)
    net = networks_of(model)

    def q_value(action: Tensor) -> Tensor:
        return reference.min_q(net.targets, obs, action)

    mean, log_std = model.sampler.policy(obs)
    start = torch.tanh(mean + log_std.exp() * noise["base"])
    force = model.sampler.force(obs, critic, model.alpha)
    end, momentum = model.sampler.evolve(start, noise["momentum"], force, "train", final_kick=True)
    drifted, _ = model.sampler.evolve(start, torch.zeros_like(start), force, "train", final_kick=True)
    expected = {
        "q_gain": (q_value(end.clamp(-1, 1)) - q_value(start)).mean(),
        "clipped_share": (end.abs() > 1).double().mean(),
        "momentum_norm": momentum.norm(dim=-1).mean(),
        "displacement": (end - start).norm(dim=-1).mean(),
        "displacement_drift": (drifted - start).norm(dim=-1).mean(),
        "displacement_noise": (end - drifted).norm(dim=-1).mean(),
    }
    for name, value in expected.items():
        assert ours[name].item() == pytest.approx(value.item(), rel=1e-6), name
    assert 0 < ours["gate_mean"] < 1
    assert ours["action_gradient_norm"] > 0


def test_constant_force_displacement() -> None:
    """A constant unit force from rest moves the action by eps^2 K^2 / 2: 0.18 for HalfCheetah's numbers."""
    sampler = HamiltonianSampler(1, 2, _settings(leapfrog_steps=3, step_size=0.2)).double()
    direction = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    start = torch.zeros(1, 2, dtype=torch.float64)
    end, _ = sampler.evolve(start, start, lambda _: -direction, "train", final_kick=False)
    np.testing.assert_allclose(end.numpy(), 0.5 * (0.2 * 3) ** 2 * direction.numpy(), rtol=1e-12)

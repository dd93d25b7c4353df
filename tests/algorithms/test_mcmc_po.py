"""Test MCMC policy optimization: the update against a float64 transcription, its invariances and its settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_hpo.algorithms.losses import policy_loss
from rllib_hpo.algorithms.mcmc_po import MCMCPO, MCMCPOModel, MCMCPOSettings
from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.errors import NonFiniteError, SettingsError
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch
from rllib_hpo.settings import SACSettings, Settings, parse_settings
from rllib_hpo.streams import TorchStreams
from tests.reference.densities import normal_log_prob, tanh_log_det
from tests.reference.updates import step, track
from tests.samplers.landscapes import Landscape, hill_and_bump

OBS, DIM, ROWS, UNITS = 4, 2, 32, 16
SMALL: dict[str, Any] = {"hidden_units": UNITS, "lr": 1e-3}
FORMS: dict[str, MCMCPOSettings] = {
    "default": MCMCPOSettings(**SMALL),
    "gated, in turn": MCMCPOSettings(**SMALL, force_gate="gated", alternate=True, leapfrog_steps=2),
    "snapshots": MCMCPOSettings(**SMALL, prior="snapshot", prior_every=3, step_size=0.3, derivative_gain=0.1),
    "fixed, with the distance in the value": MCMCPOSettings(
        **SMALL, multiplier="fixed", beta=0.5, value_kl=True
    ),
    "paper": MCMCPOSettings(**SMALL, form="paper", step_size=0.01),
    "no steps": MCMCPOSettings(**SMALL, leapfrog_steps=0),
}
each_form = pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)


def _batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    ended = (torch.rand(ROWS, generator=generator) < 0.3).double()
    return Batch(normal(ROWS, OBS), normal(ROWS, DIM).tanh(), normal(ROWS), ended, normal(ROWS, OBS))


def _noise(seed: int, rows: int = 2 * ROWS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1_000 + seed)
    return {
        name: torch.randn(rows, DIM, generator=generator, dtype=torch.float64)
        for name in ("base", "momentum")
    }


class Reference:
    """Transcribe the update equation by equation, with forces by autograd of log-densities and torch's own Adam."""

    def __init__(self, model: MCMCPOModel, settings: MCMCPOSettings) -> None:
        self.settings, self.num_updates = settings, 0
        self.is_paper = settings.form == "paper"
        self.p = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.online = [name for name in self.p if name.startswith(("critics.", "sampler."))]
        for name in self.online:
            self.p[name].requires_grad_()
        self.kappa = self.integral = settings.initial_kappa
        if self.is_paper:
            self.integral /= settings.integral_gain
        self.error, self.scale = 0.0, 0.0
        policy = [self.p[name] for name in self.online if name.startswith("sampler.policy")]
        chain = [
            self.p[n] for n in self.online if n.startswith("sampler") and not n.startswith("sampler.policy")
        ]
        parts = [policy, chain] if settings.alternate else [policy + chain]
        self.policies = [torch.optim.Adam(part, settings.lr) for part in parts]
        self.critic = torch.optim.Adam(
            [self.p[n] for n in self.online if n.startswith("critics")], settings.lr
        )

    def gaussian(self, prefix: str, obs: Tensor) -> tuple[Tensor, Tensor]:
        values = obs
        for k in (0, 2, 4):
            values = F.linear(
                values, self.p[f"{prefix}.network.{k}.weight"], self.p[f"{prefix}.network.{k}.bias"]
            )
            values = values.relu() if k < 4 else values
        mean, log_std = values.chunk(2, -1)
        return mean, log_std.clamp(-3, 2).exp()

    def q(self, prefix: str, obs: Tensor, action: Tensor) -> Tensor:
        """min(Q_1, Q_2)."""
        found = []
        for number in range(2):
            values = torch.cat([obs, action], -1)
            for k in range(3):
                weight, bias = self.p[f"{prefix}.weights.{k}"], self.p[f"{prefix}.biases.{k}"]
                values = F.linear(values, weight[number], bias[number, 0])
                values = values.relu() if k < 2 else values.squeeze(-1)
            found.append(values)
        return torch.stack(found)

    def beta(self, scale: float) -> float:
        settings = self.settings
        if settings.multiplier == "fixed":
            return settings.beta
        return max(self.kappa if self.is_paper else self.kappa * scale, 1e-6)

    def network(self, name: str, inputs: Tensor) -> Tensor:
        for k in (0, 2, 4):
            inputs = F.linear(
                inputs, self.p[f"sampler.gate.{name}.{k}.weight"], self.p[f"sampler.gate.{name}.{k}.bias"]
            )
            inputs = F.elu(inputs) if k < 4 else inputs
        return inputs

    def log_p(self, obs: Tensor, previous: tuple[Tensor, Tensor], x: Tensor, beta: float) -> Tensor:
        """log target of eq. (12) in the chain's coordinates."""
        mean, std = previous
        if self.is_paper:
            u = torch.atanh(x.clamp(-1 + 1e-6, 1 - 1e-6))
            log_prior = normal_log_prob(u, mean, std) - tanh_log_det(u)
            return self.q("target_critics", obs, x).amin(0) / beta + log_prior
        return self.q("target_critics", obs, torch.tanh(mean + std * x)).amin(0) / beta + normal_log_prob(x)

    def sample(self, obs: Tensor, noise: dict[str, Tensor], beta: float) -> tuple[Tensor, Tensor]:
        """a_K and D."""
        mean, std = self.gaussian("sampler.policy", obs)
        before = tuple(value.detach() for value in self.gaussian("previous", obs))
        u, rho = mean + std * noise["base"], noise["momentum"]
        log_base = normal_log_prob(u, mean, std) - (tanh_log_det(u) if self.is_paper else 0)
        x = torch.tanh(u) if self.is_paper else (u - before[0]) / before[1]
        eps = F.softplus(self.p["sampler.raw_step_size"])

        def force(x: Tensor) -> Tensor:
            at = x if x.requires_grad else x.detach().requires_grad_()
            log_p = self.log_p(obs, before, at, beta).sum()
            g = -torch.autograd.grad(log_p, at, create_graph=True)[0]
            if "sampler.gate.gate.0.weight" not in self.p:
                return g
            seen = torch.cat([obs, before[0] + before[1] * x, g / (1 + g.norm(dim=-1, keepdim=True))], -1)
            share = torch.sigmoid(self.network("gate", seen))
            return share * g + (1 - share) * torch.tanh(self.network("transform", seen))

        for _ in range(self.settings.leapfrog_steps):
            rho = rho - eps / 2 * force(x)
            x = x + eps * rho
            rho = rho - eps / 2 * force(x)
        if self.is_paper:
            end = torch.atanh(x.clamp(-1 + 1e-6, 1 - 1e-6))
            log_prior, action = normal_log_prob(end, *before) - tanh_log_det(end), x.clamp(-1, 1)
        else:
            end = before[0] + before[1] * x
            log_prior, action = normal_log_prob(end, *before), torch.tanh(end)
        momenta = normal_log_prob(noise["momentum"]) - normal_log_prob(rho)
        return action, log_base - log_prior + momenta

    def update(self, batch: Batch, noise: dict[str, Tensor]) -> None:
        settings = self.settings
        self.num_updates += 1
        theirs, own = ({name: value.chunk(2)[k] for name, value in noise.items()} for k in (0, 1))
        norm = self.gradient_norm(batch.obs, own)
        self.scale = 0.99 * self.scale + 0.01 * norm if self.num_updates > 1 else norm
        beta = self.beta(self.scale)
        action, distance = (value.detach() for value in self.sample(batch.next_obs, theirs, beta))
        with torch.no_grad():
            value = self.q("target_critics", batch.next_obs, action).amin(0)
            value = value - beta * distance if settings.value_kl else value
            target = batch.reward + settings.gamma * (1 - batch.terminated) * value
        q = self.q("critics", batch.obs, batch.action)
        step(self.p, self.online, self.critic, ((q - target) ** 2).mean(-1).sum())
        distances = []
        for optimizer in self.policies:
            action, distance = self.sample(batch.obs, own, beta)
            distances.append(distance.mean().item())
            q = self.q("critics", batch.obs, action).amin(0)
            step(self.p, self.online, optimizer, (beta * distance - q).mean())
        is_snapshot = settings.prior == "snapshot"
        if not is_snapshot or self.num_updates % settings.prior_every == 0:
            self.control(distances[0])
            track(self.p, "previous", "sampler.policy", 1.0 if is_snapshot else settings.prior_tau)
        track(self.p, "target_critics", "critics", settings.tau)

    def gradient_norm(self, obs: Tensor, noise: dict[str, Tensor]) -> float:
        mean, std = self.gaussian("sampler.policy", obs)
        u = (mean + std * noise["base"]).detach().requires_grad_()
        action = torch.tanh(u)
        q = self.q("target_critics", obs, action).amin(0).sum()
        wrt, factor = (action, 1) if self.is_paper else (u, self.gaussian("previous", obs)[1])
        return (factor * torch.autograd.grad(q, wrt)[0]).norm(dim=-1).mean().item()

    def control(self, distance: float) -> None:
        s, before = self.settings, self.error
        if self.is_paper:
            self.error = distance - s.target_distance
            self.integral = max(self.integral + self.error, 0)
            terms = s.proportional_gain * self.error + s.integral_gain * self.integral
            self.kappa = max(terms + s.derivative_gain * (self.error - before), 0)
            return
        self.error = min(max(distance / s.target_distance - 1, -1), 3)
        self.integral = min(max(self.integral + s.integral_gain * self.error, 0), s.max_kappa)
        terms = s.proportional_gain * self.error + self.integral
        self.kappa = max(terms + s.derivative_gain * (self.error - before), s.min_kappa)


@each_form
def test_updates_are_those_of_the_equations(settings: MCMCPOSettings) -> None:
    """All parameters, copies and terms of the control agree after 8 updates in float64."""
    method = make_method(settings)
    model = method.make_model(OBS, DIM, seed=0).double()
    reference, steps = Reference(model, settings), Steps(method.make_optimizers(model))
    for number in range(1, 9):
        batch, noise = _batch(number), _noise(number)
        method.update(model, batch, noise, steps, method.kind(number))
        reference.update(batch, noise)
    found = model.state_dict()
    if settings.multiplier == "pid":
        for name in ("kappa", "integral", "error"):
            assert found[f"multiplier.{name}"].item() == pytest.approx(getattr(reference, name), rel=1e-6), (
                name
            )
    assert found["multiplier.scale"].item() == pytest.approx(reference.scale, rel=1e-6)
    for name, value in found.items():
        if not name.startswith("multiplier"):
            torch.testing.assert_close(value, reference.p[name].detach(), rtol=0, atol=1e-8, msg=name)


def _improved(
    landscape: Landscape,
    num_updates: int,
    prepare: Callable[[MCMCPOModel], None] = lambda model: None,
    **values: Any,
) -> tuple[MCMCPO, MCMCPOModel, list[float]]:
    """Train a float64 model's policy on a known value; return it, and the distances on the way."""
    settings = MCMCPOSettings(**SMALL | values)
    method = make_method(settings)
    model = method.make_model(OBS, DIM, seed=0).double()
    optimizers = method.make_optimizers(model)
    model.critics, model.target_critics = landscape, landscape
    prepare(model)
    steps = Steps({name: optimizer for name, optimizer in optimizers.items() if name != "critic"})
    distances = []
    for number in range(1, num_updates + 1):
        noise, obs = _noise(number, ROWS), _batch(number).obs
        scale = model.multiplier.next_scale(method.gradient_norm(model, obs, noise))
        metrics = method.improve(model, obs, noise, steps, method.kind(number), scale)
        distances.append(metrics["prior_distance_mean"].item())
    return method, model, distances


def test_the_unit_of_rewards_changes_nothing_but_beta() -> None:
    """With a hundredfold Q, distances and actions are equal after 100 updates, and beta is a hundredfold."""
    _, one, distances = _improved(Landscape(hill_and_bump), 100)
    _, other, theirs = _improved(Landscape(lambda action: 100 * hill_and_bump(action)), 100)
    assert theirs == pytest.approx(distances, rel=1e-4)
    obs = _batch(0).obs
    torch.testing.assert_close(one.act(obs), other.act(obs), rtol=0, atol=1e-4)
    assert other.multiplier.beta().item() == pytest.approx(100 * one.multiplier.beta().item(), rel=1e-4)


def test_the_distance_is_held_at_its_target() -> None:
    _, model, distances = _improved(Landscape(hill_and_bump), 400)
    late = torch.tensor(distances[200:]).mean().item()
    assert 0.05 < late < 0.2
    assert hill_and_bump(model.act(_batch(0).obs)).mean() > 0.9


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_with_a_flat_value_the_policy_stays_at_the_previous_one(shift: float) -> None:
    """A policy that started elsewhere returns to it, since the loss then consists of the distance alone."""

    def displace(model: MCMCPOModel) -> None:
        list(model.previous.parameters())[-1].data.add_(shift)

    def divergence(model: MCMCPOModel) -> float:
        one, other = model.sampler.policy(_batch(0).obs), model.previous(_batch(0).obs)
        normals = (torch.distributions.Normal(g.mean, g.log_std.exp()) for g in (one, other))
        return torch.distributions.kl_divergence(*normals).sum(-1).mean().item()

    flat = Landscape(lambda action: 0 * action.sum(-1))
    _, model, _ = _improved(flat, 200, displace, prior="snapshot", prior_every=1_000)
    assert divergence(model) < 0.04
    start = make_method(model.settings).make_model(OBS, DIM, seed=0).double()
    displace(start)
    assert divergence(start) == 0 or divergence(start) > 10 * divergence(model)
    assert model.multiplier.beta() > 0


def test_the_previous_policy_is_moved_by_copies_alone() -> None:
    method = make_method(MCMCPOSettings(**SMALL))
    model = method.make_model(OBS, DIM, seed=0).double()
    noise = {name: value[:ROWS] for name, value in _noise(0).items()}
    drawn = model.draw(_batch(0).obs, noise, model.multiplier.beta())
    method.loss(model, _batch(0).obs, drawn, model.multiplier.beta()).backward()
    moved = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert moved == {name for name in dict(model.named_parameters()) if name.startswith("sampler.")}


def test_snapshots_are_made_when_due() -> None:
    settings = MCMCPOSettings(**SMALL, prior="snapshot", prior_every=3)
    method = make_method(settings)
    model = method.make_model(OBS, DIM, seed=0).double()
    steps = Steps(method.make_optimizers(model))
    for number in range(1, 8):
        before = model.previous.state_dict()["network.0.weight"].clone()
        method.update(model, _batch(number), _noise(number), steps, method.kind(number))
        weight = model.previous.state_dict()["network.0.weight"]
        if number % 3:
            assert torch.equal(weight, before)
        else:
            assert torch.equal(weight, model.sampler.policy.state_dict()["network.0.weight"])


def test_actions_without_noise_are_a_chain_from_the_mean() -> None:
    settings = MCMCPOSettings(**SMALL, leapfrog_steps=3)
    actor = make_method(settings).make_actor(OBS, DIM, seed=0).double()
    for parameter in actor.previous.parameters():
        parameter.data.mul_(0.9)
    obs = _batch(0).obs
    base, before = actor.sampler.policy(obs), actor.previous(obs)
    x, rho, eps = (base.mean - before.mean) / before.log_std.exp(), torch.zeros(ROWS, DIM).double(), 0.1
    target, beta = actor.target(obs), actor.multiplier.beta()
    for _ in range(3):
        rho = rho - eps / 2 * sum(target.parts(x, beta))
        x = x + eps * rho
        rho = rho - eps / 2 * sum(target.parts(x, beta))
    torch.testing.assert_close(actor.act(obs), torch.tanh(before.mean + before.log_std.exp() * x))
    explored = actor.act(obs, TorchStreams(0, "test"))
    assert not torch.allclose(explored, actor.act(obs))
    assert explored.abs().max() < 1


def test_diagnostics_tell_the_parts_of_the_force_apart() -> None:
    """With equal means the density does not move the action, and Q alone does."""
    method = make_method(MCMCPOSettings(**SMALL))
    model = method.make_model(OBS, DIM, seed=0)
    noise = {name: torch.zeros(2 * ROWS, DIM) for name in ("base", "momentum")}
    batch = Batch(*(value.float() for value in _batch(0)[:5]))
    found = {name: value.item() for name, value in method.diagnose(model, batch, noise).items()}
    assert found["displacement_prior"] == 0
    assert found["displacement_noise"] == 0
    assert found["displacement_value"] > 0
    assert found["displacement"] == pytest.approx(found["displacement_drift"])
    assert found["step_size_mean"] == pytest.approx(0.1)
    assert {"prior_distance", "beta", "kappa", "pid_error", "pid_integral", "force_norm_ema"} <= found.keys()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"leapfrog_steps": -1}, "leapfrog_steps=-1 must be greater than or equal to 0"),
        ({"gate_layers": 0}, "gate_layers=0 must be greater than or equal to 1"),
        ({"step_size": 0.0}, "step_size=0.0 must be greater than 0"),
        ({"prior": "none"}, "prior='none' must be 'polyak' or 'snapshot'"),
        ({"form": "literal"}, "form='literal' must be 'whitened' or 'paper'"),
        ({"min_log_std": 1.0}, "min_log_std=1.0 must be less than or equal to 0"),
        ({"alpha": 0.2}, "'alpha' is not a setting of MCMCPO"),
    ],
)
def test_settings_are_validated(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_settings(MCMCPOSettings, values)


@pytest.mark.parametrize(
    ("values", "idle"),
    [
        ({"gate_units": 8}, "gate_units has no effect with force_gate='none'."),
        ({"prior_every": 50}, "prior_every has no effect with prior='polyak'."),
        ({"prior": "snapshot", "prior_tau": 0.1}, "prior_tau has no effect with prior='snapshot'."),
        ({"beta": 1.0}, "beta has no effect with multiplier='pid'."),
    ],
)
def test_settings_without_effect_are_named(values: dict[str, Any], idle: str) -> None:
    assert MCMCPOSettings(**values).notices() == [idle]


def test_a_list_of_step_sizes_has_one_for_each_dimension() -> None:
    method = make_method(MCMCPOSettings(**SMALL, step_size=[0.1, 0.2]))
    torch.testing.assert_close(method.make_actor(OBS, 2, seed=0).sampler.step_size, torch.tensor([0.1, 0.2]))
    with pytest.raises(SettingsError, match="step_size has 2 numbers, but actions have 3 dimensions"):
        method.make_actor(OBS, 3, seed=0)


def test_the_papers_form_warns() -> None:
    (notice,) = MCMCPOSettings(form="paper").notices()
    assert "singular" in notice
    assert MCMCPOSettings().notices() == []


def test_the_papers_form_names_a_loss_that_is_not_finite() -> None:
    method = make_method(MCMCPOSettings(**SMALL, form="paper", step_size=1e20))
    model = method.make_model(OBS, DIM, seed=0)
    batch = Batch(*(value.float() for value in _batch(0)[:5]))
    noise = {name: value.float() for name, value in _noise(0).items()}
    with pytest.raises(NonFiniteError, match=r"The policy loss is (inf|nan)"):
        method.update(model, batch, noise, Steps(method.make_optimizers(model)), "update")


def two_hills(action: Tensor) -> Tensor:
    """Hills of width 0.3 at +-0.6, of heights 1 and 0.95, (B,) of (B, 1)."""
    return (torch.exp(-(((action - 0.6) / 0.3) ** 2)) + 0.95 * torch.exp(-(((action + 0.6) / 0.3) ** 2))).sum(
        -1
    )


def _shares(settings: Settings, num_updates: int) -> tuple[float, float]:
    """Return the shares of 1,000 draws within 0.3 of the higher and the lower hill, after policy updates alone."""
    method = make_method(settings)
    model = method.make_model(1, 1, seed=0)
    optimizers = method.make_optimizers(model)
    model.critics = model.target_critics = Landscape(two_hills)
    steps = Steps({name: optimizer for name, optimizer in optimizers.items() if name != "critic"})
    generator, obs = torch.Generator().manual_seed(0), torch.zeros(64, 1)
    for number in range(1, num_updates + 1):
        noise = {name: torch.randn(64, 1, generator=generator) for name in ("base", "momentum")}
        if isinstance(method, MCMCPO):
            scale = model.multiplier.next_scale(method.gradient_norm(model, obs, noise))
            method.improve(model, obs, noise, steps, method.kind(number), scale)
        else:
            sample = model.sample(obs, noise, "train", critic=model.target_critics)
            steps.descend("policy", policy_loss(two_hills(sample.action), sample.log_prob, None, model.alpha))
    action = model.act(torch.zeros(1_000, 1), TorchStreams(0, "test"))
    higher, lower = (((action - center).abs() < 0.3).float().mean().item() for center in (0.6, -0.6))
    return higher, lower


NEAR_THE_FIRST = {"prior": "snapshot", "prior_every": 10_000, "multiplier": "fixed", "beta": 0.2}
BANDIT: dict[str, Any] = {"hidden_units": 32, "lr": 1e-3}


@pytest.mark.slow
def test_both_modes_are_drawn_near_a_broad_policy() -> None:
    """The initial policy stays the previous one and covers both hills; SAC with the paper's alpha loses one."""
    assert min(_shares(MCMCPOSettings(**BANDIT, **NEAR_THE_FIRST), 3_000)) >= 0.2
    assert min(_shares(SACSettings(**BANDIT, alpha=0.05), 3_000)) < 0.02


@pytest.mark.slow
def test_what_keeps_both_modes_is_the_previous_policy() -> None:
    """No steps are needed to keep both modes; a previous policy that follows the policy loses the lower hill."""
    assert min(_shares(MCMCPOSettings(**BANDIT, **NEAR_THE_FIRST, leapfrog_steps=0), 3_000)) >= 0.2
    higher, lower = _shares(MCMCPOSettings(**BANDIT), 3_000)
    assert lower < 0.2 < higher

"""Test Langevin flows: the update against a float64 transcription, copies, exploration, settings and notices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_hpo.algorithms.langevin_po import LangevinPOModel, LangevinPOSettings
from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.errors import NonFiniteError, SettingsError
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch
from rllib_hpo.settings import parse_settings
from rllib_hpo.streams import TorchStreams
from tests.reference.updates import step, track
from tests.samplers.landscapes import Landscape

OBS, ROWS, UNITS = 4, 32, 16
SMALL: dict[str, Any] = {"hidden_units": UNITS, "lr": 1e-3}
FORMS: dict[str, tuple[LangevinPOSettings, int]] = {
    "default": (LangevinPOSettings(**SMALL, integral_gain=0.5), 2),
    "three dimensions, in turn": (LangevinPOSettings(**SMALL, alternate=True, flow_step_size=0.5), 3),
    "one dimension, from a start": (LangevinPOSettings(**SMALL, initial_kappa=1.0, flow_layers=3), 1),
    "without proximity or state": (LangevinPOSettings(**SMALL, proximity=False, flow_sees_state=False), 2),
    "fixed": (LangevinPOSettings(**SMALL, multiplier="fixed", beta=0.5, policy_delay=1), 2),
    "paper": (LangevinPOSettings(**SMALL, form="paper", initial_kappa=1.0), 2),
}
each_form = pytest.mark.parametrize(("settings", "dim"), FORMS.values(), ids=FORMS)


def _batch(seed: int, dim: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    ended = (torch.rand(ROWS, generator=generator) < 0.3).double()
    return Batch(normal(ROWS, OBS), normal(ROWS, dim).tanh(), normal(ROWS), ended, normal(ROWS, OBS))


def _noise(seed: int, dim: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1_000 + seed)
    return {"target": torch.randn(ROWS, dim, generator=generator, dtype=torch.float64)}


class Reference:
    """Transcribe the update equation by equation, with forces by autograd and torch's own Adam."""

    def __init__(self, model: LangevinPOModel, settings: LangevinPOSettings) -> None:
        self.settings, self.num_updates = settings, 0
        self.is_paper, self.dim = settings.form == "paper", model.action_dim
        self.p = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.online = [name for name in self.p if name.startswith(("critics.", "policy.", "flow."))]
        for name in self.online:
            self.p[name].requires_grad_()
        self.kappa = self.integral = settings.initial_kappa
        if self.is_paper:
            self.integral /= settings.integral_gain
        self.error = self.scale = 0.0
        policy, flow, critics = (
            [self.p[name] for name in self.online if name.startswith(part)]
            for part in ("policy.", "flow.", "critics.")
        )
        parts = [policy, flow] if settings.alternate else [policy + flow]
        self.policies = [torch.optim.Adam(part, settings.lr) for part in parts]
        self.critic = torch.optim.Adam(critics, settings.lr)

    def plain(self, prefix: str, inputs: Tensor, layers: int) -> Tensor:
        for k in range(0, 2 * layers, 2):
            inputs = F.linear(inputs, self.p[f"{prefix}.{k}.weight"], self.p[f"{prefix}.{k}.bias"])
            if k < 2 * layers - 2:
                inputs = inputs.relu() if layers == 3 else F.elu(inputs)
        return inputs

    def q(self, prefix: str, number: int, obs: Tensor, action: Tensor) -> Tensor:
        values = torch.cat([obs, action], -1)
        for k in range(3):
            weight, bias = self.p[f"{prefix}.weights.{k}"], self.p[f"{prefix}.biases.{k}"]
            values = F.linear(values, weight[number], bias[number, 0])
            values = values.relu() if k < 2 else values.squeeze(-1)
        return values

    def beta(self, scale: float) -> float:
        if self.settings.multiplier == "fixed":
            return self.settings.beta
        return max(self.kappa if self.is_paper else self.kappa * scale, 1e-6)

    def force(self, x: Tensor, obs: Tensor, beta: float) -> Tensor:
        at = x if x.requires_grad else x.detach().requires_grad_()
        previous = self.plain("previous_policy", obs, 3).detach()
        action = at.clamp(-1, 1) if self.is_paper else torch.tanh(at)
        q = self.q("target_critics", 0, obs, action).sum()
        if self.is_paper:
            # What is clipped is where Q's gradient is taken, not what it is a gradient of.
            action = action.detach().requires_grad_()
            q = self.q("target_critics", 0, obs, action).sum()
            value = -torch.autograd.grad(q, action)[0] / beta
            offset = at - previous.tanh()
            return value + offset / ((offset**2).sum(-1, keepdim=True) + 1e-4).sqrt()
        g = torch.autograd.grad(q, at, create_graph=True)[0]
        force = g / (1 + ((g**2).sum(-1, keepdim=True) + 1e-4).sqrt())
        offset = at - previous
        pull = -offset / ((offset**2).sum(-1, keepdim=True) + 1e-4).sqrt()
        return force + pull if self.settings.proximity else force

    def flowed(self, policy: str, flow: str, obs: Tensor, beta: float) -> Tensor:
        """x_K, eq. (8) and (9)."""
        x, eps = self.plain(policy, obs, 3), self.settings.flow_step_size
        x = x.tanh() if self.is_paper else x
        for k in range(self.settings.flow_layers):
            m = torch.zeros(self.dim, dtype=torch.float64)
            if self.dim > 1:
                m[k % 2 :: 2] = 1
            seen = torch.cat([m * x, obs], -1) if self.settings.flow_sees_state else m * x
            sigma, s, t = (
                self.plain(f"{flow}.layers.{k}.{name}", seen, 2) for name in ("offset", "scale", "shift")
            )
            if not self.is_paper:
                sigma, s = 5 * torch.tanh(sigma / 5) - 5, 5 * torch.tanh(s / 5)
            inner = x + eps**2 / 2 * self.force(x, obs, beta) + eps * torch.exp(sigma)
            x = m * x + (1 - m) * (inner * s.exp() + t)
        return x

    def action(self, x: Tensor) -> Tensor:
        return x.clamp(-1, 1) if self.is_paper else x.tanh()

    def update(self, batch: Batch, noise: dict[str, Tensor]) -> None:
        settings = self.settings
        self.num_updates += 1
        target_action = self.action(
            self.flowed("target_policy", "target_flow", batch.next_obs, self.beta(self.scale or 1))
        )
        with torch.no_grad():
            noisy = target_action + (0.2 * noise["target"]).clamp(-0.5, 0.5)
            q = [self.q("target_critics", k, batch.next_obs, noisy.clamp(-1, 1)) for k in range(2)]
            target = batch.reward + settings.gamma * (1 - batch.terminated) * torch.minimum(*q)
        errors = [F.mse_loss(self.q("critics", k, batch.obs, batch.action), target) for k in range(2)]
        step(self.p, self.online, self.critic, sum(errors))
        if self.num_updates % settings.policy_delay:
            return
        norm = self.gradient_norm(batch.obs)
        self.scale = 0.99 * self.scale + 0.01 * norm if self.scale else norm
        beta, distances = self.beta(self.scale), []
        for optimizer in self.policies:
            x = self.flowed("policy", "flow", batch.obs, beta)
            action = self.action(x)
            if self.is_paper:
                offset = x - self.plain("previous_policy", batch.obs, 3).tanh()
            else:
                offset = (
                    action - self.flowed("previous_policy", "previous_flow", batch.obs, beta).tanh().detach()
                )
            distance = ((offset**2).sum(-1) + 1e-4).sqrt().mean()
            distances.append(distance.item())
            step(
                self.p,
                self.online,
                optimizer,
                beta * distance - self.q("critics", 0, batch.obs, action).mean(),
            )
        self.control(distances[0], settings.distance_target(self.dim))
        for name in ("policy", "flow"):
            track(self.p, f"previous_{name}", name, settings.prior_tau)
            track(self.p, f"target_{name}", name, settings.tau)
        track(self.p, "target_critics", "critics", settings.tau)

    def gradient_norm(self, obs: Tensor) -> float:
        action = self.plain("policy", obs, 3).tanh().detach().requires_grad_()
        q = self.q("target_critics", 0, obs, action).sum()
        return torch.autograd.grad(q, action)[0].norm(dim=-1).mean().item()

    def control(self, distance: float, target: float) -> None:
        s = self.settings
        if self.is_paper:
            self.error = distance - target
            self.integral = max(self.integral + self.error, 0)
            self.kappa = max(s.proportional_gain * self.error + s.integral_gain * self.integral, 0)
            return
        self.error = min(max(distance / target - 1, -1), 3)
        self.integral = min(max(self.integral + s.integral_gain * self.error, 0), s.max_kappa)
        self.kappa = max(s.proportional_gain * self.error + self.integral, s.min_kappa)


@each_form
def test_updates_are_those_of_the_equations(settings: LangevinPOSettings, dim: int) -> None:
    """All parameters, copies and terms of the control agree after 8 updates in float64."""
    method = make_method(settings)
    model = method.make_model(OBS, dim, seed=0).double()
    for state in (model.flow, model.target_flow, model.previous_flow):  # so that the networks matter
        for layer in state.layers:
            layer.scale[2].weight.data.mul_(30)
    reference, steps = Reference(model, settings), Steps(method.make_optimizers(model))
    for number in range(1, 9):
        batch, noise = _batch(number, dim), _noise(number, dim)
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


def test_an_actor_has_the_weights_of_a_model_of_its_seed() -> None:
    method = make_method(LangevinPOSettings(**SMALL))
    model, actor = (
        method.make_model(OBS, 2, seed=5).state_dict(),
        method.make_actor(OBS, 2, seed=5).state_dict(),
    )
    assert actor.keys() < model.keys()
    assert all(torch.equal(value, model[name]) for name, value in actor.items())


def test_exploration_is_noise_after_the_flow() -> None:
    actor = make_method(LangevinPOSettings(**SMALL)).make_actor(OBS, 2, seed=0)
    obs = torch.randn(20_000, OBS, generator=torch.Generator().manual_seed(0))
    offsets = actor.act(obs, TorchStreams(0, "test")) - actor.act(obs)
    assert offsets.std().item() == pytest.approx(0.1, rel=0.02)
    assert not torch.equal(actor.act(obs), torch.tanh(actor.policy(obs)))


def test_previous_copies_are_moved_by_copies_alone() -> None:
    method = make_method(LangevinPOSettings(**SMALL))
    model = method.make_model(OBS, 2, seed=0).double()
    method.loss(model, _batch(0, 2).obs, torch.tensor(1.0))[0].backward()
    moved = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert moved == {"policy", "flow"}


def test_with_a_flat_value_the_policy_stays_at_the_previous_one() -> None:
    settings = LangevinPOSettings(**SMALL, initial_kappa=1.0)
    method = make_method(settings)
    model = method.make_model(OBS, 2, seed=0).double()
    optimizers = method.make_optimizers(model)
    model.critics = model.target_critics = Landscape(lambda action: 0 * action.sum(-1))
    obs, steps = _batch(0, 2).obs, Steps({"policy": optimizers["policy"]})
    model.flow.layers[0].shift[2].bias.data.add_(0.2)  # the previous flow has none of it
    target = model.target(obs)

    def distance() -> float:
        gap = model(obs) - model.previous_action(obs, target)
        return gap.norm(dim=-1).mean().item()

    before = distance()
    for _ in range(100):
        method.improve(model, obs, steps)
    assert before > 0.1
    assert distance() < 0.03


def test_targets_grow_with_the_action_dimension() -> None:
    """The target is 0.05 sqrt(A / 2), or the setting."""
    assert LangevinPOSettings().distance_target(2) == pytest.approx(0.05)
    assert LangevinPOSettings().distance_target(8) == pytest.approx(0.1)
    assert LangevinPOSettings(target_distance=0.3).distance_target(8) == 0.3


def test_diagnostics_tell_the_parts_of_the_flow_apart() -> None:
    """Policy and previous policy agree, so the pull towards it stays below the smoothed norm's share."""
    method = make_method(LangevinPOSettings(**SMALL, flow_step_size=0.5))
    model = method.make_model(OBS, 2, seed=0)
    found = method.diagnose(model, Batch(*(value.float() for value in _batch(0, 2)[:5])), {})
    found = {name: value.item() for name, value in found.items()}
    assert found["prior_distance"] == pytest.approx(0.01)
    assert found["displacement_value"] > 0
    assert found["displacement"] > 0
    assert found["step_size_mean"] == 0.5
    assert {"beta", "kappa", "pid_error", "pid_integral", "force_norm_ema", "q_gain"} <= found.keys()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flow_layers": 0}, "flow_layers=0 must be greater than or equal to 1"),
        ({"target_distance": 0.0}, "target_distance=0.0 must be greater than 0 or 'auto'"),
        ({"flow_step_size": -0.1}, "flow_step_size=-0.1 must be greater than 0"),
        ({"form": "literal"}, "form='literal' must be 'matched' or 'paper'"),
        ({"initial_kappa": 20.0}, "initial_kappa=20.0 must be at most max_kappa=10.0"),
    ],
)
def test_settings_are_validated(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_settings(LangevinPOSettings, values)


def test_the_papers_form_warns() -> None:
    (notice,) = LangevinPOSettings(form="paper").notices()
    assert "after the flow against one before it" in notice
    assert LangevinPOSettings().notices() == []


def test_the_papers_form_names_a_loss_that_is_not_finite() -> None:
    method = make_method(LangevinPOSettings(**SMALL, form="paper", flow_step_size=1e20))
    model = method.make_model(OBS, 2, seed=0)
    batch = Batch(*(value.float() for value in _batch(0, 2)[:5]))
    noise = {name: value.float() for name, value in _noise(0, 2).items()}
    with pytest.raises(NonFiniteError, match=r"The (critic|policy) loss is (inf|nan)"):
        method.update(model, batch, noise, Steps(method.make_optimizers(model)), "critics and policy")

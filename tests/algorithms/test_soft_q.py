"""Test soft Q-learning: V against quadrature, the update against autograd, modes, schedules, and resumed runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rllib_hpo.algorithms.base import EvaluationNoise
from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.algorithms.soft_q import CANDIDATES, SoftQ, SoftQModel, SoftQSettings, annealed
from rllib_hpo.deployment import DeployedPolicy, PolicyMetadata, write_policy
from rllib_hpo.errors import SettingsError
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch
from rllib_hpo.samplers.svgd import direction, score
from rllib_hpo.settings import parse_settings
from rllib_hpo.streams import TorchStreams, draw_all
from tests.rllib.tiny import assert_equal, facts, loaded, running, tiny_config, train_to

OBS, DIM, ROWS = 4, 2, 16
SMALL: dict[str, Any] = {
    "hidden_units": 16,
    "particles": 5,
    "particles_updated": 3,
    "value_particles": 6,
    "copy_every": 4,
    "train_batch_size_per_learner": ROWS,
}
SCHEDULE: Any = {"from": 1.0, "to": 0.01, "steps": 100}


class GivenQ(nn.Module):
    """Replace critics by Q(s, a) = f(a), for any state."""

    def __init__(self, f: Any) -> None:
        super().__init__()
        self.f = f

    def condition(self, obs: Tensor) -> GivenQ:
        return self

    def minimum(self, obs: Tensor, action: Tensor) -> Tensor:
        value: Tensor = self.f(action)
        return value

    def minimum_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            action = action.detach().requires_grad_()
            value = self.f(action)
            (gradient,) = torch.autograd.grad(value.sum(), action)
        return value.detach(), gradient


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _batch(seed: int) -> Batch:
    ended = (torch.arange(ROWS) % 4 == 0).double()
    action = _normal(ROWS, DIM, seed=seed + 1).tanh()
    return Batch(
        _normal(ROWS, OBS, seed=seed),
        action,
        _normal(ROWS, seed=seed + 2),
        ended,
        _normal(ROWS, OBS, seed=seed + 3),
    )


def _noise(method: SoftQ, model: SoftQModel, seed: int) -> dict[str, Tensor]:
    drawn = draw_all(method.draws(model), ROWS, TorchStreams(seed, "test"))
    return {name: value.double() for name, value in drawn.items()}


def _made(**settings: Any) -> tuple[SoftQ, SoftQModel]:
    method = make_method(SoftQSettings(**SMALL | settings))
    assert isinstance(method, SoftQ)
    return method, method.make_model(OBS, DIM, seed=0).double()


def _log_integral(f: Any, dims: int, alpha: float) -> float:
    """Return alpha log of the integral of exp(f / alpha) over [-1, 1]^dims, by Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    grid = np.stack(np.meshgrid(*[nodes] * dims, indexing="ij"), -1).reshape(-1, dims)
    weight = np.prod(np.stack(np.meshgrid(*[weights] * dims, indexing="ij"), -1), -1).reshape(-1)
    values = f(torch.from_numpy(grid)).numpy() / alpha
    return alpha * (values.max() + math.log(float((weight * np.exp(values - values.max())).sum())))


@pytest.mark.parametrize("alpha", [10.0, 1.0, 0.1])
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("proposal", ["uniform", "sampler"])
def test_v_is_the_log_integral(proposal: str, dims: int, alpha: float) -> None:
    """Eq. (10) for Q(a) = -|a - 0.3|^2 with many actions equals quadrature, for both proposals."""

    def q(action: Tensor) -> Tensor:
        return -(action - 0.3).square().sum(-1)

    method = SoftQ(SoftQSettings(**SMALL | {"value_particles": 10_000, "value_proposal": "sampler"}))
    model = method.make_model(OBS, dims, seed=0).double()
    model.target_critics = GivenQ(q)
    with torch.no_grad():  # u = 1.2 xi, an invertible map that reaches the whole box
        first, _, last = [layer for layer in model.sampler.policy if isinstance(layer, nn.Linear)]
        for layer in model.sampler.policy:
            if isinstance(layer, nn.Linear):
                layer.weight.zero_()
                layer.bias.zero_()
        for k in range(dims):
            first.weight[2 * k, OBS + k], first.weight[2 * k + 1, OBS + k] = 1, -1
            last.weight[k, 2 * k], last.weight[k, 2 * k + 1] = 1.2, -1.2
        _identity(model.sampler.policy[2])
    noise = {"value": torch.rand(8, 10_000, dims, generator=torch.Generator().manual_seed(0)).double()}
    noise["value latent"] = _normal(8, 10_000, dims)
    found = method.value(model, _normal(8, OBS), noise, torch.tensor(alpha), proposal)
    assert found.mean().item() == pytest.approx(_log_integral(q, dims, alpha), abs=0.01 + 0.005 * alpha)


def _identity(layer: Any) -> None:
    layer.weight.copy_(torch.eye(len(layer.weight)))


@pytest.mark.parametrize("space", ["official", "pre_tanh", "action"])
@pytest.mark.parametrize("kernel", ["gaussian", "none"])
def test_the_policy_follows_svgd_through_the_network(space: Any, kernel: Any) -> None:
    """The gradient of the loss equals -sum_k direction_k d particle_k / d parameters, by autograd."""
    method, model = _made(svgd_space=space, kernel=kernel)
    obs, drawn, alpha = _normal(ROWS, OBS), _noise(method, model, 0)["particles"], torch.tensor(0.3)
    parameters = list(model.sampler.parameters())
    found = torch.autograd.grad(method.policy_loss(model, obs, drawn, alpha), parameters)

    num_fixed = 0 if kernel == "none" else 5
    inputs = torch.cat([obs[:, None].expand(-1, drawn.shape[1], -1), drawn], -1)
    pre_tanh = nn.Sequential(*model.sampler.policy)(inputs)
    action = torch.tanh(pre_tanh)
    scored = (action[:, :num_fixed] if num_fixed else action).detach().requires_grad_()
    q = model.critics(obs.repeat_interleave(scored.shape[1], 0), scored.flatten(0, 1))
    (gradient,) = torch.autograd.grad(q.sum(), scored)
    particles = pre_tanh if space == "pre_tanh" else action
    ascent = score(scored, gradient / alpha, space).detach()
    if num_fixed:
        ascent = direction(particles[:, :5].detach(), ascent, particles[:, 5:].detach(), "official", 1e-3)
    expected = torch.autograd.grad(particles[:, num_fixed:], parameters, grad_outputs=-ascent / ROWS)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_the_critics_follow_the_soft_bellman_error() -> None:
    method, model = _made(alpha=0.5)
    batch, noise = _batch(0), _noise(method, model, 0)
    value = method.value(model, batch.next_obs, noise, model.alpha, "uniform")
    target = batch.reward + 0.99 * (1 - batch.terminated) * value
    expected = (model.critics(batch.obs, batch.action)[0] - target).square().mean().item()
    found = method.update(model, batch, noise, Steps(method.make_optimizers(model)), method.kind(1))
    assert found["critic_loss"].item() == pytest.approx(expected, rel=1e-9)
    actions = 2 * noise["value"] - 1
    assert actions.abs().max() <= 1
    q = model.target_critics(batch.next_obs.repeat_interleave(6, 0), actions.flatten(0, 1))[0].view(ROWS, 6)
    torch.testing.assert_close(value, 0.5 * (torch.logsumexp(q / 0.5, 1) - math.log(6) + 2 * math.log(2)))


def test_the_target_is_copied_at_its_updates_and_nowhere_else() -> None:
    method, model = _made(copy_every=4)
    steps, before = Steps(method.make_optimizers(model)), None
    for update in range(1, 13):
        method.update(model, _batch(update), _noise(method, model, update), steps, method.kind(update))
        target = torch.cat([value.flatten() for value in model.target_critics.parameters()]).clone()
        online = torch.cat([value.flatten() for value in model.critics.parameters()])
        assert torch.equal(target, online) == (update % 4 == 0), update
        assert before is None or torch.equal(target, before) == (update % 4 != 0)
        before = target
    assert model.num_updates.item() == 12


def test_by_default_targets_are_copied_every_thousand_updates() -> None:
    method = make_method(SoftQSettings())
    assert [k for k in range(1, 3_001) if method.kind(k) != "uniform"] == [1_000, 2_000, 3_000]
    assert len({method.kind(k) for k in range(1, 3_001)}) == 2
    begins = make_method(SoftQSettings(value_proposal="sampler", value_uniform_updates=1_500))
    kinds = [begins.kind(k) for k in (1_000, 1_500, 1_501, 2_000)]
    assert kinds == ["uniform and copy", "uniform", "sampler", "sampler and copy"]


def _near_modes(low: float, high: float) -> float:
    """Return the largest mass within 0.3 of -0.5 or 0.5 of a tanh-Gaussian with at least 0.3 on either side of 0."""
    inner, outer = math.atanh(low), math.atanh(high)
    normal = torch.distributions.Normal(0.0, 1.0)
    mean, std = torch.meshgrid(torch.linspace(-1, 1, 41), torch.linspace(0.05, 3, 200), indexing="ij")

    def below(bound: float) -> Tensor:
        return normal.cdf((bound - mean) / std)

    mass = below(outer) - below(inner) + below(-inner) - below(-outer)
    has_both = (below(0.0) > 0.3) & (below(0.0) < 0.7)
    return float(mass[has_both].max())


def test_the_sampler_keeps_both_modes_of_a_bandit() -> None:
    """Q is the log of two narrow Gaussians at -0.5 and 0.5. No Gaussian policy covers both.

    The temperature decreases.
    """

    def q(action: Tensor) -> Tensor:
        modes = torch.cat([-((action - 0.5) / 0.1).square() / 2, -((action + 0.5) / 0.1).square() / 2], -1)
        return torch.logsumexp(modes, -1)

    settings = SoftQSettings(
        hidden_units=64, svgd_space="action", lr=2e-3, particles=32, particles_updated=32, warmup_steps=1,
        alpha={"from": 100.0, "to": 1.0, "steps": 300},
    )  # fmt: skip
    method = SoftQ(settings)
    model = method.make_model(1, 1, seed=0)
    model.critics = GivenQ(q)
    steps = Steps({"policy": torch.optim.Adam(model.sampler.parameters(), settings.lr)})
    obs, generator = torch.zeros(4, 1), torch.Generator().manual_seed(0)
    for update in range(500):
        model.num_updates.fill_(update)
        drawn = torch.randn(4, 64, 1, generator=generator)
        steps.descend("policy", method.policy_loss(model, obs, drawn, model.alpha))
    with torch.no_grad():
        drawn = torch.randn(1, 20_000, 1, generator=generator)
        action = model.actions(torch.zeros(1, 1), drawn).flatten()
    assert 0.3 < (action > 0).float().mean().item() < 0.7
    assert ((action.abs() - 0.5).abs() < 0.3).float().mean().item() > 0.9
    assert _near_modes(0.2, 0.8) < 0.7


def test_annealing_is_linear_in_the_logarithm() -> None:
    """Check the start, the middle, the end and after it; values are exact functions of the environment step."""
    for step, expected in ((0, 1.0), (50, 0.1), (100, 0.01), (1_000, 0.01)):
        assert annealed(SCHEDULE, torch.tensor(float(step))).item() == pytest.approx(expected)
    settings = SoftQSettings(
        **SMALL, alpha=SCHEDULE, noise_set={"from": 64, "to": 1, "steps": 100}, warmup_steps=20
    )
    model = SoftQModel(OBS, DIM, settings, seed=0)
    for updates, step in ((0, 20), (30, 50), (80, 100), (500, 520)):
        model.num_updates.fill_(updates)
        assert model.alpha.item() == pytest.approx(10 ** (-2 * min(step / 100, 1)), rel=1e-6)
        assert model.noise_set_size.item() == max(1, round(64 ** (1 - min(step / 100, 1))))
    slow = SoftQModel(
        OBS, DIM, SoftQSettings(**SMALL, alpha=SCHEDULE, warmup_steps=20, update_to_data=0.5), seed=0
    )
    slow.num_updates.fill_(15)
    assert slow.alpha.item() == pytest.approx(0.1, rel=1e-6)


def test_a_set_of_noise_is_nested_and_comes_down_to_one_vector() -> None:
    settings = SoftQSettings(**SMALL, noise_set={"from": 8, "to": 1, "steps": 100}, warmup_steps=1)
    model = SoftQModel(OBS, DIM, settings, seed=0)
    drawn = torch.randn(4_000, DIM, generator=torch.Generator().manual_seed(0))

    def chosen(updates: float) -> set[int]:
        model.num_updates.fill_(updates)
        found = (model.latent(drawn)[:, None] == model.noise_set).all(-1)
        assert found.any(-1).all()
        return set(found.float().argmax(-1).tolist())

    assert chosen(-1) == set(range(8))
    assert chosen(49) == {0, 1, 2}  # 8 ** 0.5 is 2.8
    assert chosen(10_000) == {0}
    shares = torch.bincount((model.noise_set[:, None] == model.latent(drawn)).all(-1).int().argmax(0))
    assert shares[0] == 4_000
    obs = torch.randn(3, OBS)
    one, other = (model.act(obs, TorchStreams(seed, "test")) for seed in (0, 1))
    assert torch.equal(one, other)


def test_with_one_vector_of_noise_particles_follow_the_gradient() -> None:
    """Particles coincide, so nothing repels, and nothing is divided by zero."""
    method, model = _made(noise_set=1, svgd_space="action")
    obs, drawn = _normal(ROWS, OBS), _noise(method, model, 0)["particles"]
    found = torch.autograd.grad(
        method.policy_loss(model, obs, drawn, torch.tensor(1.0)), list(model.sampler.parameters())
    )
    action = model.actions(obs, drawn[:, :1])
    q = model.critics.minimum(obs, action.squeeze(1))
    expected = torch.autograd.grad(-3 * q.mean(), list(model.sampler.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("evaluation_action", ["sample", "zero_noise", "best_of_particles"])
def test_evaluations_draw_from_a_stream_of_each_episode(evaluation_action: Any) -> None:
    """A concurrent episode changes nothing; other seeds draw other actions, unless there is no noise."""
    model = SoftQModel(OBS, DIM, SoftQSettings(**SMALL, evaluation_action=evaluation_action), seed=0)
    obs = torch.randn(2, OBS, generator=torch.Generator().manual_seed(0))[:1].expand(2, -1)

    def actions(seeds: list[int]) -> Tensor:
        states = obs[: len(seeds)]
        memory, noise = model.begin(states, explores=False), EvaluationNoise(model, seeds)
        drawn = []
        for _ in range(3):
            noise.draw(memory, range(len(seeds)))
            drawn.append(model.act(states, memory=memory))
        return torch.stack(drawn, 1)

    both, alone, others = actions([5, 6]), actions([5]), actions([7, 6])
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(both[1], others[1], rtol=0, atol=1e-6)
    is_drawn = evaluation_action != "zero_noise"
    assert torch.allclose(both[0], both[1], rtol=0, atol=1e-6) == (not is_drawn)
    assert torch.allclose(both[0, 0], both[0, 1], rtol=0, atol=1e-6) == (not is_drawn)


def test_the_best_of_particles_has_the_largest_q() -> None:
    model = SoftQModel(OBS, DIM, SoftQSettings(**SMALL, evaluation_action="best_of_particles"), seed=0)
    obs, drawn = torch.randn(7, OBS), torch.randn(7, CANDIDATES, DIM)
    with torch.no_grad():
        candidates = model.actions(obs, drawn)
    q = torch.stack([model.target_critics.minimum(obs, candidates[:, k]) for k in range(CANDIDATES)], 1)
    expected = candidates[torch.arange(7), q.argmax(1)]
    torch.testing.assert_close(model.act(obs, memory={"latent": drawn}), expected)


@pytest.mark.parametrize("file_format", ["torch-export", "onnx"])
@pytest.mark.parametrize("evaluation_action", ["sample", "best_of_particles"])
def test_exported_policies_take_their_noise(file_format: str, evaluation_action: Any, tmp_path: Path) -> None:
    """The noise set is an input too: the drawn noise selects among its vectors."""
    settings = SoftQSettings(
        **SMALL, evaluation_action=evaluation_action, noise_set={**SCHEDULE, "from": 8, "to": 2}
    )
    actor = make_method(settings).make_actor(OBS, DIM, seed=0)
    config = {**settings.model_dump(), "env_config": {}}
    about = {"algorithm": "soft-q", "task": "t", "env": "t", "env_steps": 0, "versions": {}, "config": config}
    box = gym.spaces.Box(-2.0, 2.0, (OBS,)), gym.spaces.Box(-1.0, 1.0, (DIM,))
    policy = DeployedPolicy(actor, PolicyMetadata.of_manifest(about, *box))
    assert policy.memory == ["latent"]
    write_policy(policy, file_format, tmp_path / "policy")
    obs, latent = torch.randn(3, OBS), torch.randn(3, *actor.memory["latent"].shape)
    expected = actor.act(obs, memory={"latent": latent})
    if file_format == "torch-export":
        action, same = torch.export.load(tmp_path / "policy").module()(obs, latent)
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "policy")
        found = session.run(None, {"obs": obs.numpy(), "latent": latent.numpy()})
        action, same = map(torch.from_numpy, found)
    torch.testing.assert_close(action, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(same, latent)


def test_rows_say_which_action_was_evaluated() -> None:
    assert SoftQSettings().evaluation_sampler() == "svgd (sample)"
    assert SoftQSettings(evaluation_action="zero_noise").evaluation_sampler() == "svgd (zero_noise)"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": "auto"}, "alpha='auto' cannot be tuned: the sampler of soft Q-learning has no density"),
        ({"alpha": {"from": 1.0, "steps": 10}}, "alpha={'from': 1.0, 'steps': 10} must be .*'to' is given"),
        ({"alpha": {"from": 1.0, "to": -1.0, "steps": 10}}, "alpha=.* must be .*greater than 0"),
        ({"alpha": {"from": 1.0, "to": 0.1, "steps": 10, "law": "linear"}}, "alpha=.* must be .*'log'"),
        ({"noise_set": 4, "value_proposal": "sampler"}, "value_proposal='sampler' requires a density"),
        ({"particles": 1}, "particles=1 must be greater than or equal to 2"),
        ({"svgd_space": "tanh"}, "svgd_space='tanh' must be 'official', 'pre_tanh' or 'action'"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_settings(SoftQSettings, settings)


def test_settings_without_effect_are_named() -> None:
    settings = SoftQSettings(kernel="none", kernel_floor=0.1, ou_theta=0.2)
    assert settings.notices() == [
        "kernel_floor has no effect with kernel='none'.",
        "ou_theta has no effect without Ornstein-Uhlenbeck noise.",
    ]


def test_schedules_and_noise_resume_bitwise(tmp_path: Path) -> None:
    config = tiny_config(
        "soft-q",
        alpha={"from": 1.0, "to": 0.01, "steps": 100},
        noise_set={"from": 16, "to": 1, "steps": 80},
        exploration_noise=0.3,
        exploration_process="ou",
        copy_every=25,
        checkpoint_every=30,
        steps_per_iteration=30,
    )
    with running(config) as whole:
        train_to(whole, 60)
        whole.save_to_path(tmp_path)
        train_to(whole, 120)
        with loaded(tmp_path) as resumed:
            train_to(resumed, 120)
            assert_equal(facts(resumed), facts(whole))
        model = whole.local_learner.trainer.model
        assert model.num_updates.item() == 100
        assert model.alpha.item() == pytest.approx(0.01)
        assert whole.actor.noise_set_size.item() == 1

"""Test TD3 and DDPG: the update against a float64 transcription, the delay, the noise, and resumed runs."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_hpo.algorithms.registry import find_settings, make_method
from rllib_hpo.algorithms.td3 import DDPGSettings, TD3Model, TD3Settings
from rllib_hpo.errors import SettingsError
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch
from rllib_hpo.settings import parse_settings
from rllib_hpo.streams import TorchStreams
from tests.rllib.tiny import assert_equal, facts, loaded, running, tiny_config, train_to

OBS, DIM, ROWS, UNITS = 4, 2, 32, 16
FORMS: dict[str, TD3Settings] = {
    "td3": TD3Settings(hidden_units=UNITS),
    "td3, loud": TD3Settings(hidden_units=UNITS, target_noise=1.0, target_noise_clip=0.3, critic_lr=1e-2),
    "td3, three critics": TD3Settings(hidden_units=UNITS, num_critics=3, policy_delay=3),
    "ddpg": DDPGSettings(hidden_units=UNITS),
}
each_form = pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)


def _batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    ended = (torch.rand(ROWS, generator=generator) < 0.3).double()
    return Batch(normal(ROWS, OBS), normal(ROWS, DIM).tanh(), normal(ROWS), ended, normal(ROWS, OBS))


def _noise(settings: TD3Settings, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1_000 + seed)
    drawn = torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64)
    return {"target": drawn} if settings.target_noise else {}


def _plain(parameters: dict[str, Tensor], prefix: str, inputs: Tensor) -> Tensor:
    """Make the policy of plain `nn.Linear` layers for autograd."""
    for k in (0, 2, 4):
        inputs = F.linear(inputs, parameters[f"{prefix}.{k}.weight"], parameters[f"{prefix}.{k}.bias"])
        inputs = inputs.relu() if k < 4 else inputs.tanh()
    return inputs


def _q(parameters: dict[str, Tensor], prefix: str, number: int, obs: Tensor, action: Tensor) -> Tensor:
    values = torch.cat([obs, action], -1)
    for k in range(3):
        weight, bias = parameters[f"{prefix}.weights.{k}"], parameters[f"{prefix}.biases.{k}"]
        values = F.linear(values, weight[number], bias[number, 0])
        values = values.relu() if k < 2 else values.squeeze(-1)
    return values


class Reference:
    """Transcribe Algorithm 1 of arXiv 1802.09477 line by line, with torch's own Adam."""

    def __init__(self, model: TD3Model, settings: TD3Settings) -> None:
        self.settings, self.num_updates = settings, 0
        self.p = {name: value.detach().clone() for name, value in model.state_dict().items()}
        online = {name for name in self.p if name.startswith(("critics", "policy"))}
        for name in online:
            self.p[name].requires_grad_()
        self.critic = torch.optim.Adam(
            [v for n, v in self.p.items() if n.startswith("critics")], settings.critic_lr or settings.lr
        )
        self.policy = torch.optim.Adam([v for n, v in self.p.items() if n.startswith("policy")], settings.lr)

    def update(self, batch: Batch, noise: dict[str, Tensor]) -> None:
        p, settings, critics = self.p, self.settings, range(self.settings.num_critics)
        self.num_updates += 1
        with torch.no_grad():
            action = _plain(p, "target_policy", batch.next_obs)
            if noise:
                bound = settings.target_noise_clip
                action = (action + (settings.target_noise * noise["target"]).clamp(-bound, bound)).clamp(
                    -1, 1
                )
            q = torch.stack([_q(p, "target_critics", k, batch.next_obs, action) for k in critics]).amin(0)
            target = batch.reward + settings.gamma * (1 - batch.terminated) * q
        self._step(
            self.critic,
            sum(F.mse_loss(_q(p, "critics", k, batch.obs, batch.action), target) for k in critics),
        )
        if self.num_updates % settings.policy_delay:
            return
        self._step(self.policy, -_q(p, "critics", 0, batch.obs, _plain(p, "policy", batch.obs)).mean())
        with torch.no_grad():
            for name, value in p.items():
                if name.startswith("target_"):
                    online = p[name.removeprefix("target_")]
                    value.mul_(1 - settings.tau).add_(settings.tau * online)

    def _step(self, optimizer: torch.optim.Optimizer, loss: Any) -> None:
        self.critic.zero_grad()
        self.policy.zero_grad()
        loss.backward()
        optimizer.step()


def _updated(settings: TD3Settings, num_updates: int) -> tuple[TD3Model, Reference, list[dict[str, Tensor]]]:
    """Return the float64 model and the transcription after equal updates, and the model's state after each."""
    method = make_method(settings)
    model = method.make_model(OBS, DIM, seed=0).double()
    reference, steps, states = Reference(model, settings), Steps(method.make_optimizers(model)), []
    for number in range(1, num_updates + 1):
        batch, noise = _batch(number), _noise(settings, number)
        method.update(model, batch, noise, steps, method.kind(number))
        reference.update(batch, noise)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    return model, reference, states


@each_form
def test_updates_are_those_of_the_paper(settings: TD3Settings) -> None:
    """Critics descend the sum of squared errors, the policy ascends the first critic, and targets follow the policy."""
    model, reference, _ = _updated(settings, 12)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, reference.p[name].detach(), rtol=0, atol=1e-9, msg=name)


@each_form
def test_the_policy_and_all_targets_move_with_a_delay(settings: TD3Settings) -> None:
    _, _, states = _updated(settings, 6)
    for number, (before, after) in enumerate(itertools.pairwise(states), start=2):
        is_due = number % settings.policy_delay == 0
        for name, value in after.items():
            assert torch.equal(value, before[name]) == (not is_due and not name.startswith("critics")), name


def test_the_targets_noise_is_clipped_and_stays_within_the_actions() -> None:
    """For any draws, the target is that of an action within the bound and within [-1, 1]."""
    settings = TD3Settings(hidden_units=UNITS)
    method = make_method(settings)
    model, batch = method.make_model(OBS, DIM, seed=0).double(), _batch(0)
    seen: list[Tensor] = []
    minimum = model.target_critics.minimum
    model.target_critics.minimum = lambda obs, action: seen.append(action) or minimum(obs, action)
    action = torch.tanh(model.target_policy(batch.next_obs))
    for scale in (1e6, -1e6, 0.1):
        method.target(model, batch, {"target": torch.full((ROWS, DIM), scale, dtype=torch.float64)})
    loud, negative, quiet = seen
    torch.testing.assert_close(loud, (action + 0.5).clamp(max=1))
    torch.testing.assert_close(negative, (action - 0.5).clamp(min=-1))
    torch.testing.assert_close(quiet, (action + 0.02).clamp(max=1))


def test_exploration_is_the_policy_and_noise() -> None:
    settings = TD3Settings(hidden_units=UNITS, exploration_noise=0.1)
    actor = make_method(settings).make_actor(OBS, DIM, seed=0)
    obs = torch.randn(20_000, OBS, generator=torch.Generator().manual_seed(0))
    offsets = actor.act(obs, TorchStreams(0, "test")) - actor.act(obs)
    assert offsets.mean().item() == pytest.approx(0, abs=0.003)
    assert offsets.std().item() == pytest.approx(0.1, rel=0.02)


def test_the_ornstein_uhlenbeck_process_remembers_its_episode() -> None:
    """Its stationary std is sigma / sqrt(1 - (1 - theta)^2) = 0.57 for 0.3 and 0.15; an episode starts at 0."""
    settings = TD3Settings(hidden_units=UNITS, exploration_process="ou", exploration_noise=0.3)
    actor = make_method(settings).make_actor(OBS, DIM, seed=0)
    obs, streams = torch.zeros(4_000, OBS), TorchStreams(0, "test")
    memory = actor.begin(obs)
    assert not memory["noise"].any()
    action = actor.act(obs, streams, memory)
    assert memory["noise"].std().item() == pytest.approx(0.3, rel=0.03)
    torch.testing.assert_close(action, (actor.act(obs) + memory["noise"]).clamp(-1, 1))
    for _ in range(40):
        last = memory["noise"]
        actor.act(obs, streams, memory)
    assert memory["noise"].std().item() == pytest.approx(0.3 / math.sqrt(1 - 0.85**2), rel=0.03)
    pairs = np.corrcoef(last.flatten(), memory["noise"].flatten())
    assert pairs[0, 1] == pytest.approx(0.85, abs=0.02)
    assert actor.begin(obs, explores=False) == {}


@pytest.mark.parametrize("name", ["alpha", "target_entropy", "objective_critic", "initial_alpha"])
@pytest.mark.parametrize("algorithm", ["td3", "ddpg"])
def test_there_is_no_temperature(algorithm: str, name: str) -> None:
    with pytest.raises(SettingsError, match=f"'{name}' is not a setting of"):
        parse_settings(find_settings(algorithm), {name: 0.2})


def test_a_process_of_noise_resumes_in_the_middle_of_its_episodes(tmp_path: Path) -> None:
    """The resumed run is bitwise equal, with several environments."""
    config = tiny_config("ddpg", exploration_process="ou", checkpoint_every=30, steps_per_iteration=30)
    with running(config.env_runners(num_envs_per_env_runner=2)) as whole:
        train_to(whole, 90)
        whole.save_to_path(tmp_path)
        states = whole.env_runner.get_state()["environments"]
        assert all(np.abs(state["memory"]["noise"]).max() > 0 for state in states)
        train_to(whole, 150)
        with loaded(tmp_path) as resumed:
            train_to(resumed, 150)
            assert_equal(facts(resumed), facts(whole))


def test_a_process_of_noise_needs_the_new_stack() -> None:
    config = tiny_config("ddpg", exploration_process="ou").api_stack(False, False)
    with pytest.raises(
        SettingsError, match=r"algorithm='ddpg' .* needs memory within episodes, which RLlib's old"
    ):
        config.build_algo()


def test_a_learning_rate_of_the_critics_holds_after_a_restore(tmp_path: Path) -> None:
    with running(tiny_config("td3", critic_lr=1e-3)) as built:
        train_to(built, 40)
        built.save_to_path(tmp_path)
    with running(tiny_config("td3", critic_lr=1e-2, lr=1e-4)) as other:
        other.restore_from_path(tmp_path)
        optimizers = other.local_learner.trainer.optimizers
        rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in optimizers.items()}
    assert rates == {"critic": 1e-2, "policy": 1e-4}

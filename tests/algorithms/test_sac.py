"""Test one update: Algorithm 1 of arXiv 2103.12020 against a reference that uses autograd for every derivative."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from rllib_hpo.algorithms.sac import SoftActorCriticModel
from rllib_hpo.errors import NonFiniteError
from rllib_hpo.replay.layout import Batch
from rllib_hpo.samplers.base import Noise, draw_noise
from rllib_hpo.settings import ActorCriticSettings, SACHPOSettings, SACSettings
from rllib_hpo.streams import TorchStreams
from tests.learning.engine import make_optimizers, update
from tests.learning.options import HPO, SETTINGS
from tests.readout import named_tensors, networks_of
from tests.reference import update as reference

OBS, DIM, ROWS, UPDATES = 5, 3, 32, 3
HALVES = slice(0, ROWS), slice(ROWS, None)

# A straight-through gradient is by design not the derivative of the clipped action.
DIFFERENTIABLE = {name: settings for name, settings in SETTINGS.items() if "straight through" not in name}
each_algorithm = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def _model(settings: ActorCriticSettings) -> SoftActorCriticModel:
    """Make a float64 model in mid-training.

    Targets differ from critics, and flows and leapfrog networks from their start.
    """
    model = SoftActorCriticModel(OBS, DIM, settings, seed=0).double()
    generator = torch.Generator().manual_seed(0)
    parts = (
        model.target_critics,
        getattr(model.sampler, "flow", None),
        getattr(model.sampler, "gated_force", None),
    )
    parameters = [parameter for part in parts if part is not None for parameter in part.parameters()]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def _batch(seed: int, rows: int = ROWS) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, rows, OBS, generator=generator, dtype=torch.float64)
    action = 2 * torch.rand(rows, DIM, generator=generator, dtype=torch.float64) - 1
    reward = torch.randn(rows, generator=generator, dtype=torch.float64)
    return Batch(obs, action, reward, (torch.arange(rows) % 4 == 0).double(), next_obs)


def _noise(model: SoftActorCriticModel, seed: int, rows: int = ROWS) -> Noise:
    """Draw noise for the next states (first half) and the states (second half)."""
    noise = draw_noise(model.sampler, 2 * rows, TorchStreams(seed, "test"))
    return {name: value.double() for name, value in noise.items()}


def _reference_optimizers(net: reference.Networks, lr: float) -> dict[str, torch.optim.Optimizer]:
    named = named_tensors(net)
    critic = [x for name, x in named.items() if name.startswith("critic")]
    policy = [x for name, x in named.items() if not name.startswith(("critic", "target", "log_alpha"))]
    groups = {"critic": critic, "policy": policy, "temperature": [net.log_alpha]}
    return {name: torch.optim.Adam(parameters, lr=lr, eps=1e-8) for name, parameters in groups.items()}


@pytest.mark.parametrize("name", [name for name in SETTINGS if not SETTINGS[name].critic_layer_norm])
def test_equals_the_reference(name: str) -> None:
    """Three updates on fixed batches equal those of a 60-line transcription in every parameter, to 1e-9.

    The reference goes through grad_a Q a second time ("double backward") where the package takes the unit
    gradient as a constant: equal parameters show that this is exact for ReLU critics. Those with layer normalisation
    are compared with autograd in tests/networks.
    """
    settings = SETTINGS[name]
    model = _model(settings)
    net = networks_of(model)
    start = copy.deepcopy({name: x.detach() for name, x in named_tensors(net).items()})
    optimizers = make_optimizers(model, settings)
    reference_optimizers = _reference_optimizers(net, settings.lr)
    for k in range(UPDATES):
        batch, noise = _batch(k), _noise(model, k)
        update(model, optimizers, batch, noise, settings)
        next_noise, own_noise = ({name: x[half] for name, x in noise.items()} for half in HALVES)
        reference.update(net, settings, reference_optimizers, batch._asdict(), next_noise, own_noise)
    ours, theirs = named_tensors(networks_of(model)), named_tensors(net)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert (ours[key] - value).abs().max() < 1e-9, key
    for key in _learning(settings, start):
        assert (ours[key] - start[key]).abs().max() > 1e-6, f"{key} did not learn"


def _learning(settings: ActorCriticSettings, names: dict[str, Tensor]) -> list[str]:
    """Return the tensors that an update must change."""
    still = [] if settings.alpha == "auto" else ["log_alpha"]
    if isinstance(settings, SACHPOSettings):
        chain = settings.leapfrog_steps > 0 and settings.train_sampler == "hamiltonian"
        still += [] if chain else ["transform", "gate"]
    return [name for name in names if not name.startswith(tuple(still))]


@pytest.mark.parametrize("settings", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
def test_gradients_are_those_of_the_losses(settings: ActorCriticSettings) -> None:
    """The gradients in `.grad` after an update equal finite differences of the reported losses.

    With ReLU critics both losses have kinks, and the force jumps at them. Finite differences are the derivative only
    where no kink lies within the perturbation: eight rows, 1e-6 and these seeds leave none. Adam's step size is so
    small that parameters do not change.
    """
    rows = 8
    settings = settings.model_copy(update={"lr": 1e-30})
    model = _model(settings)
    batch, noise = _batch(1, rows), _noise(model, 1, rows)

    def losses(model: SoftActorCriticModel) -> dict[str, Tensor]:
        return update(model, make_optimizers(model, settings), batch, noise, settings)

    learned = copy.deepcopy(model)
    losses(learned)
    generator = torch.Generator().manual_seed(2)
    for part, loss in (("critics", "critic_loss"), ("sampler", "policy_loss")):
        for name, parameter in getattr(learned, part).named_parameters():
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            ends = []
            for shift in (1e-6, -1e-6):
                moved = copy.deepcopy(model)
                with torch.no_grad():
                    getattr(moved, part).get_parameter(name).add_(shift * direction)
                ends.append(losses(moved)[loss].item())
            slope = (ends[0] - ends[1]) / 2e-6
            gradient = 0.0 if parameter.grad is None else (parameter.grad * direction).sum().item()
            assert gradient == pytest.approx(slope, rel=1e-5, abs=1e-7), f"{part}.{name}"


def _train(
    settings: ActorCriticSettings, updates: int
) -> tuple[SoftActorCriticModel, list[dict[str, Tensor]]]:
    """Run float32 updates from seed 0, with noise from named streams as in training."""
    model = SoftActorCriticModel(OBS, DIM, settings, seed=0)
    optimizers, streams = make_optimizers(model, settings), TorchStreams(0, "learner")
    metrics = []
    for k in range(updates):
        batch = Batch(*(x.float() for x in _batch(k).tensors()))
        noise = draw_noise(model.sampler, 2 * ROWS, streams)
        metrics.append(update(model, optimizers, batch, noise, settings))
    return model, metrics


@pytest.mark.parametrize("alpha", [0.2, "auto"])
@pytest.mark.parametrize(
    "changes",
    [{"leapfrog_steps": 0}, {"train_sampler": "gaussian"}, {"leapfrog_steps": 0, "momentum_noise": False}],
)
def test_without_steps_it_is_sac_bit_for_bit(alpha: Any, changes: dict[str, Any]) -> None:
    """With K = 0, equal layers and no penalty, the same seed trains bitwise the same float32 numbers as SAC."""
    sac, sac_metrics = _train(SACSettings(hidden_units=16, alpha=alpha), 5)
    hpo, hpo_metrics = _train(SACHPOSettings(hidden_units=16, policy_layers=2, alpha=alpha, **changes), 5)
    ours = hpo.state_dict()
    for name, value in sac.state_dict().items():
        assert torch.equal(ours[name], value), name
    for first, second in zip(sac_metrics, hpo_metrics, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_equal_updates_are_equal() -> None:
    """Two trainings from one seed agree bitwise; another seed gives other numbers."""
    settings = SACHPOSettings(hidden_units=16, **HPO)
    first, second = (_train(settings, 3)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = SoftActorCriticModel(OBS, DIM, settings, seed=1).state_dict()
    assert not torch.equal(first["critics.weights.0"], other["critics.weights.0"])


def test_samplers_start_from_equal_networks() -> None:
    """One seed gives SAC and SAC-HPO the same critics and, with equal layers, the same policy."""
    sac = SoftActorCriticModel(OBS, DIM, SACSettings(hidden_units=16), seed=0).state_dict()
    hpo = SoftActorCriticModel(
        OBS, DIM, SACHPOSettings(hidden_units=16, policy_layers=2), seed=0
    ).state_dict()
    assert all(torch.equal(hpo[name], value) for name, value in sac.items())
    assert torch.equal(sac["critics.weights.0"], sac["target_critics.weights.0"])


def test_a_terminated_row_does_not_bootstrap() -> None:
    """The critic loss does not depend on a terminated row's next state, but on every other row's."""
    settings = SACSettings(hidden_units=16)
    model = _model(settings)
    batch, noise = _batch(0), _noise(model, 0)

    def loss(row: int, shift: float) -> float:
        next_obs = batch.next_obs.clone()
        next_obs[row] += shift
        fresh = copy.deepcopy(model)
        optimizers = make_optimizers(fresh, settings)
        metrics = update(fresh, optimizers, batch._replace(next_obs=next_obs), noise, settings)
        return metrics["critic_loss"].item()

    assert batch.terminated[:2].tolist() == [1.0, 0.0]
    assert loss(0, 1.0) == pytest.approx(loss(0, 0.0), rel=1e-12)
    assert abs(loss(1, 1.0) - loss(1, 0.0)) > 1e-6


def test_fixed_temperature_stays() -> None:
    """A numeric alpha has no optimizer and does not change."""
    settings = SACSettings(hidden_units=16, alpha=0.05)
    model, metrics = _train(settings, 3)
    assert "temperature" not in make_optimizers(model, settings)
    assert metrics[-1]["alpha"].item() == pytest.approx(0.05)


@pytest.mark.parametrize("settings", [SETTINGS["sac"], SETTINGS["sac-hpo"]], ids=["sac", "sac-hpo"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_training(settings: ActorCriticSettings, value: float) -> None:
    """The error names the loss, and no parameter changes."""
    model = _model(settings)
    before = copy.deepcopy(model.state_dict())
    batch = _batch(0)
    batch.reward[3] = value
    with pytest.raises(NonFiniteError, match="critic loss"):
        update(model, make_optimizers(model, settings), batch, _noise(model, 0), settings)
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())

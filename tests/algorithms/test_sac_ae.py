"""Test SAC-AE and SAC-AE-HPO against a plain transcription of the authors' code, and the way of each gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rllib_hpo.algorithms.sac_ae import (
    SACAE,
    AutoencoderSettings,
    ImageModel,
    SACAEHPOSettings,
    SACAESettings,
    image_size,
)
from rllib_hpo.errors import SettingsError
from rllib_hpo.networks.encoders import LatentHead
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch
from rllib_hpo.samplers.base import draw_noise, zero_noise
from rllib_hpo.settings import parse_settings
from rllib_hpo.streams import TorchStreams, draw_all
from tests.readout import critic_layers, gated_force_layers, leaf, linear_layers
from tests.reference import autoencoder as reference

SIZE, FRAMES, DIM, ROWS = 12, 2, 2, 6
OBS = 3 * FRAMES * SIZE**2
SMALL: dict[str, Any] = {
    "frame_stack": FRAMES, "conv_layers": 3, "conv_filters": 4, "latent_dim": 5, "hidden_units": 16,
    "train_batch_size_per_learner": ROWS,
}  # fmt: skip
HPO: dict[str, Any] = {"leapfrog_units": 8, "step_size": 0.2}


def settings_of(algorithm: str, **changes: Any) -> AutoencoderSettings:
    if algorithm == "sac-ae":
        return parse_settings(SACAESettings, SMALL | changes)
    return parse_settings(SACAEHPOSettings, SMALL | HPO | changes)


def method_of(settings: AutoencoderSettings) -> SACAE:
    return SACAE(settings)


def model_of(settings: AutoencoderSettings, seed: int = 0) -> ImageModel:
    """Make a model in float64 whose weights are dense, since initial ones are zero but for the filters' centres."""
    model = ImageModel(OBS, DIM, settings, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.double()


def batch_of(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randint(0, 256, (2, ROWS, OBS), generator=generator, dtype=torch.uint8)
    action = 2 * torch.rand(ROWS, DIM, generator=generator, dtype=torch.float64) - 1
    reward = torch.randn(ROWS, generator=generator, dtype=torch.float64)
    terminated = (torch.arange(ROWS) % 3 == 0).double()
    return Batch(obs, action, reward, terminated, next_obs)


def noise_of(method: SACAE, model: ImageModel, seed: int) -> dict[str, Tensor]:
    drawn = draw_all(method.draws(model), ROWS, TorchStreams(seed, "learner"))
    return {name: value.double() for name, value in drawn.items()}


def head_of(head: LatentHead) -> list[Tensor]:
    return [leaf(p) for p in (head.linear.weight, head.linear.bias, head.norm.weight, head.norm.bias)]


def layers_of(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return [(leaf(m.weight), leaf(m.bias)) for m in network.modules() if isinstance(m, kinds)]


def networks_of(model: ImageModel) -> reference.Networks:
    networks = reference.Networks(
        convolutions=layers_of(model.convolutions),
        policy_head=head_of(model.policy_head),
        policy=linear_layers(model.sampler.policy),
        critic_head=head_of(model.critic_head),
        critics=critic_layers(model.critics),
        target_convolutions=layers_of(model.target_convolutions),
        target_head=head_of(model.target_head),
        targets=critic_layers(model.target_critics),
        decoder_linear=linear_layers(model.decoder),
        decoder_convolutions=layers_of(model.decoder),
        log_alpha=leaf(model.log_alpha),
    )
    if model.settings.sampler == "hamiltonian":
        networks.transform, networks.gate = gated_force_layers(model.sampler.gated_force)
    return networks


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in flat(part)]


def named(networks: reference.Networks) -> dict[str, Tensor]:
    return {
        f"{name} {k}": tensor
        for name, value in vars(networks).items()
        for k, tensor in enumerate(flat(value))
    }


def optimizers_of(net: reference.Networks, settings: AutoencoderSettings) -> dict[str, torch.optim.Optimizer]:
    encoder = [*flat(net.convolutions), *net.critic_head]
    policy = [*net.policy_head, *flat(net.policy), *flat(net.transform), *flat(net.gate)]
    decoder = [*flat(net.decoder_linear), *flat(net.decoder_convolutions)]
    adam, lr = torch.optim.Adam, settings.lr
    return {
        "critic": adam([*encoder, *flat(net.critics)], lr=lr),
        "policy": adam(policy, lr=lr),
        "temperature": adam([net.log_alpha], lr=settings.temperature_lr, betas=(0.5, 0.999)),
        "encoder": adam(encoder, lr=lr),
        "decoder": adam(decoder, lr=lr, weight_decay=settings.decoder_weight_decay),
    }


def as_images(batch: Batch) -> dict[str, Tensor]:
    shape = ROWS, 3 * FRAMES, SIZE, SIZE
    columns = {name: getattr(batch, name) for name in ("action", "reward", "terminated")}
    images = {name: getattr(batch, name).double().reshape(shape) for name in ("obs", "next_obs")}
    return columns | images


@pytest.mark.parametrize("algorithm", ["sac-ae", "sac-ae-hpo"])
def test_updates_are_those_of_the_authors_code(algorithm: str) -> None:
    """Five updates in float64, of every kind, with the decoder's weight decay large enough to show."""
    settings = settings_of(algorithm, decoder_every=3, latent_penalty=0.01, decoder_weight_decay=0.01)
    method, model = method_of(settings), model_of(settings)
    net, steps = networks_of(model), Steps(method.make_optimizers(model))
    optimizers = optimizers_of(net, settings)
    for number in range(1, 7):
        batch, noise = batch_of(number), noise_of(method, model, number)
        metrics = method.update(model, batch, noise, steps, method.kind(number))
        own = {name: noise[name] for name in model.sampler.noise_shapes}
        first = {name: value[:ROWS] for name, value in own.items()}
        second = {name: value[ROWS:] for name, value in own.items()}
        second["dither"] = noise["dither"].reshape(ROWS, 3 * FRAMES, SIZE, SIZE)
        losses = reference.update(net, settings, optimizers, as_images(batch), first, second, number)
        for name, loss in losses.items():
            assert metrics[name].item() == pytest.approx(loss, rel=1e-9), (name, number)
        assert ("reconstruction_loss" in metrics) == (number % 3 == 0)
        assert ("policy_loss" in metrics) == (number % 2 == 0)
        expected = named(net)
        for name, found in named(networks_of(model)).items():
            torch.testing.assert_close(
                found, expected[name], rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
            )


@pytest.mark.parametrize("algorithm", ["sac-ae", "sac-ae-hpo"])
def test_each_loss_trains_its_own_networks(algorithm: str) -> None:
    """The policy's loss stops at the convolutions, the critics' reaches them, the decoder's the critics' head."""
    settings = settings_of(algorithm)
    changed = {}
    for loss in ("critic", "policy", "autoencoder", "temperature"):
        method, model = method_of(settings), model_of(settings)
        before = {name: value.clone() for name, value in model.named_parameters()}
        optimizers = method.make_optimizers(model)
        steps = OneStep(optimizers, loss)
        method.update(model, batch_of(0), noise_of(method, model, 0), steps, method.kind(2))
        names = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        changed[loss] = {".".join(name.split(".")[:1]) for name in names}
    assert changed == {
        "critic": {"convolutions", "critic_head", "critics"},
        "policy": {"policy_head", "sampler"},
        "autoencoder": {"convolutions", "critic_head", "decoder"},
        "temperature": {"log_alpha"},
    }


class OneStep(Steps):
    """Take the steps of one loss only; targets stay."""

    def __init__(self, optimizers: dict[str, torch.optim.Optimizer], loss: str) -> None:
        super().__init__(optimizers)
        self._loss = loss

    def descend(self, name: str, loss: Tensor) -> None:
        if name == self._loss:
            super().descend(name, loss)

    def track(self, target: nn.Module, online: nn.Module, tau: float) -> None:
        pass


def test_convolutions_are_shared() -> None:
    """Policy and critics see the same features; the model holds their weights once."""
    model = model_of(settings_of("sac-ae"))
    assert "policy_head.linear.weight" in model.state_dict()
    assert [name for name in model.state_dict() if "layers.0.weight" in name] == [
        "convolutions.layers.0.weight", "target_convolutions.layers.0.weight", "decoder.layers.0.weight",
    ]  # fmt: skip


def test_the_force_is_the_gradient_of_target_critics_at_the_target_encoders_latent() -> None:
    model = model_of(settings_of("sac-ae-hpo"))
    obs, action = batch_of(0).obs, batch_of(0).action.requires_grad_()
    features = reference.convolve(layers_of(model.target_convolutions), as_images(batch_of(0))["obs"])
    latent = reference.latent(head_of(model.target_head), features).detach()
    q = reference.min_q(critic_layers(model.target_critics), latent, action)
    (expected,) = torch.autograd.grad(q.sum(), action)
    value, gradient = model.target_critic(obs).minimum_and_gradient(action.detach())
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(value, q.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("algorithm", "encodings"), [("sac-ae", 0), ("sac-ae-hpo", 1)])
def test_acting_encodes_each_state_once(algorithm: str, encodings: int) -> None:
    """All leapfrog steps share the target encoder's latent vector, which SAC-AE does not need."""
    model = model_of(settings_of(algorithm))
    seen = {"convolutions": 0, "target_convolutions": 0}
    for name in seen:
        getattr(model, name).register_forward_hook(
            lambda *_, name=name: seen.__setitem__(name, seen[name] + 1)
        )
    model.act(batch_of(0).obs)
    assert seen == {"convolutions": 1, "target_convolutions": encodings}


def test_bytes_and_floats_are_the_same_image() -> None:
    """Runners and exported policies hand over floats, the replay bytes."""
    model = model_of(settings_of("sac-ae-hpo"))
    obs = batch_of(0).obs
    torch.testing.assert_close(model.act(obs), model.act(obs.float()), rtol=1e-6, atol=1e-6)


def test_log_stds_are_within_the_published_bounds() -> None:
    model = model_of(settings_of("sac-ae"))
    latent = 100 * torch.randn(200, 5, dtype=torch.float64)
    _, log_std = model.sampler.policy(latent)
    assert -10 <= log_std.min() < -9
    assert 1 < log_std.max() <= 2


def test_a_model_begins_as_its_actor() -> None:
    method = method_of(settings_of("sac-ae-hpo"))
    actor, model = method.make_actor(OBS, DIM, seed=3), method.make_model(OBS, DIM, seed=3)
    states = model.state_dict()
    assert all(torch.equal(states[name], value) for name, value in actor.state_dict().items())
    assert all(
        torch.equal(
            value, states[name.replace("critic_head", "target_head").replace("critics.", "target_critics.")]
        )
        for name, value in states.items()
        if name.startswith(("critic_head", "critics."))
    )
    method.check(actor)
    noise = zero_noise(actor.sampler, 2)
    assert actor.sample(torch.zeros(2, OBS), noise, "train").action.shape == (2, DIM)


def test_shifts_move_all_frames_of_an_observation_alike() -> None:
    settings = settings_of("sac-ae", augmentation="shift", shift_pixels=2)
    method, model = method_of(settings), model_of(settings)
    batch, noise = batch_of(0), noise_of(method, model, 0)
    found = method.augmented(model, batch, noise)
    offsets = (noise["shift"] * 5).floor().long() - 2
    assert set(offsets.flatten().tolist()) <= {-2, -1, 0, 1, 2}
    for images, original, offset in (
        (found.next_obs, batch.next_obs, offsets[:ROWS]), (found.obs, batch.obs, offsets[ROWS:])
    ):  # fmt: skip
        padded = nn.functional.pad(
            original.float().reshape(ROWS, -1, SIZE, SIZE), (2, 2, 2, 2), mode="replicate"
        )
        for row, (down, right) in enumerate(offset.tolist()):
            crop = padded[row, :, 2 + down : 2 + down + SIZE, 2 + right : 2 + right + SIZE]
            assert torch.equal(images[row].float().reshape(crop.shape), crop)
    assert torch.equal(method_of(settings_of("sac-ae")).augmented(model, batch, noise).obs, batch.obs)


@pytest.mark.parametrize("sampler", ["radial_flow"])
def test_other_samplers_of_the_family_work_on_images(sampler: str) -> None:
    class FlowSettings(AutoencoderSettings):
        num_flows: int = 2

    FlowSettings.sampler = sampler  # type: ignore[misc]
    settings = parse_settings(FlowSettings, SMALL)
    method, model = SACAE(settings), ImageModel(OBS, DIM, settings, 0)
    steps = Steps(method.make_optimizers(model))
    noise = draw_all(method.draws(model), ROWS, TorchStreams(0, "learner"))
    floats = Batch(*(t if t.dtype == torch.uint8 else t.float() for t in batch_of(0).tensors()))
    metrics = method.update(model, floats, noise, steps, method.kind(2))
    assert all(torch.isfinite(value) for value in metrics.values())
    assert draw_noise(model.sampler, 2, TorchStreams(0, "x")).keys() == {"base"}


def test_images_that_do_not_fit_are_refused() -> None:
    assert image_size(9 * 84 * 84, 3) == 84
    with pytest.raises(SettingsError, match="are not frame_stack=2 square RGB frames"):
        image_size(9 * 84 * 84, 2)
    for changes, message in (
        ({"normalize_observations": True}, "normalize_observations=true does not apply to images"),
        ({"replay": "her"}, "relabels goals in vectors"),
    ):
        with pytest.raises(SettingsError, match=message):
            settings_of("sac-ae", **changes)
    with pytest.raises(SettingsError, match="shift_pixels=3 would have no effect"):
        settings_of("sac-ae", shift_pixels=3).refuse_idle()


def test_defaults_are_those_of_the_authors_code() -> None:
    for settings in (SACAESettings(), SACAEHPOSettings()):
        assert (settings.lr, settings.temperature_lr, settings.tau, settings.encoder_tau) == (
            1e-3, 1e-4, 0.01, 0.05
        )  # fmt: skip
        assert (settings.policy_layers, settings.critic_layers, settings.hidden_units) == (2, 2, 1024)
        assert (settings.alpha, settings.initial_alpha, settings.policy_delay) == ("auto", 0.1, 2)
        assert (settings.train_batch_size_per_learner, settings.warmup_steps) == (128, 1_000)
    assert SACAESettings.sampler == "gaussian"
    assert SACAEHPOSettings.sampler == "hamiltonian"
    assert SACAEHPOSettings.follows_gradient
    assert (SACAEHPOSettings().leapfrog_steps, SACAEHPOSettings().step_size) == (3, 0.1)

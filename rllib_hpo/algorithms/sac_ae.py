"""Implement SAC-AE and SAC-AE-HPO: soft actor-critics that learn from images, with an autoencoder.

Yarats et al. 2021, arXiv 1910.01741, and its authors' code; with Hamiltonian steps, Xu & Fekri, arXiv
2103.12020v1, 5.1.3.

Policy and critics share convolutions, and each has a head of its own that makes a latent vector of their features:

    loss          trains
    critics       convolutions, the critics' head, critics
    policy        the policy's head, policy and the sampler's networks; it stops before the convolutions
    autoencoder   convolutions, the critics' head, decoder

Target critics see a target encoder's latent vectors, and their gradient there is the force of Hamiltonian steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from rllib_hpo.algorithms.base import Metrics, Noise
from rllib_hpo.algorithms.footprint import (
    COPIES_LEARNED,
    COPIES_WITH_TARGET,
    FLOAT,
    Part,
    policy_and_critics,
)
from rllib_hpo.algorithms.losses import bellman_target, critic_loss, policy_loss, temperature_loss
from rllib_hpo.algorithms.sac import SamplerActor, SoftActorCritic
from rllib_hpo.errors import SettingsError
from rllib_hpo.networks.critics import ActionValue, ConditionedCritic, Critics
from rllib_hpo.networks.encoders import (
    Convolutions,
    Decoder,
    LatentHead,
    orthogonal,
    reconstruction_target,
    shifted,
)
from rllib_hpo.optim.adam import make_adam
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.frames import FrameLayout
from rllib_hpo.replay.layout import Batch
from rllib_hpo.samplers.base import Mode, Sample
from rllib_hpo.samplers.gaussian import GaussianPolicy
from rllib_hpo.settings import (
    ActorCriticSettings,
    HiddenUnits,
    PositiveFloat,
    PositiveInt,
    SACHPOSettings,
    SACSettings,
    UnitInterval,
)
from rllib_hpo.streams import Draw, torch_generator

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

CHANNELS = 3
"""Channels of a frame: red, green and blue."""
_LOG_STD_BOUNDS = -10.0, 2.0
_TEMPERATURE_BETA1 = 0.5
"""Decay of the first moment in the temperature's Adam, as in the authors' code."""


class AutoencoderSettings(ActorCriticSettings):
    """Settings shared by actor-critics with an autoencoder; defaults are those of the authors' code."""

    changeable: ClassVar[frozenset[str]] = ActorCriticSettings.changeable | frozenset(
        """
        temperature_lr encoder_tau policy_delay decoder_every latent_penalty shift_pixels
        """.split()
    )

    lr: Annotated[
        PositiveFloat,
        Field(description="Adam learning rate of all networks; that of the temperature is temperature_lr."),
    ] = 1e-3
    temperature_lr: Annotated[PositiveFloat, Field(description="Adam learning rate of the temperature.")] = (
        1e-4
    )
    tau: Annotated[UnitInterval, Field(description="Polyak rate of the target critics.")] = 0.01
    encoder_tau: Annotated[UnitInterval, Field(description="Polyak rate of the target encoder.")] = 0.05
    train_batch_size_per_learner: Annotated[
        PositiveInt,
        Field(description="Batch size of each learner; an update with N learners uses N such batches."),
    ] = 128
    replay_capacity: Annotated[
        PositiveInt, Field(description="Capacity of the replay in transitions, over all learners' shards.")
    ] = 100_000
    warmup_steps: Annotated[
        PositiveInt,
        Field(description="Environment steps before the first update; warmup_policy chooses their actions."),
    ] = 1_000
    hidden_units: HiddenUnits = 1_024
    policy_layers: Annotated[
        int, Field(ge=1, le=4, description="Hidden layers of the base policy network.")
    ] = 2
    alpha: Annotated[
        PositiveFloat | Literal["auto"], Field(description="Temperature: a fixed value, or 'auto' (tuned).")
    ] = "auto"
    initial_alpha: Annotated[
        PositiveFloat, Field(description="Initial temperature where alpha is 'auto'.")
    ] = 0.1
    frame_stack: Annotated[
        int, Field(ge=1, le=16, description="Frames of an observation, the newest and those before it.")
    ] = 3
    latent_dim: Annotated[PositiveInt, Field(description="Dimension of the latent vectors.")] = 50
    conv_layers: Annotated[
        int, Field(ge=1, le=8, description="Convolutions of the encoder; the first has stride 2.")
    ] = 4
    conv_filters: Annotated[PositiveInt, Field(description="Filters of each convolution.")] = 32
    policy_delay: Annotated[
        PositiveInt,
        Field(description="Critic updates per update of policy, temperature and all target networks."),
    ] = 2
    decoder_every: Annotated[
        PositiveInt, Field(description="Critic updates per update of the autoencoder.")
    ] = 1
    latent_penalty: Annotated[
        NonNegative, Field(description="Weight of |z|^2 / 2 in the autoencoder's loss.")
    ] = 1e-6
    decoder_weight_decay: Annotated[NonNegative, Field(description="Weight decay of the decoder.")] = 1e-7
    augmentation: Annotated[
        Literal["none", "shift"],
        Field(
            description="'shift': shift the observations of a batch at random, by up to shift_pixels, as DrQ does; "
            "'none' as in the paper."
        ),
    ] = "none"
    shift_pixels: Annotated[PositiveInt, Field(description="Largest shift in pixels.")] = 4

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        if self.normalize_observations:
            raise ValueError("normalize_observations=true does not apply to images; set it to false")
        if self.replay == "her":
            raise ValueError("replay='her' relabels goals in vectors, not in images; set it to 'uniform'")
        return self

    @override
    def refuse_idle(self) -> None:
        super().refuse_idle()
        if (
            self.augmentation == "none"
            and self.shift_pixels != type(self).model_fields["shift_pixels"].default
        ):
            raise SettingsError(
                f"shift_pixels={self.shift_pixels} would have no effect, since augmentation='none' shifts nothing. Set "
                "augmentation to 'shift', or leave it out."
            )


class SACAESettings(AutoencoderSettings, SACSettings):
    """SAC from images with an autoencoder (Yarats et al. 2021, arXiv 1910.01741)."""


class SACAEHPOSettings(AutoencoderSettings, SACHPOSettings):
    """SAC-AE with a Hamiltonian policy, whose force is the critics' gradient at latent vectors."""

    changeable: ClassVar[frozenset[str]] = AutoencoderSettings.changeable | SACHPOSettings.changeable


def image_size(obs_dim: int, frame_stack: int) -> int:
    """Return the height of square images from the number of values of an observation.

    Raises:
        SettingsError: If it is not that of `frame_stack` square RGB frames.
    """
    size = math.isqrt(obs_dim // (CHANNELS * frame_stack))
    if CHANNELS * frame_stack * size**2 != obs_dim:
        raise SettingsError(
            f"Observations of {obs_dim} values are not frame_stack={frame_stack} square RGB frames: choose the same "
            "number of frames for the task and for the algorithm."
        )
    return size


class BoundedLogStd(nn.Module):
    """Map the second half of a network's outputs into bounds by tanh, (B, 2 A) -> (B, 2 A).

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, detached_rows: int = 0) -> Tensor:
        """Return outputs (B, 2 A) for inputs (B, I); the first `detached_rows` rows carry no gradient."""
        mean, raw = self.network(inputs, detached_rows).chunk(2, dim=-1)
        low, high = _LOG_STD_BOUNDS
        return torch.cat([mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1)], dim=-1)


class LazyCritic:
    """Evaluate critics at fixed states that are encoded on first use.

    Args:
        make: Makes the critics at these states.
    """

    def __init__(self, make: Callable[[], ActionValue]) -> None:
        self._make = make

    @cached_property
    def _critic(self) -> ActionValue:
        return self._make()

    def minimum(self, action: Tensor) -> Tensor:
        """Return values (B,) at actions (B, A), differentiable in the action alone."""
        return self._critic.minimum(action)

    def minimum_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (B,) and their action gradient (B, A), both without a graph."""
        return self._critic.minimum_and_gradient(action)

    def rows(self, rows: slice) -> ActionValue:
        """Return the same function at some of the states."""
        return self._critic.rows(rows)


class ImageActor(SamplerActor):
    """Hold an encoder for the policy, a sampler that takes its latent vectors, and the target encoder and critics.

    Observations are images (B, S) as `rllib_hpo.networks.encoders` takes them.
    """

    settings: AutoencoderSettings

    def __init__(self, obs_dim: int, action_dim: int, settings: AutoencoderSettings, seed: int) -> None:
        super().__init__(settings.latent_dim, action_dim, settings, seed)
        self.obs_dim = obs_dim
        stream = torch_generator(seed, "initial weights", "encoder")
        self.image_size = image_size(obs_dim, settings.frame_stack)
        sizes = CHANNELS * settings.frame_stack, self.image_size, settings.conv_filters, settings.conv_layers
        self.convolutions = Convolutions(*sizes, stream)
        num_features = self.convolutions.num_features
        self.policy_head = LatentHead(num_features, settings.latent_dim, stream)
        self.target_convolutions = copy.deepcopy(self.convolutions).requires_grad_(False)
        self.target_head = LatentHead(num_features, settings.latent_dim, stream).requires_grad_(False)
        self._initialize_as_published(stream)

    def _initialize_as_published(self, stream: torch.Generator) -> None:
        """Make linear layers orthogonal without bias, and bound the policy's log-std."""
        _make_orthogonal(self.target_critics, stream)
        policy = getattr(self.sampler, "policy", None)
        if isinstance(policy, GaussianPolicy):
            for layer in policy.modules():
                if isinstance(layer, nn.Linear):
                    orthogonal(layer, stream)
            policy.network = BoundedLogStd(policy.network)

    def policy_latent(self, features: Tensor) -> Tensor:
        """Return the policy's latent vectors (B, L) for features (B, F), which get no gradient."""
        latent: Tensor = self.policy_head(features.detach())
        return latent

    @torch.no_grad()
    def target_latent(self, obs: Tensor) -> Tensor:
        """Return the target encoder's latent vectors (B, L) for images (B, S)."""
        latent: Tensor = self.target_head(self.target_convolutions(obs))
        return latent

    def target_critic(self, obs: Tensor) -> LazyCritic:
        """Return the target critics at images (B, S), which are encoded on first use."""
        return LazyCritic(lambda: self.target_critics.condition(self.target_latent(obs)))

    @override
    def sample(
        self,
        obs: Tensor,
        noise: Noise,
        mode: Mode,
        *,
        critic: ConditionedCritic | LazyCritic | None = None,
        detached_rows: int = 0,
    ) -> Sample:
        """Draw actions for images (B, S); see `SamplerActor.sample`."""
        with torch.no_grad():
            features = self.convolutions(obs)
        return self.sample_at(features, noise, mode, critic or self.target_critic(obs), detached_rows)

    @override
    def action(self, obs: Tensor, noise: Noise, mode: Mode) -> Tensor:
        """Return the actions of `sample` for images (B, S), (B, A), without what only losses need."""
        with torch.no_grad():
            latent = self.policy_latent(self.convolutions(obs))
        return self.sampler.action(
            latent, noise, mode=mode, given=lambda: (self.target_critic(obs), self.alpha)
        )

    def sample_at(
        self, features: Tensor, noise: Noise, mode: Mode, critic: ActionValue, detached_rows: int = 0
    ) -> Sample:
        """Draw actions for features (B, F) of images, at which `critic` is the target critics."""
        sample: Sample = self.sampler(
            self.policy_latent(features),
            noise,
            mode=mode,
            critic=critic,
            alpha=self.alpha,
            detached_rows=detached_rows,
        )
        return sample


class ImageModel(ImageActor):
    """Add the critics and their head, initially equal to the targets, and the decoder."""

    def __init__(self, obs_dim: int, action_dim: int, settings: AutoencoderSettings, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings, seed)
        self.critic_head = copy.deepcopy(self.target_head).requires_grad_(True)
        self.critics = copy.deepcopy(self.target_critics).requires_grad_(True)
        stream = torch_generator(seed, "initial weights", "decoder")
        self.decoder = Decoder(settings.latent_dim, self.convolutions, stream)


class SACAE(SoftActorCritic[AutoencoderSettings, ImageModel]):  # type: ignore[type-var]
    """Update critics; policy and temperature; targets; autoencoder, in this order and not all each time."""

    actor_class: ClassVar[type[Any]] = ImageActor
    model_class: ClassVar[type[Any]] = ImageModel
    takes_images: ClassVar[bool] = True

    @override
    def layout(self, obs_dim: int, action_dim: int) -> FrameLayout:
        return FrameLayout(obs_dim, action_dim, self.settings.frame_stack, self.row_columns)

    @override
    def trained(self, model: ImageModel) -> Mapping[str, Sequence[Tensor]]:
        encoder = [*model.convolutions.parameters(), *model.critic_head.parameters()]
        parts = {
            "critic": [*encoder, *model.critics.parameters()],
            "policy": [*model.policy_head.parameters(), *model.sampler.parameters()],
            "autoencoder": [*encoder, *model.decoder.parameters()],
        }
        return parts | ({"temperature": [model.log_alpha]} if self.settings.alpha == "auto" else {})

    @override
    def learning_rate(self, loss: str) -> float:
        return self.settings.temperature_lr if loss == "temperature" else self.settings.lr

    @override
    def make_optimizers(self, model: ImageModel) -> dict[str, torch.optim.Optimizer]:
        """Make Adam for each loss; the decoder's weights decay."""
        optimizers = super().make_optimizers(model)
        decoder = list(model.decoder.parameters())
        encoder = self.trained(model)["autoencoder"][: -len(decoder)]
        autoencoder = make_adam(list(encoder), self.settings.lr)
        autoencoder.add_param_group({"params": decoder, "weight_decay": self.settings.decoder_weight_decay})
        optimizers["autoencoder"] = autoencoder
        if "temperature" in optimizers:
            (group,) = optimizers["temperature"].param_groups
            group["betas"] = _TEMPERATURE_BETA1, group["betas"][1]
        return optimizers

    @override
    def draws(self, model: ImageModel) -> Mapping[str, Draw]:
        """Declare the sampler's noise, the dither of reconstruction targets and, if any, the shifts of images."""
        draws = {**super().draws(model), "dither": Draw(1, (model.obs_dim,), "uniform")}
        if self.settings.augmentation == "shift":
            draws["shift"] = Draw(2, (2,), "uniform")
        return draws

    @override
    def kind(self, update: int) -> str:
        parts = ["critics"]
        if update % self.settings.policy_delay == 0:
            parts.append("policy")
        if update % self.settings.decoder_every == 0:
            parts.append("autoencoder")
        return " and ".join(parts)

    @override
    def update(self, model: ImageModel, batch: Batch, noise: Noise, steps: Steps, kind: str) -> Metrics:
        batch, alpha = self.augmented(model, batch, noise), model.alpha
        metrics = self.update_critics(model, batch, noise, steps)
        if kind == "critics":
            return metrics
        with torch.set_grad_enabled("autoencoder" in kind):
            features = model.convolutions(batch.obs)
        if "policy" in kind:
            metrics |= self.update_policy(model, batch, features, noise, steps)
            steps.track(model.target_critics, model.critics, self.settings.tau)
            steps.track(model.target_convolutions, model.convolutions, self.settings.encoder_tau)
            steps.track(model.target_head, model.critic_head, self.settings.encoder_tau)
            metrics["alpha"] = alpha
        if "autoencoder" in kind:
            metrics |= self.update_autoencoder(model, batch, features, noise["dither"], steps)
        return metrics

    def augmented(self, model: ImageModel, batch: Batch, noise: Noise) -> Batch:
        """Return the batch with shifted images, where the settings say so."""
        if self.settings.augmentation == "none":
            return batch
        most = self.settings.shift_pixels
        offsets = (noise["shift"] * (2 * most + 1)).long().clamp(max=2 * most) - most
        both = [
            shifted(images, offset, model.image_size)
            for images, offset in zip((batch.next_obs, batch.obs), offsets.chunk(2), strict=True)
        ]
        return batch._replace(next_obs=both[0], obs=both[1])

    def update_critics(self, model: ImageModel, batch: Batch, noise: Noise, steps: Steps) -> Metrics:
        """Take the gradient step of critics, their head and the convolutions."""
        with torch.no_grad():
            target_critic = model.target_critic(batch.next_obs)
            first = {name: value[: len(batch.reward)] for name, value in self._own(model, noise).items()}
            sample = model.sample(batch.next_obs, first, "train", critic=target_critic)
            next_q = target_critic.minimum(sample.action)
            target = bellman_target(
                batch.reward, batch.terminated, next_q, sample.log_prob, model.alpha, self.settings.gamma
            )
        q = model.critics(model.critic_head(model.convolutions(batch.obs)), batch.action)
        loss = critic_loss(q, target)
        steps.descend("critic", loss)
        return {"critic_loss": loss.detach(), "q_mean": q.detach().mean()}

    def update_policy(
        self, model: ImageModel, batch: Batch, features: Tensor, noise: Noise, steps: Steps
    ) -> Metrics:
        """Take the gradient steps of the policy with its head, and of the temperature; features are (B, F)."""
        alpha, target_critic = model.alpha, model.target_critic(batch.obs)
        second = {name: value[len(batch.reward) :] for name, value in self._own(model, noise).items()}
        sample = model.sample_at(features, second, "train", target_critic)
        if self.settings.objective_critic == "online":
            with torch.no_grad():
                latent = model.critic_head(features)
            q = model.critics.minimum(latent, sample.action)
        else:
            q = target_critic.minimum(sample.action)
        loss = policy_loss(q, sample.log_prob, sample.penalty, alpha)
        steps.descend("policy", loss)
        metrics = {"policy_loss": loss.detach()}
        if sample.log_prob is None:
            return metrics
        if "temperature" in steps:
            of_alpha = temperature_loss(model.log_alpha, sample.log_prob, model.target_entropy)
            steps.descend("temperature", of_alpha)
        return metrics | {"log_prob_mean": sample.log_prob.detach().mean()}

    def update_autoencoder(
        self, model: ImageModel, batch: Batch, features: Tensor, dither: Tensor, steps: Steps
    ) -> Metrics:
        """Take the gradient step of convolutions, the critics' head and the decoder.

        The loss is the mean squared error plus latent_penalty E[|z|^2 / 2]; features are (B, F).
        """
        latent = model.critic_head(features)
        error = F.mse_loss(model.decoder(latent), reconstruction_target(batch.obs, dither))
        loss = error + self.settings.latent_penalty * 0.5 * (latent * latent).sum(-1).mean()
        steps.descend("autoencoder", loss)
        return {"reconstruction_loss": error.detach()}

    @staticmethod
    def _own(model: ImageModel, noise: Noise) -> Noise:
        """Return the sampler's part of the noise."""
        return {name: noise[name] for name in model.sampler.noise_shapes}

    @override
    @torch.no_grad()
    def diagnose(self, model: ImageModel, batch: Batch, noise: Noise) -> Metrics:
        second = {name: value[len(batch.reward) :] for name, value in self._own(model, noise).items()}
        latent = model.policy_latent(model.convolutions(batch.obs))
        critic = model.target_critic(batch.obs)
        return model.sampler.diagnose(latent, second, mode="train", critic=critic, alpha=model.alpha)

    @override
    def actor_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """Return the sizes of policy, target critics and both encoders."""
        return self._network_parts(obs_dim, action_dim, 1, 1, num_heads=2)

    @override
    def learner_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """Return the sizes of all networks with their optimizers, and of a batch."""
        networks = self._network_parts(obs_dim, action_dim, COPIES_LEARNED, COPIES_WITH_TARGET, num_heads=9)
        size = self.settings.train_batch_size_per_learner
        return [*networks, Part(FLOAT * size * obs_dim, "train_batch_size_per_learner")]

    def _network_parts(
        self, obs_dim: int, action_dim: int, policies: int, critics: int, num_heads: int
    ) -> list[Part]:
        settings = self.settings
        heads = policy_and_critics(
            settings,
            settings.latent_dim,
            action_dim,
            copies_of_policy=policies,
            copies_of_critics=critics,
            policy_outputs=2 * action_dim,
        )
        pixels = obs_dim // (CHANNELS * settings.frame_stack)
        size = max(0, (math.isqrt(pixels) - 1) // 2 - 2 * (settings.conv_layers - 1))
        features = settings.conv_filters * size**2
        return [heads, Part(FLOAT * num_heads * features * settings.latent_dim, "latent_dim")]


def _make_orthogonal(critics: Critics, generator: torch.Generator) -> None:
    """Give the layers of each critic orthogonal weights and no bias."""
    for weights in critics.weights:
        for weight in weights.data:
            nn.init.orthogonal_(weight, generator=generator)
    for bias in critics.biases:
        nn.init.zeros_(bias)

"""The networks of one actor-critic: a sampler, twin critics, their targets and the temperature."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from rllib_hpo.critics import ConditionedCritic, TwinCritic
from rllib_hpo.errors import SettingsError
from rllib_hpo.learning.footprint import actor_parts, learner_parts, refuse_too_large
from rllib_hpo.samplers import find_sampler
from rllib_hpo.samplers.base import Mode, Noise, Sample, check_sample, draw_noise, zero_noise
from rllib_hpo.settings import ActorCriticSettings
from rllib_hpo.streams import TorchStreams, torch_generator

_STATES_TO_CHECK = 7
"""States that a sampler is tried on; another number than a dimension is likely to be."""


class Actor(nn.Module):
    """What acting needs: the sampler, the target critics that its force follows, and the temperature.

    Args:
        obs_dim: Observation dimension S.
        action_dim: Action dimension A.
        settings: The algorithm's hyperparameters; they name the sampler.
        seed: Of the initial weights. Critics and sampler have streams of their own, so two samplers
            start from the same critics and, where they share it, the same policy.

    Raises:
        SettingsError: If the networks take more than all memory of this machine.
    """

    def __init__(self, obs_dim: int, action_dim: int, settings: ActorCriticSettings, seed: int) -> None:
        super().__init__()
        refuse_too_large(actor_parts(settings, obs_dim, action_dim))
        self.obs_dim, self.action_dim, self.settings = obs_dim, action_dim, settings
        sampler_stream = torch_generator(seed, "initial weights", "sampler")
        critic_stream = torch_generator(seed, "initial weights", "critics")
        self.sampler = find_sampler(settings.sampler)(obs_dim, action_dim, settings, sampler_stream)
        self.target_critics = TwinCritic(
            obs_dim, action_dim, settings.hidden_units, settings.critic_layers, critic_stream
        ).requires_grad_(False)
        self.log_alpha = nn.Parameter(self._initial_log_alpha(), requires_grad=settings.alpha == "auto")

    def _initial_log_alpha(self) -> Tensor:
        alpha = self.settings.alpha
        return torch.tensor(float(self.settings.initial_alpha if alpha == "auto" else alpha)).log()

    def fix_alpha(self) -> None:
        """Makes the temperature that of the settings again, if it is fixed, whatever weights were loaded."""
        if self.settings.alpha != "auto":
            self.log_alpha.data.copy_(self._initial_log_alpha())

    @property
    def alpha(self) -> Tensor:
        """The temperature, a scalar tensor without gradient."""
        return self.log_alpha.detach().exp()

    @property
    def target_entropy(self) -> float:
        """What 'alpha: auto' aims at, in nats."""
        target = self.settings.target_entropy
        return -float(self.action_dim) if target == "auto" else float(target)

    def sample(
        self,
        obs: Tensor,
        noise: Noise,
        mode: Mode,
        *,
        critic: ConditionedCritic | None = None,
        detached_rows: int = 0,
    ) -> Sample:
        """Draws actions for obs (B, S); `critic` are the target critics at obs, if they are at hand."""
        sample: Sample = self.sampler(
            obs,
            noise,
            mode=mode,
            critic=critic or self.target_critics.condition(obs),
            alpha=self.alpha,
            detached_rows=detached_rows,
        )
        return sample

    @torch.no_grad()
    def refuse_unusable_sampler(self) -> None:
        """Refuses a sampler that does not return what it must, or no density where 'alpha: auto' needs one.

        Raises:
            UserCodeError: Naming the sampler, and what it returned.
            SettingsError: Naming the sampler, and what to set.
        """
        name, device = self.settings.sampler, self.log_alpha.device
        streams = TorchStreams(0, "check of the sampler", device=device)
        obs = torch.randn(
            _STATES_TO_CHECK, self.obs_dim, generator=streams["obs"], device=streams["obs"].device
        )
        obs = obs.to(device)
        modes: tuple[Mode, ...] = ("explore", "train")
        for mode in modes:
            sample = self.sample(obs, draw_noise(self.sampler, len(obs), streams, device), mode)
            check_sample(sample, name, len(obs), self.action_dim)
        if self.settings.alpha == "auto" and sample.log_prob is None:
            raise SettingsError(
                f"alpha='auto' cannot be tuned: the sampler '{name}' has no density (its log_prob is "
                "None). Set alpha to a number, as alpha=0.2."
            )

    @torch.no_grad()
    def act(self, obs: Tensor, streams: TorchStreams | None = None) -> Tensor:
        """Actions (B, A) in [-1, 1] for obs (B, S): exploring with noise of `streams`, or noise-free (None)."""
        if streams is None:
            return self.sample(obs, zero_noise(self.sampler, len(obs), obs.device), "train").action
        return self.sample(obs, draw_noise(self.sampler, len(obs), streams, obs.device), "explore").action


class ActorCritic(Actor):
    """All that is learned: an actor and its online critics, which start equal to the targets."""

    def __init__(self, obs_dim: int, action_dim: int, settings: ActorCriticSettings, seed: int) -> None:
        refuse_too_large(learner_parts(settings, obs_dim, action_dim))
        super().__init__(obs_dim, action_dim, settings, seed)
        self.critics = copy.deepcopy(self.target_critics).requires_grad_(True)

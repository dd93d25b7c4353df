"""Implement soft actor-critic with any sampler; SAC, SAC-NF and SAC-HPO differ only in theirs.

Haarnoja et al. 2018, arXiv 1812.05905; Xu & Fekri, arXiv 2103.12020, Algorithm 1, lines 8 to 10.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from rllib_hpo.algorithms.base import Actor, Memory, Method, Metrics, Noise
from rllib_hpo.algorithms.footprint import (
    COPIES_LEARNED,
    COPIES_WITH_TARGET,
    FLOAT,
    Part,
    batch_part,
    policy_and_critics,
)
from rllib_hpo.algorithms.losses import bellman_target, critic_loss, policy_loss, temperature_loss
from rllib_hpo.errors import SettingsError
from rllib_hpo.networks.critics import ActionValue, ConditionedCritic
from rllib_hpo.networks.normalized_critics import make_critics
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch
from rllib_hpo.samplers import find_sampler
from rllib_hpo.samplers.base import Mode, Sample, check_sample, draw_noise, zero_noise
from rllib_hpo.settings import ActorCriticSettings
from rllib_hpo.streams import Draw, TorchStreams, torch_generator

_STATES_TO_CHECK = 7
"""States on which to try a sampler; the number is unlikely to equal a dimension."""


class SamplerActor(Actor):
    """Hold a sampler, the target critics that its force follows, and the temperature.

    Critics and sampler draw their initial weights from separate streams of the seed, so two samplers start from the
    same critics and, if both have one, the same policy.
    """

    settings: ActorCriticSettings

    def __init__(self, obs_dim: int, action_dim: int, settings: ActorCriticSettings, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings)
        sampler_stream = torch_generator(seed, "initial weights", "sampler")
        critic_stream = torch_generator(seed, "initial weights", "critics")
        self.sampler = find_sampler(settings.sampler)(obs_dim, action_dim, settings, sampler_stream)
        self.target_critics = make_critics(obs_dim, action_dim, settings, critic_stream, self.num_critics)
        self.target_critics.requires_grad_(False)
        self.log_alpha = nn.Parameter(self._initial_log_alpha(), requires_grad=settings.alpha == "auto")

    @property
    @override
    def device(self) -> torch.device:
        return self.log_alpha.device

    @property
    def num_critics(self) -> int:
        """Number of critics N; a subclass may have an ensemble."""
        return 2

    @property
    @override
    def acting(self) -> nn.Module:
        return self.sampler

    def _initial_log_alpha(self) -> Tensor:
        alpha = self.settings.alpha
        return torch.tensor(float(self.settings.initial_alpha if alpha == "auto" else alpha)).log()

    def fix_alpha(self) -> None:
        """Reset a fixed temperature to that of the settings, after weights were loaded."""
        if self.settings.alpha != "auto":
            self.log_alpha.data.copy_(self._initial_log_alpha())

    @property
    def alpha(self) -> Tensor:
        """The temperature, a scalar tensor without gradient."""
        return self.log_alpha.detach().exp()

    @property
    def target_entropy(self) -> float:
        """The entropy that 'alpha: auto' aims at, in nats."""
        target = self.settings.target_entropy
        return -float(self.action_dim) if target == "auto" else float(target)

    def force_critic(self, obs: Tensor, target_critics: ConditionedCritic) -> ActionValue:
        """Return the value that the sampler's force follows at obs (B, S): by default the target critics."""
        return target_critics

    def sample(
        self,
        obs: Tensor,
        noise: Noise,
        mode: Mode,
        *,
        critic: ConditionedCritic | None = None,
        detached_rows: int = 0,
    ) -> Sample:
        """Draw actions for obs (B, S); pass `critic`, the target critics at obs, if they are already conditioned."""
        sample: Sample = self.sampler(
            obs,
            noise,
            mode=mode,
            critic=self.force_critic(obs, critic or self.target_critics.condition(obs)),
            alpha=self.alpha,
            detached_rows=detached_rows,
        )
        return sample

    def action(self, obs: Tensor, noise: Noise, mode: Mode) -> Tensor:
        """Return the actions of `sample`, (B, A), without what only losses need."""

        def given() -> tuple[ActionValue, Tensor]:
            return self.force_critic(obs, self.target_critics.condition(obs)), self.alpha

        return self.sampler.action(obs, noise, mode=mode, given=given)

    @override
    def forward(self, obs: Tensor, memory: Memory | None = None) -> Tensor:
        """See `Actor.forward`."""
        return self.action(obs, zero_noise(self.sampler, obs.shape[0], obs.device), "train")

    @override
    def explore(self, obs: Tensor, streams: TorchStreams, memory: Memory) -> Tensor:
        """See `Actor.explore`."""
        return self.action(obs, draw_noise(self.sampler, len(obs), streams, obs.device), "explore")


class SoftActorCriticModel(SamplerActor):
    """Add online critics, initially equal to the targets, to the actor."""

    def __init__(self, obs_dim: int, action_dim: int, settings: ActorCriticSettings, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings, seed)
        self.critics = copy.deepcopy(self.target_critics).requires_grad_(True)


SoftSettingsT = TypeVar("SoftSettingsT", bound=ActorCriticSettings)
SoftModelT = TypeVar("SoftModelT", bound=SoftActorCriticModel)


class SoftActorCritic(Method[SoftSettingsT, SoftModelT]):
    """Update critics; policy and the sampler's networks; temperature; target critics, in this order.

    To add to this update, override `learn`, `learn_critics` or `objective`. For another order, write an `update` from
    `sample_both`, `critic_loss` and `policy_loss`.
    """

    actor_class: ClassVar[type[SamplerActor]] = SamplerActor
    model_class: ClassVar[type[Any]] = SoftActorCriticModel

    @override
    def trained(self, model: SoftModelT) -> Mapping[str, Sequence[Tensor]]:
        parts = {"critic": list(model.critics.parameters()), "policy": list(model.sampler.parameters())}
        return parts | ({"temperature": [model.log_alpha]} if self.settings.alpha == "auto" else {})

    @override
    def draws(self, model: SoftModelT) -> Mapping[str, Draw]:
        """Declare the sampler's noise for the next states (first half) and the states (second half)."""
        return {name: Draw(2, shape) for name, shape in model.sampler.noise_shapes.items()}

    @override
    def update(self, model: SoftModelT, batch: Batch, noise: Noise, steps: Steps, kind: str) -> Metrics:
        return self.learn(model, batch, *self.sample_both(model, batch, noise), steps)

    def learn(
        self,
        model: SoftModelT,
        batch: Batch,
        next_sample: Sample,
        sample: Sample,
        target_critics: ConditionedCritic,
        steps: Steps,
    ) -> Metrics:
        """Make the update from what `sample_both` returns."""
        alpha = model.alpha
        metrics = self.learn_critics(model, batch, next_sample, target_critics, alpha, steps)

        loss_policy = self.policy_loss(model, batch, sample, target_critics, alpha)
        steps.descend("policy", loss_policy)

        if "temperature" in steps and sample.log_prob is not None:
            loss = temperature_loss(model.log_alpha, sample.log_prob, model.target_entropy)
            steps.descend("temperature", loss)

        steps.track(model.target_critics, model.critics, self.settings.tau)
        metrics |= {"policy_loss": loss_policy.detach(), "alpha": alpha}
        if sample.log_prob is not None:
            metrics["log_prob_mean"] = sample.log_prob.detach().mean()
        return metrics

    def learn_critics(
        self,
        model: SoftModelT,
        batch: Batch,
        next_sample: Sample,
        target_critics: ConditionedCritic,
        alpha: Tensor,
        steps: Steps,
    ) -> Metrics:
        """Take the critics' gradient step. Subclasses add the steps of other critics."""
        loss, q = self.critic_loss(model, batch, next_sample, target_critics, alpha)
        steps.descend("critic", loss)
        return {"critic_loss": loss.detach(), "q_mean": q.detach().mean()}

    def sample_both(
        self, model: SoftModelT, batch: Batch, noise: Noise
    ) -> tuple[Sample, Sample, ConditionedCritic]:
        """Draw actions at the next states, for the target, and the states, for the policy, in one batch of 2B.

        Both are drawn before this update changes a parameter, so one chain can draw both.

        Returns:
            The samples at the next states and at the states, and the target critics at both, (2B, S).
        """
        num_rows = len(batch.reward)
        obs = torch.cat([batch.next_obs, batch.obs])
        target_critics = model.target_critics.condition(obs)
        both = model.sample(obs, noise, "train", critic=target_critics, detached_rows=num_rows)
        return both.rows(slice(0, num_rows)), both.rows(slice(num_rows, None)), target_critics

    def critic_loss(
        self,
        model: SoftModelT,
        batch: Batch,
        next_sample: Sample,
        target_critics: ConditionedCritic,
        alpha: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the critics' loss, a scalar, and their values on the batch, (2, B)."""
        with torch.no_grad():
            next_q = target_critics.rows(slice(0, len(batch.reward))).minimum(next_sample.action)
            target = bellman_target(
                batch.reward, batch.terminated, next_q, next_sample.log_prob, alpha, self.settings.gamma
            )
        q = model.critics(batch.obs, batch.action)
        return critic_loss(q, target), q

    def policy_loss(
        self,
        model: SoftModelT,
        batch: Batch,
        sample: Sample,
        target_critics: ConditionedCritic,
        alpha: Tensor,
    ) -> Tensor:
        """Return the policy's loss, a scalar."""
        q = self.objective(model, batch, sample.action, target_critics)
        return policy_loss(q, sample.log_prob, sample.penalty, alpha)

    def objective(
        self, model: SoftModelT, batch: Batch, action: Tensor, target_critics: ConditionedCritic
    ) -> Tensor:
        """Return what the policy maximises besides its entropy, (B,), for actions (B, A).

        It is the minimum of the online critics after their step, or of the targets.
        """
        if self.settings.objective_critic == "online":
            return model.critics.minimum(batch.obs, action)
        return target_critics.rows(slice(len(batch.reward), None)).minimum(action)

    @override
    def diagnose(self, model: SoftModelT, batch: Batch, noise: Noise) -> Metrics:
        own_noise = {name: value[len(batch.reward) :] for name, value in noise.items()}
        critic = model.force_critic(batch.obs, model.target_critics.condition(batch.obs))
        return model.sampler.diagnose(batch.obs, own_noise, mode="train", critic=critic, alpha=model.alpha)

    @override
    def restored(self, model: SoftModelT) -> None:
        model.fix_alpha()

    @override
    @torch.no_grad()
    def check(self, actor: Actor) -> None:
        """Reject a sampler with invalid output, or without a density where 'alpha: auto' needs one."""
        assert isinstance(actor, SamplerActor)
        name, device = self.settings.sampler, actor.device
        streams = TorchStreams(0, "check of the sampler", device=device)
        obs = torch.randn(_STATES_TO_CHECK, actor.obs_dim, generator=streams["obs"], device=device)
        modes: tuple[Mode, ...] = ("explore", "train")
        for mode in modes:
            sample = actor.sample(obs, draw_noise(actor.sampler, len(obs), streams, device), mode)
            check_sample(sample, name, len(obs), actor.action_dim)
        if self.settings.alpha == "auto" and sample.log_prob is None:
            raise SettingsError(
                f"alpha='auto' cannot be tuned: the sampler '{name}' has no density (its log_prob is None). "
                "Set alpha to a number, for example alpha=0.2."
            )

    @override
    def actor_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """Return the sizes of the policy and the target critics."""
        settings = self.settings
        networks = policy_and_critics(
            settings,
            obs_dim,
            action_dim,
            copies_of_policy=1,
            copies_of_critics=1,
            policy_outputs=2 * action_dim,
        )
        return [networks, *_sampler_parts(settings, action_dim)]

    @override
    def learner_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """Return the sizes of all networks with their optimizers, and of a batch."""
        settings = self.settings
        networks = policy_and_critics(
            settings,
            obs_dim,
            action_dim,
            copies_of_policy=COPIES_LEARNED,
            copies_of_critics=COPIES_WITH_TARGET,
            policy_outputs=2 * action_dim,
        )
        batch = batch_part(settings, obs_dim, action_dim)
        return [networks, *_sampler_parts(settings, action_dim), batch]


def _sampler_parts(settings: ActorCriticSettings, action_dim: int) -> list[Part]:
    """Return the sizes of the samplers' networks besides the policy."""
    gates = getattr(settings, "leapfrog_units", 0) if getattr(settings, "force_gate", "") == "gated" else 0
    return [
        Part(FLOAT * gates * 4 * action_dim, "leapfrog_units"),
        Part(FLOAT * getattr(settings, "num_flows", 0) * action_dim, "num_flows"),
    ]

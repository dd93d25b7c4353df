"""Implement TD3 and DDPG: a deterministic policy, explored with noise (Fujimoto et al. 2018, arXiv 1802.09477).

DDPG (Lillicrap et al. 2015, arXiv 1509.02971) is TD3 without its three additions: one critic, no delay, no noise at the
target's actions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from rllib_hpo.algorithms.base import Actor, Memory, Method, Metrics, Noise, Remembered
from rllib_hpo.algorithms.footprint import (
    COPIES_WITH_TARGET,
    Part,
    batch_part,
    policy_and_critics,
)
from rllib_hpo.algorithms.losses import bellman_target, critic_loss
from rllib_hpo.networks.mlp import make_mlp
from rllib_hpo.networks.normalized_critics import make_critics
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch
from rllib_hpo.samplers.exploration import explored
from rllib_hpo.settings import NetworkSettings, PositiveFloat, PositiveInt
from rllib_hpo.streams import Draw, TorchStreams, torch_generator

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TD3Settings(NetworkSettings):
    """Twin delayed DDPG, with the settings of its authors' code."""

    sampler: ClassVar[str] = "deterministic"
    changeable: ClassVar[frozenset[str]] = NetworkSettings.changeable | frozenset(
        "critic_lr exploration_noise ou_theta policy_delay target_noise target_noise_clip".split()
    )

    warmup_steps: Annotated[
        PositiveInt,
        Field(description="Environment steps before the first update; warmup_policy chooses their actions."),
    ] = 25_000
    critic_lr: Annotated[
        PositiveFloat | None,
        Field(description="Adam learning rate of the critics; null: lr, that of the policy."),
    ] = None
    num_critics: Annotated[
        int,
        Field(
            ge=1,
            le=10,
            description="Number of critics, whose minimum is the target; the policy maximises the first.",
        ),
    ] = 2
    policy_delay: Annotated[
        PositiveInt, Field(description="Critic updates per update of the policy and of all target networks.")
    ] = 2
    target_noise: Annotated[
        NonNegative, Field(description="Std of the noise on target actions, which are in [-1, 1].")
    ] = 0.2
    target_noise_clip: Annotated[
        PositiveFloat, Field(description="Bound to which the target noise is clipped.")
    ] = 0.5
    exploration_noise: Annotated[
        NonNegative, Field(description="Std of the exploration noise; actions are in [-1, 1].")
    ] = 0.1
    exploration_process: Annotated[
        Literal["normal", "ou"],
        Field(description="Exploration noise: independent at each step, or an Ornstein-Uhlenbeck process."),
    ] = "normal"
    ou_theta: Annotated[
        float,
        Field(gt=0, le=1, description="Mean-reversion rate of the Ornstein-Uhlenbeck process, per step."),
    ] = 0.15

    @override
    def notices(self) -> list[str]:
        """List settings of the target's noise without effect."""
        if self.target_noise == 0 and "target_noise_clip" in self.model_fields_set:
            return ["target_noise_clip has no effect with target_noise=0."]
        return []


class DDPGSettings(TD3Settings):
    """Deep deterministic policy gradient, as "OurDDPG" of TD3's authors: with TD3's networks and optimizer.

    `tune_configs/deterministic.yaml` runs it as published, with noise of an Ornstein-Uhlenbeck process.
    """

    num_critics: Annotated[
        int,
        Field(
            ge=1,
            le=10,
            description="Number of critics, whose minimum is the target; the policy maximises the first.",
        ),
    ] = 1
    policy_delay: Annotated[
        PositiveInt, Field(description="Critic updates per update of the policy and of all target networks.")
    ] = 1
    target_noise: Annotated[
        NonNegative, Field(description="Std of the noise on target actions, which are in [-1, 1].")
    ] = 0.0


class DeterministicActor(Actor):
    """Act by a = tanh(mu(s)), with added noise in exploration."""

    settings: TD3Settings

    def __init__(self, obs_dim: int, action_dim: int, settings: TD3Settings, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings)
        stream = torch_generator(seed, "initial weights", "policy")
        sizes = settings.hidden_units, settings.policy_layers
        self.policy = make_mlp(obs_dim, *sizes, action_dim, stream, settings.policy_activation)

    @property
    @override
    def memory(self) -> Mapping[str, Remembered]:
        """The state of the Ornstein-Uhlenbeck process, if exploration uses one."""
        is_process = self.settings.exploration_process == "ou"
        return {"noise": Remembered((self.action_dim,), only_exploring=True)} if is_process else {}

    @override
    def forward(self, obs: Tensor, memory: Memory | None = None) -> Tensor:
        """See `Actor.forward`."""
        return torch.tanh(self.policy(obs))

    @override
    def explore(self, obs: Tensor, streams: TorchStreams, memory: Memory) -> Tensor:
        """See `Actor.explore`."""
        settings = self.settings
        return explored(self(obs), streams["action"], settings.exploration_noise, settings.ou_theta, memory)


class TD3Model(DeterministicActor):
    """Add the critics, and the targets of policy and critics, to the actor."""

    def __init__(self, obs_dim: int, action_dim: int, settings: TD3Settings, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings, seed)
        stream = torch_generator(seed, "initial weights", "critics")
        self.critics = make_critics(obs_dim, action_dim, settings, stream, settings.num_critics)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.target_policy = copy.deepcopy(self.policy).requires_grad_(False)

    def target_action(self, obs: Tensor) -> Tensor:
        """Return noise-free actions (B, A) of the target policy for obs (B, S)."""
        return torch.tanh(self.target_policy(obs))


DelayedSettingsT = TypeVar("DelayedSettingsT", bound=TD3Settings)
DelayedModelT = TypeVar("DelayedModelT", bound=TD3Model)


class TD3(Method[DelayedSettingsT, DelayedModelT]):
    """Update the critics each time, and the policy and all targets every `policy_delay` updates.

    Override `improve` for another objective of the policy.
    """

    actor_class: ClassVar[type[Any]] = DeterministicActor
    model_class: ClassVar[type[Any]] = TD3Model

    @override
    def trained(self, model: DelayedModelT) -> Mapping[str, Sequence[Tensor]]:
        return {"critic": list(model.critics.parameters()), "policy": list(model.policy.parameters())}

    @override
    def learning_rate(self, loss: str) -> float:
        rate = self.settings.critic_lr if loss == "critic" else None
        return self.settings.lr if rate is None else rate

    @override
    def draws(self, model: DelayedModelT) -> Mapping[str, Draw]:
        return {"target": Draw(1, (model.action_dim,))} if self.settings.target_noise else {}

    @override
    def kind(self, update: int) -> str:
        return "critics and policy" if update % self.settings.policy_delay == 0 else "critics"

    @override
    def update(self, model: DelayedModelT, batch: Batch, noise: Noise, steps: Steps, kind: str) -> Metrics:
        q = model.critics(batch.obs, batch.action)
        loss_critic = critic_loss(q, self.target(model, batch, noise))
        steps.descend("critic", loss_critic)
        metrics = {"critic_loss": loss_critic.detach(), "q_mean": q.detach().mean()}
        if kind == "critics":
            return metrics

        metrics |= self.improve(model, batch.obs, steps)
        steps.track(model.target_critics, model.critics, self.settings.tau)
        steps.track(model.target_policy, model.policy, self.settings.tau)
        return metrics

    def improve(self, model: DelayedModelT, obs: Tensor, steps: Steps) -> Metrics:
        """Ascend Q_1 at the policy's actions for obs (B, S)."""
        loss = -model.critics.first(obs, model(obs)).mean()
        steps.descend("policy", loss)
        return {"policy_loss": loss.detach()}

    @torch.no_grad()
    def target(self, model: DelayedModelT, batch: Batch, noise: Noise) -> Tensor:
        """Return r + gamma (1 - terminated) min target Q(s', a'), (B,), where a' has clipped noise."""
        action = model.target_action(batch.next_obs)
        if "target" in noise:
            bound = self.settings.target_noise_clip
            action = (action + (self.settings.target_noise * noise["target"]).clamp(-bound, bound)).clamp(
                -1, 1
            )
        next_q = model.target_critics.minimum(batch.next_obs, action)
        return bellman_target(batch.reward, batch.terminated, next_q, None, None, self.settings.gamma)

    @override
    def actor_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """Return the size of the policy."""
        settings = self.settings
        sizes = {"copies_of_policy": 1, "copies_of_critics": 0, "policy_outputs": action_dim}
        return [policy_and_critics(settings, obs_dim, action_dim, **sizes)]

    @override
    def learner_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """Return the sizes of all networks with their targets and optimizers, and of a batch."""
        settings = self.settings
        networks = policy_and_critics(
            settings,
            obs_dim,
            action_dim,
            copies_of_policy=COPIES_WITH_TARGET,
            copies_of_critics=COPIES_WITH_TARGET,
            policy_outputs=action_dim,
            num_critics=settings.num_critics,
        )
        return [networks, batch_part(settings, obs_dim, action_dim)]

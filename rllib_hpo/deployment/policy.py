"""The noise-free policy as one module: sampler, leapfrog steps, target critics and action scaling included."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rllib_hpo.deployment.metadata import PolicyMetadata
from rllib_hpo.errors import SettingsError
from rllib_hpo.learning.actor_critic import Actor
from rllib_hpo.samplers.base import zero_noise
from rllib_hpo.tasks import ActionScaling


class DeployedPolicy(nn.Module):
    """Observation in, action within the environment's bounds out; float32, on any device, without gradients.

    Args:
        actor: Where the weights come from; they are copied.
        metadata: What the policy is.

    Raises:
        SettingsError: If the critics are not ReLU networks: the analytic force would be another one.
    """

    def __init__(self, actor: Actor, metadata: PolicyMetadata) -> None:
        super().__init__()
        if actor.settings.critic_activation != "relu":
            raise SettingsError(
                f"critic_activation={actor.settings.critic_activation!r} cannot be exported: the force is exact "
                "for 'relu' only."
            )
        self.metadata = metadata
        self.actor = Actor(actor.obs_dim, actor.action_dim, actor.settings, seed=0)
        wanted = self.actor.state_dict()
        self.actor.load_state_dict({name: actor.state_dict()[name] for name in wanted})
        self.requires_grad_(False)
        scaling = ActionScaling(*metadata.action_space.bounds())
        for name in ("low", "high", "center", "half"):
            self.register_buffer(f"action_{name}", torch.from_numpy(getattr(scaling, name)))

    def forward(self, obs: Tensor) -> Tensor:
        """Actions (B, A) for obs (B, S), as `Actor.act` and `ActionScaling.to_env` give them."""
        noise = zero_noise(self.actor.sampler, obs.shape[0], obs.device)
        action = self.actor.sample(obs, noise, "train").action
        low, high, center, half = (
            self.get_buffer(f"action_{name}") for name in ("low", "high", "center", "half")
        )
        # Clipped again, since rounding may step just outside the bounds.
        return (center + half * action.clamp(-1.0, 1.0)).clamp(low, high)

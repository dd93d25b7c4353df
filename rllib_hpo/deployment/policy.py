"""The noise-free policy as one module: networks, leapfrog steps and action scaling included."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rllib_hpo.algorithms.base import Actor
from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.deployment.metadata import PolicyMetadata
from rllib_hpo.deployment.observations import Observation, ObservationEncoder
from rllib_hpo.tasks import ActionScaling


class DeployedPolicy(nn.Module):
    """Map observations to actions within the environment's bounds; float32, on any device, without gradients.

    Args:
        actor: Where the weights come from; they are copied.
        metadata: What the policy is.
    """

    def __init__(self, actor: Actor, metadata: PolicyMetadata) -> None:
        super().__init__()
        self.metadata = metadata
        self.actor = make_method(actor.settings).make_actor(actor.obs_dim, actor.action_dim, seed=0)
        wanted = self.actor.state_dict()
        self.actor.load_state_dict({name: actor.state_dict()[name] for name in wanted})
        self.requires_grad_(False)
        self.encoder = ObservationEncoder(metadata.observation_parts)
        scaling = ActionScaling(*metadata.action_space.bounds())
        for name in ("low", "high", "center", "half"):
            self.register_buffer(f"action_{name}", torch.from_numpy(getattr(scaling, name)))

    @property
    def memory(self) -> list[str]:
        """Names of the memory tensors that `forward` takes after the observations and returns after the actions."""
        return [name for name, kept in self.actor.memory.items() if kept.is_held(explores=False)]

    def forward(self, obs: Observation, *memory: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Actions (B, A) for obs (B, S), as `Actor.act` and `ActionScaling.to_env` compute them.

        Args:
            obs: (B, S), or the structure of the environment's observations with tensors (B, ...), as
                `metadata.observation_parts` describes them.
            memory: What the episodes remember, in the order of `memory`; at their start as `begin` gives it.

        Returns:
            The actions; with memory, a tuple of them and of its new values.
        """
        remembered = dict(zip(self.memory, memory, strict=True))
        action = self.actor(self.actor.normalized(self.encoder(obs)), remembered)
        low, high, center, half = (
            self.get_buffer(f"action_{name}") for name in ("low", "high", "center", "half")
        )
        # Clipped again, since rounding may step just outside the bounds.
        scaled = (center + half * action.clamp(-1.0, 1.0)).clamp(low, high)
        return (scaled, *remembered.values()) if memory else scaled

    def begin(self, obs: Observation) -> list[Tensor]:
        """The memory at the start of episodes whose first observations are `obs`; see `forward`."""
        return list(self.actor.begin_episodes(self.encoder(obs), explores=False).values())

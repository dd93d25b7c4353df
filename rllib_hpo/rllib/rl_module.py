"""The actor-critic as an RLModule, for runners, checkpoints and whoever serves a trained policy."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.annotations import override
from torch import Tensor

from rllib_hpo.learning.actor_critic import Actor, ActorCritic
from rllib_hpo.samplers.base import draw_noise, zero_noise
from rllib_hpo.streams import TorchStreams


class ActorCriticModule(TorchRLModule, InferenceOnlyAPI):
    """Holds an `Actor` (inference only) or an `ActorCritic`, and returns finished actions in [-1, 1].

    RLlib would make an action distribution of the outputs; its deterministic tanh-Gaussian is wrong, and
    a Hamiltonian policy is no distribution it knows. Returning `Columns.ACTIONS` avoids both.
    """

    @override(TorchRLModule)
    def setup(self) -> None:
        dims = self.observation_space.shape[0], self.action_space.shape[0]
        network = Actor if self.inference_only else ActorCritic
        self.model = network(*dims, self.model_config["settings"], self.model_config["seed"])
        self._streams = TorchStreams(self.model_config["seed"], "module")

    @override(InferenceOnlyAPI)
    def get_non_inference_attributes(self) -> list[str]:
        return ["model.critics"]

    @torch.no_grad()
    def act(self, obs: Tensor, streams: TorchStreams | None) -> Tensor:
        """Actions (B, A) in [-1, 1] for obs (B, S): exploring with noise of `streams`, or noise-free (None)."""
        sampler = self.model.sampler
        if streams is None:
            return self.model.sample(obs, zero_noise(sampler, len(obs), obs.device), "train").action
        noise = draw_noise(sampler, len(obs), streams, obs.device)
        return self.model.sample(obs, noise, "explore").action

    @override(TorchRLModule)
    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self.act(batch[Columns.OBS], None)}

    @override(TorchRLModule)
    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self.act(batch[Columns.OBS], self._streams)}

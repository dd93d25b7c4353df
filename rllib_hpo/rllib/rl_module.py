"""The actor-critic as an RLModule, for runners, checkpoints and whoever serves a trained policy."""

from __future__ import annotations

from typing import Any

from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.annotations import override

from rllib_hpo.learning.actor_critic import Actor, ActorCritic
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

    @override(TorchRLModule)
    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self.model.act(batch[Columns.OBS])}

    @override(TorchRLModule)
    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self.model.act(batch[Columns.OBS], self._streams)}

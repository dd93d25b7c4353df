"""The RLModule: networks for runners, checkpoints and deployed policies."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.annotations import override

from rllib_hpo.algorithms.base import Actor
from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.streams import TorchStreams


class ActorCriticModule(TorchRLModule, InferenceOnlyAPI):
    """Hold a method's actor (inference only) or its whole model, and return finished actions in [-1, 1].

    RLlib would make an action distribution of the outputs; its deterministic tanh-Gaussian is wrong, and
    a Hamiltonian policy is no distribution it knows. Returning `Columns.ACTIONS` avoids both.
    """

    @override(TorchRLModule)
    def setup(self) -> None:
        dims = self.observation_space.shape[0], self.action_space.shape[0]
        self._method = make_method(self.model_config["settings"])
        make = self._method.make_actor if self.inference_only else self._method.make_model
        self.model: Actor = make(*dims, self.model_config["seed"])
        self._streams = TorchStreams(self.model_config["seed"], "module")

    @override(InferenceOnlyAPI)
    def get_non_inference_attributes(self) -> list[str]:
        """Names of the parameters and buffers that only a learner holds."""
        return [] if self.inference_only else self._learned_only

    @functools.cached_property
    def _learned_only(self) -> list[str]:
        actor = self._method.make_actor(self.model.obs_dim, self.model.action_dim, self.model_config["seed"])
        return [f"model.{name}" for name in self.model.state_dict().keys() - actor.state_dict().keys()]

    @override(TorchRLModule)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state with every tensor in its own type; RLlib would round float64 statistics to float32."""
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        wide = {name: value for name, value in self.state_dict().items() if value.dtype == torch.float64}
        return state | {name: value.cpu().numpy().copy() for name, value in wide.items() if name in state}

    @override(TorchRLModule)
    def set_state(self, state: dict[str, Any]) -> None:
        """Load every tensor in its own type; see `get_state`."""
        tensors = {
            name: torch.from_numpy(np.require(value, requirements="W")) for name, value in state.items()
        }
        missing, _ = self.load_state_dict(tensors, strict=False)
        if self.inference_only and missing:
            raise ValueError(f"the state lacks {', '.join(missing)}")

    @override(TorchRLModule)
    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self.model.act(batch[Columns.OBS])}

    @override(TorchRLModule)
    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self.model.act(batch[Columns.OBS], self._streams)}

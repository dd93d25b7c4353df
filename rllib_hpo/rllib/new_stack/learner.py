"""The RLlib Learner: it owns the networks, their optimizers and the replay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy.typing as npt
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.annotations import override

from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.errors import SettingsError
from rllib_hpo.learning.memory import explain_out_of_memory, limit_gpu_memory
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.learning.trainer import Trainer
from rllib_hpo.optim.replicas import ALONE, Replica
from rllib_hpo.rllib._private import LearnerHooks, learner_device, wants_component
from rllib_hpo.rllib.torch_options import set_torch_options

COLLECTIVE_TIMEOUT_S = 45.0
"""Timeout of collective operations, as after the loss of a machine; the death of a process is seen at once.

With `learners.GRACE_S` a run ends after 50 s, within the minute that the README promises.
"""

_PROGRESS = "progress"


@contextmanager
def device_without_ray(local: bool) -> Iterator[None]:
    """Keep RLlib from starting a Ray cluster to find the GPU of a learner in this process (`local`)."""
    with learner_device(_local_device) if local and not ray.is_initialized() else nullcontext():
        yield


def _local_device(config: Any, num_gpus: float) -> torch.device:
    """The device of a local learner: the GPU `local_gpu_idx`, or the CPU.

    Raises:
        SettingsError: If there is no such GPU.
    """
    if not num_gpus:
        return torch.device("cpu")
    index, number = config.local_gpu_idx, torch.cuda.device_count()
    if index >= number:
        raise SettingsError(f"local_gpu_idx={index}, but torch finds {number} GPUs here, numbered from 0.")
    return torch.device("cuda", index)


class ActorCriticLearner(LearnerHooks, TorchLearner):
    """Learn from a replay of its own.

    Replaces `Learner.update(batch=...)`: transitions arrive once (`core.add_transitions`), and every batch is drawn in
    this process (`core.update_from_replay`). So an update needs no connector, no episode and no copy between processes.
    """

    core: ReplayLearner
    """The replay and its updates, without RLlib."""

    idle_since: float | None = None
    """End of the last `TrainCall`, by `time.perf_counter`."""

    @override(TorchLearner)
    def build(self) -> None:
        set_torch_options(self.config.num_torch_threads)
        with device_without_ray(self.config.num_learners == 0):
            super().build()
        model = self.module[DEFAULT_MODULE_ID].unwrapped().model
        if self.config.limit_gpu_memory:
            limit_gpu_memory(self.config.num_gpus_per_learner, model.device)
        replica = Replica.of_this_process(COLLECTIVE_TIMEOUT_S) if self.config.num_learners > 1 else ALONE
        replica.broadcast(list(model.state_dict().values()))
        with explain_out_of_memory():
            trainer = Trainer(self._method, model, self._adam, self.config.seed, replica)
            self.core = ReplayLearner(trainer)

    @override(TorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register one fused Adam for each loss, so that RLlib saves them."""
        self._method = make_method(self.config.settings())
        self._adam = self._method.make_optimizers(self.module[module_id].unwrapped().model)
        for name, optimizer in self._adam.items():
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self.register_optimizer(
                module_id=module_id, optimizer_name=name, optimizer=optimizer, params=parameters
            )

    @override(Learner)
    def compute_loss_for_module(self, **kwargs: Any) -> Any:
        raise TypeError("ActorCriticLearner draws its own batches: call core.update_from_replay().")

    def acting_state(self) -> dict[str, npt.NDArray[Any]]:
        """Parameters and buffers of the actor, by name."""
        module = self.module[DEFAULT_MODULE_ID].unwrapped()
        state: dict[str, npt.NDArray[Any]] = module.get_state(inference_only=True)
        return state

    @override(Learner)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Add streams and counters to RLlib's state. The replay is not part of it: it is saved in segments."""
        state: dict[str, Any] = super().get_state(components, not_components=not_components, **kwargs)
        if wants_component(self, _PROGRESS, components, not_components):
            state[_PROGRESS] = self.core.trainer.get_state()
        return state

    @override(Learner)
    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if _PROGRESS in state:
            self.core.trainer.set_state(state[_PROGRESS])

"""RLlib's Policy API (the old stack) around the package's networks and updates."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from ray.rllib.models.torch.torch_modelv2 import TorchModelV2
from ray.rllib.policy.policy import Policy
from ray.rllib.policy.sample_batch import SampleBatch
from ray.rllib.policy.torch_policy_v2 import TorchPolicyV2
from ray.rllib.policy.view_requirement import ViewRequirement
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    DIFF_NUM_GRAD_UPDATES_VS_SAMPLER_POLICY,
    NUM_AGENT_STEPS_TRAINED,
    NUM_GRAD_UPDATES_LIFETIME,
)
from ray.rllib.utils.metrics.learner_info import LEARNER_STATS_KEY
from torch import Tensor, nn

from rllib_hpo.algorithms.base import Actor
from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.errors import SettingsError
from rllib_hpo.learning.memory import explain_out_of_memory, limit_gpu_memory
from rllib_hpo.learning.trainer import Trainer
from rllib_hpo.replay.layout import Batch
from rllib_hpo.rllib._private import PolicyHooks
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.rllib.torch_options import set_torch_options
from rllib_hpo.streams import TorchStreams
from rllib_hpo.tasks.observations import FlatSpace


class _DurableNames(logging.Filter):
    """Drop RLlib's advice to add a policy of this package to a table of its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log `record`."""
        return f"durable policy name for <class '{__name__}." not in record.getMessage()


logging.getLogger("ray.rllib.policy.policy").addFilter(_DurableNames())
_TRAINER, _EXPLORATION = "trainer", "exploration_streams"
_STRUCTURE = "observation_structure"
"""Key of a policy's state for the structure of its observations, which RLlib's form of a space would lose."""


class ActorCriticModel(TorchModelV2, nn.Module):
    """All networks as one model, targets included, since a policy's weights are those that workers act with."""

    def __init__(
        self,
        observation_space: gym.spaces.Box,
        action_space: gym.spaces.Box,
        config: ActorCriticConfig,
    ) -> None:
        obs_dim, action_dim = observation_space.shape[0], action_space.shape[0]
        TorchModelV2.__init__(
            self, observation_space, action_space, action_dim, config["model"], "actor_critic"
        )
        nn.Module.__init__(self)
        method = make_method(config.settings())
        self.model: Actor = method.make_model(obs_dim, action_dim, config.seed)

    @override(TorchModelV2)
    def forward(
        self, input_dict: Mapping[str, Tensor], state: list[Tensor], seq_lens: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Noise-free actions (B, A) in [-1, 1]."""
        return self.model.act(input_dict[SampleBatch.OBS].float()), state


class ActorCriticTorchPolicy(PolicyHooks, TorchPolicyV2):
    """Act and learn with a method of this package; actions are in [-1, 1], and RLlib unsquashes them.

    `explore=True` draws noise from streams of this policy, `explore=False` uses none. `learn_on_batch` makes one
    whole update of critics, policy, temperature and targets; it cannot compute gradients alone.

    Args:
        observation_space: A flat Box.
        action_space: A bounded flat Box.
        config: An `ActorCriticConfig`, or a dict of what differs from the algorithm's defaults. With a share of a GPU
            (`num_gpus`) the policy that learns may hold no more than that share of its memory.
    """

    algorithm: ClassVar[str] = "sac"
    """Algorithm of a config that names none."""

    def __init__(
        self,
        observation_space: gym.spaces.Box,
        action_space: gym.spaces.Box,
        config: ActorCriticConfig | Mapping[str, Any],
    ) -> None:
        config = self._complete_config(config)
        self.settings = config.settings()
        self._method = make_method(self.settings)
        set_torch_options(self.settings.num_torch_threads)
        super().__init__(observation_space, action_space, config)
        if config.limit_gpu_memory:
            limit_gpu_memory(config.num_gpus, self.device)
        self._validate_stack_support(self.model.model)
        with explain_out_of_memory():
            self.trainer = Trainer(self._method, self.model.model, self._adam, config.seed)
        self._worker_index = int(getattr(config, "worker_index", 0))
        self._set_streams(config.seed, joined_at=0)
        self.random_actions = False
        """Whether exploring is acting uniformly at random, as in the warm-up."""

    @classmethod
    def _complete_config(cls, config: ActorCriticConfig | Mapping[str, Any]) -> ActorCriticConfig:
        if isinstance(config, ActorCriticConfig):
            complete = config.copy(copy_frozen=False)
        else:
            complete = ActorCriticConfig(config.get("algorithm", cls.algorithm)).update_from_dict(
                dict(config)
            )
        if complete.seed is None:
            complete.seed = secrets.randbelow(2**31)
        return complete

    def _set_streams(self, seed: int, joined_at: int) -> None:
        """Set streams that belong to this worker; a worker that joins later repeats no earlier draws."""
        self._seed, self._owner = seed, ("policy", self._worker_index, joined_at)
        self.streams = TorchStreams(seed, *self._owner, device=self.device)

    def reseed(self, seed: int, joined_at: int) -> None:
        """Replace the streams of exploration by those of `seed`."""
        self._set_streams(seed, joined_at)

    def join(self, env_steps: int) -> None:
        """Replace the streams of exploration by those of a worker that joins at `env_steps`."""
        self.global_timestep = env_steps
        self.num_grad_updates = self.trainer.num_updates
        self._set_streams(self._seed, env_steps)

    @override(Policy)
    def init_view_requirements(self) -> None:
        """The columns of a transition, and what RLlib's sampler needs to keep episodes apart."""
        columns = (
            SampleBatch.ACTIONS,
            SampleBatch.REWARDS,
            SampleBatch.TERMINATEDS,
            SampleBatch.TRUNCATEDS,
            SampleBatch.EPS_ID,
            SampleBatch.T,
        )
        self.view_requirements = {
            SampleBatch.OBS: ViewRequirement(space=self.observation_space),
            SampleBatch.NEXT_OBS: ViewRequirement(
                SampleBatch.OBS, shift=1, space=self.observation_space, used_for_compute_actions=False
            ),
            **{name: ViewRequirement(used_for_compute_actions=False) for name in columns},
        }

    def _validate_stack_support(self, actor: Actor) -> None:
        """Check that the method needs nothing that RLlib's samplers do not pass on: info, memory, episodes.

        Raises:
            SettingsError: Naming the algorithm.
        """
        lacking = {f"the column '{column.name}'": True for column in self._method.row_columns} | {
            "memory within episodes": any(kept.is_held(explores=True) for kept in actor.memory.values()),
            "notification of ended episodes": self._method.watches_episodes,
        }
        if wanted := [name for name, is_needed in lacking.items() if is_needed]:
            raise SettingsError(
                f"algorithm={self.config.algorithm!r} with these settings needs {wanted[0]}, which RLlib's old API "
                "stack does not have; set api_stack to 'new'."
            )

    @override(TorchPolicyV2)
    def make_model(self) -> ActorCriticModel:
        return ActorCriticModel(self.observation_space, self.action_space, self.config)

    @override(TorchPolicyV2)
    def optimizer(self) -> list[torch.optim.Optimizer]:
        self._adam = self._method.make_optimizers(self.model.model)
        return list(self._adam.values())

    @override(TorchPolicyV2)
    def action_sampler_fn(
        self,
        model: ActorCriticModel,
        *,
        obs_batch: Mapping[str, Tensor],
        state_batches: list[Tensor],
        explore: bool = True,
        **kwargs: Any,
    ) -> tuple[Tensor, None, None, list[Tensor]]:
        """Actions (B, A) in [-1, 1]; no log-likelihood, since a Hamiltonian action has none."""
        obs = obs_batch[SampleBatch.OBS].float()
        if explore and self.random_actions:
            shape = len(obs), model.model.action_dim
            uniform = torch.rand(shape, generator=self.streams["warmup"], device=obs.device)
            return 2 * uniform - 1, None, None, state_batches
        return model.model.act(obs, self.streams if explore else None), None, None, state_batches

    @override(TorchPolicyV2)
    def learn_on_batch(self, postprocessed_batch: SampleBatch) -> dict[str, Any]:
        """Make one update with transitions whose actions are in [-1, 1].

        Raises:
            NonFiniteError: If a loss is not finite, naming the update and the loss.
        """
        custom_metrics: dict[str, Any] = {}
        self.callbacks.on_learn_on_batch(policy=self, train_batch=postprocessed_batch, result=custom_metrics)
        metrics = self.trainer.learn(self._columns(postprocessed_batch))
        sampled_with = postprocessed_batch.num_grad_updates or 0
        lag = self.num_grad_updates - sampled_with
        self.num_grad_updates = self.trainer.num_updates
        values = torch.stack(list(metrics.values())).tolist()  # waits for the device once
        return {
            LEARNER_STATS_KEY: dict(zip(metrics, values, strict=True)),
            "model": {},
            "custom_metrics": custom_metrics,
            NUM_AGENT_STEPS_TRAINED: postprocessed_batch.count,
            NUM_GRAD_UPDATES_LIFETIME: self.num_grad_updates,
            DIFF_NUM_GRAD_UPDATES_VS_SAMPLER_POLICY: lag,
        }

    @override(TorchPolicyV2)
    def learn_on_loaded_batch(self, offset: int = 0, buffer_index: int = 0) -> dict[str, Any]:
        """Make one update with `train_batch_size_per_learner` transitions of a loaded batch, from `offset` on.

        Raises:
            ValueError: If no batch was loaded.
        """
        loaded: SampleBatch | None = self.loaded_batch(buffer_index)
        if loaded is None:
            raise ValueError("Call load_batch_into_buffer() before learn_on_loaded_batch().")
        return self.learn_on_batch(loaded[offset : offset + self.settings.train_batch_size_per_learner])

    @override(TorchPolicyV2)
    def compute_gradients(self, postprocessed_batch: SampleBatch) -> Any:
        raise NotImplementedError(
            "An update of this policy takes several gradient steps in a fixed order: call learn_on_batch()."
        )

    def _columns(self, batch: SampleBatch) -> Batch:
        tensors = self.as_tensors(batch)
        return Batch(
            obs=tensors[SampleBatch.OBS].float(),
            action=tensors[SampleBatch.ACTIONS].float(),
            reward=tensors[SampleBatch.REWARDS].float(),
            terminated=tensors[SampleBatch.TERMINATEDS].float(),
            next_obs=tensors[SampleBatch.NEXT_OBS].float(),
        )

    @override(TorchPolicyV2)
    def get_weights(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of all weights, targets included; RLlib's would change as training goes on."""
        return {name: value.cpu().numpy().copy() for name, value in self.model.state_dict().items()}

    @override(TorchPolicyV2)
    def set_weights(self, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Load every tensor in its own type; RLlib would round float64 to float32."""
        tensors = {
            name: torch.from_numpy(np.require(value, requirements="W")) for name, value in weights.items()
        }
        self.model.load_state_dict(tensors)

    @override(TorchPolicyV2)
    def get_state(self) -> dict[str, Any]:
        """Add counters and random streams to RLlib's weights and optimizers."""
        state: dict[str, Any] = super().get_state()
        state[_TRAINER] = self.trainer.get_state()
        state[_EXPLORATION] = {
            "owner": self._owner,
            "seed": self._seed,
            "streams": self.streams.get_state(),
        }
        if isinstance(self.observation_space, FlatSpace):
            state[_STRUCTURE] = self.observation_space.structure
        return state

    @override(TorchPolicyV2)
    def set_state(self, state: dict[str, Any]) -> None:
        """Restore everything but the random streams of another worker, whose draws would be repeated."""
        mine = self.config
        super().set_state(state)
        self.config = mine
        if _STRUCTURE in state:
            self.observation_space = FlatSpace(state[_STRUCTURE])
        if _TRAINER in state:
            self.trainer.set_state(state[_TRAINER])
            self.num_grad_updates = self.trainer.num_updates
            saved = state[_EXPLORATION]
            seed = saved.get("seed", self._seed)
            if saved["owner"][:2] == ("policy", self._worker_index):
                self._set_streams(seed, saved["owner"][2])
                self.streams.set_state(saved["streams"])
            else:
                self._set_streams(seed, state["global_timestep"])


class SACGaussianTorchPolicy(ActorCriticTorchPolicy):
    """SAC as published, on the Policy API."""

    algorithm = "sac"


class SACNFTorchPolicy(ActorCriticTorchPolicy):
    """SAC with radial flows, on the Policy API."""

    algorithm = "sac-nf"


class SACHPOTorchPolicy(ActorCriticTorchPolicy):
    """SAC with a Hamiltonian policy, on the Policy API."""

    algorithm = "sac-hpo"


class TD3TorchPolicy(ActorCriticTorchPolicy):
    """TD3, on the Policy API."""

    algorithm = "td3"


class DDPGTorchPolicy(ActorCriticTorchPolicy):
    """DDPG, on the Policy API."""

    algorithm = "ddpg"


class MCMCPOTorchPolicy(ActorCriticTorchPolicy):
    """MCMC policy optimization, on the Policy API."""

    algorithm = "mcmc-po"


class LangevinPOTorchPolicy(ActorCriticTorchPolicy):
    """MCMC policy optimization of a deterministic policy, on the Policy API."""

    algorithm = "langevin-po"


class SoftQTorchPolicy(ActorCriticTorchPolicy):
    """Soft Q-learning, on the Policy API."""

    algorithm = "soft-q"


POLICIES: dict[str, type[ActorCriticTorchPolicy]] = {
    policy.algorithm: policy
    for policy in (
        SACGaussianTorchPolicy,
        SACNFTorchPolicy,
        SACHPOTorchPolicy,
        TD3TorchPolicy,
        DDPGTorchPolicy,
        MCMCPOTorchPolicy,
        LangevinPOTorchPolicy,
        SoftQTorchPolicy,
    )
}
"""Policy class of each built-in algorithm; others are an `ActorCriticTorchPolicy` with their config."""


def as_sample_batch(batch: Batch) -> SampleBatch:
    """A batch of the replay in RLlib's column format."""
    return SampleBatch(
        {
            SampleBatch.OBS: batch.obs,
            SampleBatch.ACTIONS: batch.action,
            SampleBatch.REWARDS: batch.reward,
            SampleBatch.TERMINATEDS: batch.terminated,
            SampleBatch.NEXT_OBS: batch.next_obs,
        }
    )

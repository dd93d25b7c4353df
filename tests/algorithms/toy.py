"""Define a minimal algorithm that uses every seam of the interface.

It is SAC-HPO with a cost critic in its force (Q - multiplier Q_C), extra columns from the environment's info, memory of
each episode, statistics of all rows, a multiplier updated by episodes, and two kinds of updates.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rllib_hpo.algorithms.base import Episode, Memory, Metrics, Noise, Remembered
from rllib_hpo.algorithms.losses import bellman_target, critic_loss
from rllib_hpo.algorithms.registry import register_algorithm
from rllib_hpo.algorithms.sac import SamplerActor, SoftActorCritic, SoftActorCriticModel
from rllib_hpo.networks.critics import ActionValue, ConditionedCritic, Critics, SubtractedCritic
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch, Column
from rllib_hpo.settings import SACHPOSettings
from rllib_hpo.streams import Draw, TorchStreams, torch_generator


class ToySettings(SACHPOSettings):
    """Settings of the toy."""

    copy_every: int = 3


class ToyActor(SamplerActor):
    """Act with a small shift towards the episode's first observation, and count exploring steps."""

    multiplier: Tensor

    def __init__(self, obs_dim: int, action_dim: int, settings: Any, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings, seed)
        stream = torch_generator(seed, "initial weights", "cost")
        self.target_cost = Critics(obs_dim, action_dim, 8, 1, stream, num=1).requires_grad_(False)
        self.register_buffer("multiplier", torch.ones(()))

    @property
    def memory(self) -> Mapping[str, Remembered]:
        return {"first_obs": Remembered((self.obs_dim,)), "num_steps": Remembered((), only_exploring=True)}

    def begin(self, obs: Tensor, *, explores: bool = True) -> Memory:
        return super().begin(obs, explores=explores) | {"first_obs": obs.clone()}

    def force_critic(self, obs: Tensor, target_critics: ConditionedCritic) -> ActionValue:
        return SubtractedCritic(target_critics, self.target_cost.condition(obs), self.multiplier)

    def forward(self, obs: Tensor, memory: Memory | None = None) -> Tensor:
        first_obs = (self.begin(obs) if memory is None else memory)["first_obs"]
        return (super().forward(obs) + 0.1 * torch.tanh(first_obs[:, :1])).clamp(-1, 1)

    def explore(self, obs: Tensor, streams: TorchStreams, memory: Memory) -> Tensor:
        memory["num_steps"] = memory["num_steps"] + 1
        shift = 0.1 * torch.tanh(memory["first_obs"][:, :1]) + 0.01 * memory["num_steps"][:, None]
        return (super().explore(obs, streams, memory) + shift).clamp(-1, 1)


class ToyModel(ToyActor, SoftActorCriticModel):
    """Add the cost critic, and the learner's counters."""

    row_sum: Tensor
    num_rows: Tensor
    num_episodes: Tensor
    num_copies: Tensor

    def __init__(self, obs_dim: int, action_dim: int, settings: Any, seed: int) -> None:
        super().__init__(obs_dim, action_dim, settings, seed)
        self.cost = copy.deepcopy(self.target_cost).requires_grad_(True)
        self.register_buffer("row_sum", torch.zeros(obs_dim, dtype=torch.float64))
        for name in ("num_rows", "num_episodes", "num_copies"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))


class Toy(SoftActorCritic[Any, Any]):
    """Update the toy; see the module."""

    actor_class, model_class = ToyActor, ToyModel
    columns = (Column("cost"), Column("place", 2))

    def trained(self, model: ToyModel) -> Mapping[str, Sequence[Tensor]]:
        return {"cost": list(model.cost.parameters()), **super().trained(model)}

    def draws(self, model: ToyModel) -> Mapping[str, Draw]:
        return {**super().draws(model), "cost": Draw(1, (), "uniform")}

    def kind(self, update: int) -> str:
        return "update and copy" if update % self.settings.copy_every == 0 else "update"

    def update(self, model: ToyModel, batch: Batch, noise: Noise, steps: Steps, kind: str) -> Metrics:
        next_sample, sample, target_critics = self.sample_both(model, batch, noise)
        with torch.no_grad():
            next_cost = model.target_cost.minimum(batch.next_obs, next_sample.action) + noise["cost"]
            cost = batch.extras["cost"] + batch.extras["place"].sum(-1)
            target = bellman_target(cost, batch.terminated, next_cost, None, None, self.settings.gamma)
        loss = critic_loss(model.cost(batch.obs, batch.action), target)
        steps.descend("cost", loss)
        metrics = self.learn(model, batch, next_sample, sample, target_critics, steps)
        if kind == "update":
            return metrics
        steps.track(model.target_cost, model.cost, tau=1.0)
        steps.assign(model.num_copies, model.num_copies + 1)
        return metrics | {"cost_loss": steps.mean(loss)}

    @torch.no_grad()
    def rows_added(self, model: ToyModel, rows: npt.NDArray[np.float32]) -> None:
        model.row_sum += torch.from_numpy(rows[:, : model.obs_dim].astype(np.float64).sum(0))
        model.num_rows += len(rows)

    @torch.no_grad()
    def episodes_ended(self, model: ToyModel, episodes: Sequence[Episode]) -> None:
        model.num_episodes += len(episodes)
        for episode in episodes:
            model.multiplier.add_(0.001 * (episode.cost - 4)).clamp_(min=0)


register_algorithm("toy", ToySettings, Toy, title="Toy")


class CostlyEnv(gym.Env[np.ndarray, np.ndarray]):
    """Cost 1 at every second step, and report the position in info. `silent` omits the cost."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, config: Any = None) -> None:
        self.config, self.position, self.number = dict(config or {}), np.zeros(2), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start at a random position."""
        super().reset(seed=seed)
        self.position, self.number = self.np_random.normal(size=2), 0
        return self.position.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move; an episode has eight steps."""
        self.number += 1
        self.position = self.position + 0.1 * action[0]
        info = {"cost": self.number % 2, "place": [self.number, -self.number]}
        if self.config.get("silent"):
            del info["cost"]
        return self.position.astype(np.float32), 1.0, False, self.number == 8, info

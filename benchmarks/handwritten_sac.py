"""Train SAC by a hand-written loop without a framework, as baseline of `benchmarks.train_speed`.

The algorithm equals that of `rllib_hpo` with default settings: tanh-Gaussian policy, twin critics, each with two
hidden layers of 256 ReLU units, Adam 3e-4, batch 256, fixed temperature 0.2, one update per step. It uses the usual
optimisations: fused Adam, one gather per batch from a ring of rows, critics frozen in the policy's step, no value read
back from a tensor. It imports nothing from the package.
"""

from __future__ import annotations

import copy
import math

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAMMA, TAU, ALPHA, LEARNING_RATE, BATCH_SIZE, HIDDEN_UNITS = 0.99, 0.005, 0.2, 3e-4, 256, 256


class Ring:
    """Hold the last `capacity` transitions, rows of [obs, action, reward, terminated, next_obs] in one array."""

    def __init__(self, obs_dim: int, action_dim: int, capacity: int, rng: np.random.Generator) -> None:
        self.widths = (obs_dim, action_dim, 1, 1, obs_dim)
        self.rows = np.empty((capacity, sum(self.widths)), np.float32)
        self.count = 0
        self.rng = rng

    def add(self, *columns: np.ndarray | tuple[float]) -> None:
        """Store one transition; overwrite the oldest when the ring is full."""
        np.concatenate(columns, out=self.rows[self.count % len(self.rows)], casting="same_kind")
        self.count += 1

    def sample(self) -> tuple[Tensor, ...]:
        """Draw a uniform batch: obs (B, O), action (B, A), reward (B, 1), terminated (B, 1), next_obs (B, O)."""
        indices = self.rng.integers(min(self.count, len(self.rows)), size=BATCH_SIZE)
        return torch.from_numpy(self.rows.take(indices, axis=0)).split(self.widths, dim=1)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Make two hidden ReLU layers, (B, inputs) -> (B, outputs)."""
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN_UNITS),
        nn.ReLU(inplace=True),
        nn.Linear(HIDDEN_UNITS, HIDDEN_UNITS),
        nn.ReLU(inplace=True),
        nn.Linear(HIDDEN_UNITS, outputs),
    )


class HandwrittenSAC:
    """Train SAC in one environment; `step()` makes one environment step and, after the warm-up, one update."""

    def __init__(
        self,
        env_id: str = "Hopper-v4",
        *,
        seed: int = 0,
        warmup_steps: int = 10_000,
        capacity: int = 1_000_000,
    ) -> None:
        self.env = gym.make(env_id, disable_env_checker=True)
        obs_space, action_space = self.env.observation_space, self.env.action_space
        assert isinstance(obs_space, gym.spaces.Box)
        assert isinstance(action_space, gym.spaces.Box)
        self.low, self.high = action_space.low, action_space.high
        obs_dim, self.action_dim = obs_space.shape[0], action_space.shape[0]

        torch.manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.policy = mlp(obs_dim, 2 * self.action_dim)
        self.critics = nn.ModuleList(mlp(obs_dim + self.action_dim, 1) for _ in range(2))
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), LEARNING_RATE, fused=True)
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), LEARNING_RATE, fused=True)
        self.critic_parameters: list[Tensor] = list(self.critics.parameters())
        self.target_parameters: list[Tensor] = list(self.targets.parameters())

        self.replay = Ring(obs_dim, self.action_dim, capacity, self.rng)
        self.warmup_steps, self.env_steps, self.updates = warmup_steps, 0, 0
        self.obs, _ = self.env.reset(seed=seed)

    def step(self) -> None:
        """Make one environment step and one update (no update in the warm-up)."""
        action = self.explore()
        next_obs, reward, terminated, truncated, _ = self.env.step(
            self.low + (action + 1) * 0.5 * (self.high - self.low)
        )
        self.replay.add(self.obs, action, (float(reward),), (float(terminated),), next_obs)
        self.obs = self.env.reset()[0] if terminated or truncated else next_obs
        self.env_steps += 1
        if self.env_steps > self.warmup_steps:
            self.update()

    def explore(self) -> np.ndarray:
        """Return an action in [-1, 1]: uniform in the warm-up, a draw of the policy after it."""
        if self.env_steps < self.warmup_steps:
            return self.rng.uniform(-1, 1, self.action_dim).astype(np.float32)
        with torch.no_grad():
            mean, log_std = self.policy(torch.from_numpy(self.obs.astype(np.float32))).chunk(2)
            return torch.tanh(mean + log_std.clamp_(-20, 2).exp_() * torch.randn_like(mean)).numpy()

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Draw reparametrised actions (B, A) and their log-densities (B, 1)."""
        mean, log_std = self.policy(obs).chunk(2, dim=1)
        log_std, noise = log_std.clamp(-20, 2), torch.randn_like(mean)
        u = mean + log_std.exp() * noise
        log_gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))
        return torch.tanh(u), (log_gaussian - log_slope).sum(dim=1, keepdim=True)

    def update(self) -> None:
        """Take one gradient step of the critics, one of the policy, and one Polyak step of the targets."""
        obs, action, reward, terminated, next_obs = self.replay.sample()
        with torch.no_grad():
            next_action, next_log_prob = self.sample(next_obs)
            inputs = torch.cat((next_obs, next_action), dim=1)
            next_q = torch.minimum(self.targets[0](inputs), self.targets[1](inputs)) - ALPHA * next_log_prob
            backup = reward + GAMMA * (1 - terminated) * next_q
        inputs = torch.cat((obs, action), dim=1)
        critic_loss = F.mse_loss(self.critics[0](inputs), backup) + F.mse_loss(
            self.critics[1](inputs), backup
        )
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()

        self.critics.requires_grad_(False)  # the policy's loss needs only their action gradient
        new_action, log_prob = self.sample(obs)
        inputs = torch.cat((obs, new_action), dim=1)
        q = torch.minimum(self.critics[0](inputs), self.critics[1](inputs))
        self.policy_optimizer.zero_grad()
        (ALPHA * log_prob - q).mean().backward()
        self.policy_optimizer.step()
        self.critics.requires_grad_(True)

        with torch.no_grad():
            torch._foreach_lerp_(self.target_parameters, self.critic_parameters, TAU)
        self.updates += 1

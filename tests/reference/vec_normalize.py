"""Normalise in float64 as VecNormalize of Stable-Baselines3 2.9 does (common/vec_env/vec_normalize.py)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class RunningMeanStd:
    """Merge the moments of batches, from mean 0, variance 1 and a count of 1e-4."""

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.mean, self.var, self.count = np.zeros(shape), np.ones(shape), 1e-4

    def update(self, batch: Floats) -> None:
        """Merge a batch (N, ...)."""
        mean, var, number = batch.mean(0), batch.var(0), len(batch)
        delta, total = mean - self.mean, self.count + number
        squares = self.var * self.count + var * number + delta**2 * self.count * number / total
        self.mean, self.var, self.count = self.mean + delta * number / total, squares / total, total


class VecNormalize:
    """Normalise the observations and rewards of N environments that are stepped together."""

    def __init__(self, num_envs: int, obs_dim: int, gamma: float) -> None:
        self.obs_rms, self.ret_rms = RunningMeanStd((obs_dim,)), RunningMeanStd()
        self._returns, self._gamma = np.zeros(num_envs), gamma

    def reset(self, obs: Floats) -> None:
        """Take the first observations (N, S)."""
        self._returns[:] = 0.0
        self.obs_rms.update(obs)

    def step(self, obs: Floats, reward: Floats, done: NDArray[np.bool_]) -> None:
        """Take the observations after a step, those of new episodes where one is done, and the rewards (N,)."""
        self.obs_rms.update(obs)
        self._returns = self._returns * self._gamma + reward
        self.ret_rms.update(self._returns)
        self._returns[done] = 0.0

    def normalize_obs(self, obs: Floats) -> Floats:
        """Normalise observations (..., S)."""
        scaled: Floats = np.clip((obs - self.obs_rms.mean) / np.sqrt(self.obs_rms.var + 1e-8), -10.0, 10.0)
        return scaled

    def normalize_reward(self, reward: Floats) -> Floats:
        """Scale rewards."""
        scaled: Floats = np.clip(reward / np.sqrt(self.ret_rms.var + 1e-8), -10.0, 10.0)
        return scaled

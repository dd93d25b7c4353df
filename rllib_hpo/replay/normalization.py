"""Normalise observations and rewards by running statistics, which are buffers of the model.

The statistics and their use are those of VecNormalize in Stable-Baselines3 (Raffin et al. 2021) and OpenAI Baselines.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

EPSILON = 1e-8
"""Added to variances."""
LARGEST = 10.0
"""Size at which normalised values are clipped."""
_FIRST_COUNT = 1e-4
"""Weight of the initial mean 0 and variance 1, in samples."""


class RunningMoments(nn.Module):
    """Hold the mean and the variance of all values so far, in float64.

    Args:
        size: Number of values in one sample.
    """

    mean: Tensor
    """(size,)."""
    var: Tensor
    """(size,), the population variance."""
    count: Tensor
    """Number of samples, a scalar."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(_FIRST_COUNT, dtype=torch.float64))

    @torch.no_grad()
    def update(self, values: npt.NDArray[np.floating]) -> None:
        """Merge N samples (N, size): the parallel algorithm of Chan, Golub & LeVeque 1979.

        The moments of the samples are computed by the host, so that a GPU is not waited for.
        """
        number = len(values)
        if number == 0:
            return
        wide = values.astype(np.float64)
        mean, var = (torch.from_numpy(one).to(self.mean.device) for one in (wide.mean(0), wide.var(0)))
        delta, total = mean - self.mean, self.count + number
        squares = self.var * self.count + var * number + delta.square() * self.count * number / total
        # In place, since captured updates read these tensors.
        self.mean.add_(delta * number / total)
        self.var.copy_(squares / total)
        self.count.copy_(total)


class ObservationNormalizer(RunningMoments):
    """Map observations to (s - mean) / sqrt(var + 1e-8), clipped to [-10, 10]."""

    def forward(self, obs: Tensor) -> Tensor:
        """Return normalised observations (..., S)."""
        scaled = (obs.double() - self.mean) / (self.var + EPSILON).sqrt()
        return scaled.clamp(-LARGEST, LARGEST).to(obs.dtype)


class RewardScaler(RunningMoments):
    """Divide rewards by sqrt(var + 1e-8) of the discounted return, and clip them to [-10, 10].

    A sample is the return G_t = gamma G_{t-1} + r_t of one environment, from 0 at the start of an episode.
    """

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, reward: Tensor) -> Tensor:
        """Return scaled rewards of the same shape."""
        scaled = reward.double() / (self.var + EPSILON).sqrt()
        return scaled.clamp(-LARGEST, LARGEST).to(reward.dtype)

"""Define a complete external package: an algorithm with its own sampler, and a task.

The algorithm is SAC with exploration `boldness` times as wide as the trained policy.
"""

import math
from typing import Annotated, ClassVar

from pydantic import Field

from rllib_hpo.algorithms.registry import register_algorithm
from rllib_hpo.samplers import register_sampler
from rllib_hpo.samplers.base import Sample
from rllib_hpo.samplers.gaussian import GaussianSampler, tanh_gaussian
from rllib_hpo.settings import PositiveFloat, SACSettings
from rllib_hpo.tasks import Task, register_task


class BoldSettings(SACSettings):
    """Add to SAC's hyperparameters one that `--set boldness=2.0` sets."""

    sampler: ClassVar[str] = "bold"
    boldness: Annotated[PositiveFloat, Field(description="Exploration's std over the policy's.")] = 1.5


class BoldSampler(GaussianSampler):
    """Draw from the tanh-Gaussian, with a larger spread in exploration."""

    def __init__(self, obs_dim, action_dim, settings, generator=None):
        super().__init__(obs_dim, action_dim, settings, generator)
        self.boldness = settings.boldness

    def forward(self, obs, noise, *, mode, critic, alpha, detached_rows=0):
        mean, log_std = self.policy(obs, detached_rows)
        if mode == "explore":
            log_std = log_std + math.log(self.boldness)
        return Sample(*tanh_gaussian(mean, log_std, noise["base"]))


register_sampler("bold", BoldSampler)
register_algorithm("sac-bold", BoldSettings)
register_task(Task("swing-up", "Pendulum-v1", 20_000, {"sac-bold": {"warmup_steps": 1_000}}))

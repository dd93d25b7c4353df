"""An external package, complete: an algorithm with a sampler of its own, and a task.

SAC whose exploration is `boldness` times as wide as the policy that it trains.
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
    """SAC's hyperparameters and one more, which `--set boldness=2.0` reaches."""

    sampler: ClassVar[str] = "bold"
    boldness: Annotated[PositiveFloat, Field(description="Exploration's std over the policy's.")] = 1.5


class BoldSampler(GaussianSampler):
    """The tanh-Gaussian, wider when it explores."""

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

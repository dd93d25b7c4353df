"""Implement randomized ensembled double Q-learning (Chen et al. 2021, arXiv 2101.05982) as an external package.

It is SAC with N critics. The target is the minimum of M of them, drawn at random; the policy follows the mean of all,
and is updated once per many updates of the critics. Use it with `update_to_data` of 20.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rllib_hpo.algorithms.base import Metrics, Noise
from rllib_hpo.algorithms.losses import bellman_target, critic_loss, policy_loss, temperature_loss
from rllib_hpo.algorithms.registry import register_algorithm
from rllib_hpo.algorithms.sac import SamplerActor, SoftActorCritic, SoftActorCriticModel
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch
from rllib_hpo.settings import PositiveInt, SACSettings
from rllib_hpo.streams import Draw


class REDQSettings(SACSettings):
    """Add the ensemble's settings to SAC's."""

    num_critics: Annotated[PositiveInt, Field(description="Critics N of the ensemble.")] = 10
    target_critics: Annotated[
        PositiveInt,
        Field(description="Critics M, drawn at random for each update, whose minimum is the target."),
    ] = 2
    policy_delay: Annotated[
        PositiveInt, Field(description="Updates of the critics for one of the policy.")
    ] = 20


class REDQActor(SamplerActor):
    """Give SAC's actor N target critics."""

    settings: REDQSettings

    @property
    def num_critics(self) -> int:
        return self.settings.num_critics


class REDQModel(REDQActor, SoftActorCriticModel):
    """Add the online critics."""


class REDQ(SoftActorCritic[REDQSettings, REDQModel]):
    """Update the critics each time, and policy and temperature every `policy_delay` updates."""

    actor_class, model_class = REDQActor, REDQModel

    def draws(self, model: REDQModel) -> Mapping[str, Draw]:
        return {**super().draws(model), "subset": Draw(1, (self.settings.num_critics,), "uniform")}

    def kind(self, update: int) -> str:
        return "critics and policy" if update % self.settings.policy_delay == 0 else "critics"

    def update(self, model: REDQModel, batch: Batch, noise: Noise, steps: Steps, kind: str) -> Metrics:
        next_sample, sample, _ = self.sample_both(model, batch, noise)
        alpha = model.alpha
        with torch.no_grad():
            next_q = self.of_subset(
                model.target_critics(batch.next_obs, next_sample.action), noise["subset"][0]
            )
            target = bellman_target(
                batch.reward, batch.terminated, next_q, next_sample.log_prob, alpha, self.settings.gamma
            )
        q = model.critics(batch.obs, batch.action)
        loss_critic = critic_loss(q, target)
        steps.descend("critic", loss_critic)
        metrics = {"critic_loss": loss_critic.detach(), "q_mean": q.detach().mean(), "alpha": alpha}
        if kind == "critics and policy":
            mean_q = model.critics(batch.obs, sample.action).mean(0)
            loss_policy = policy_loss(mean_q, sample.log_prob, sample.penalty, alpha)
            steps.descend("policy", loss_policy)
            metrics["policy_loss"] = loss_policy.detach()
            if "temperature" in steps and sample.log_prob is not None:
                loss = temperature_loss(model.log_alpha, sample.log_prob, model.target_entropy)
                steps.descend("temperature", loss)
        steps.track(model.target_critics, model.critics, self.settings.tau)
        return metrics

    def of_subset(self, q: Tensor, drawn: Tensor) -> Tensor:
        """Return the minimum, (B,), of the M of N critics with the largest random numbers (N,); q (N, B)."""
        chosen = drawn.topk(min(self.settings.target_critics, len(q))).indices
        return q.index_select(0, chosen).amin(0)


register_algorithm("redq", REDQSettings, REDQ, title="REDQ")

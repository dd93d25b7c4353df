"""One update of a maximum-entropy actor-critic: Algorithm 1 of arXiv 2103.12020, lines 8 to 10, on one screen.

A function of tensors: parameters, optimizer states, a batch and its noise. Indices and noise are drawn
outside, so the same function runs eagerly, is compiled, or is captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rllib_hpo.critics import ConditionedCritic
from rllib_hpo.learning.actor_critic import ActorCritic
from rllib_hpo.learning.adam import adam_step, make_adam
from rllib_hpo.learning.guards import Guard
from rllib_hpo.learning.losses import bellman_target, critic_loss, policy_loss, temperature_loss
from rllib_hpo.learning.parallel import ALONE, Replica
from rllib_hpo.learning.replay import Batch
from rllib_hpo.samplers.base import Noise, Sample
from rllib_hpo.settings import ActorCriticSettings


class Optimizers(NamedTuple):
    """One Adam each; the temperature's is None where it is fixed."""

    critic: torch.optim.Optimizer
    policy: torch.optim.Optimizer
    temperature: torch.optim.Optimizer | None


def make_optimizers(model: ActorCritic, settings: ActorCriticSettings) -> Optimizers:
    """Adam for the critics, for the policy with the sampler's networks, and for the temperature."""
    return Optimizers(
        critic=make_adam(list(model.critics.parameters()), settings.lr),
        policy=make_adam(list(model.sampler.parameters()), settings.lr),
        temperature=make_adam([model.log_alpha], settings.lr) if settings.alpha == "auto" else None,
    )


def update(
    model: ActorCritic,
    optimizers: Optimizers,
    batch: Batch,
    noise: Noise,
    settings: ActorCriticSettings,
    replica: Replica = ALONE,
    guard: Guard | None = None,
) -> dict[str, Tensor]:
    """Updates, in this order: critics; policy and leapfrog networks; temperature; target critics.

    Args:
        model: Changed in place.
        optimizers: Changed in place.
        batch: B transitions.
        noise: Standard normals for 2B draws: the first B at the next states, the others at the states.
        settings: Hyperparameters.
        replica: Which of the processes that make this update together, each with a batch of its own. All take
            the steps of the mean gradients, which are those of the concatenated batch.
        guard: What to do if a loss is not finite: raise an error at once, unless another is given.

    Returns:
        Scalars without gradient that describe this update, of this batch.

    Raises:
        NonFiniteError: If a loss is not finite, of whichever replica; the parameters it would have changed are
            untouched.
        WorkerDiedError: If another replica is gone.
    """
    guard = guard or Guard()
    guard.begin()
    num_rows = len(batch.reward)
    alpha = model.alpha
    next_sample, sample, target_critics = _sample_both(model, batch, noise)

    with torch.no_grad():
        next_q = target_critics.rows(slice(0, num_rows)).minimum(next_sample.action)
        target = bellman_target(
            batch.reward, batch.terminated, next_q, next_sample.log_prob, alpha, settings.gamma
        )
    q = model.critics(batch.obs, batch.action)
    loss_critic = critic_loss(q, target)
    _step(optimizers.critic, loss_critic, "critic loss", replica, guard)

    if settings.objective_critic == "online":
        objective_q = model.critics.minimum(batch.obs, sample.action)
    else:
        objective_q = target_critics.rows(slice(num_rows, None)).minimum(sample.action)
    loss_policy = policy_loss(objective_q, sample.log_prob, sample.penalty, alpha)
    _step(optimizers.policy, loss_policy, "policy loss", replica, guard)

    if optimizers.temperature is not None and sample.log_prob is not None:
        loss_temperature = temperature_loss(model.log_alpha, sample.log_prob, model.target_entropy)
        _step(optimizers.temperature, loss_temperature, "temperature loss", replica, guard)

    _move_targets(model, settings.tau, guard.frozen)
    return _metrics(loss_critic, loss_policy, q, sample, alpha)


def _sample_both(model: ActorCritic, batch: Batch, noise: Noise) -> tuple[Sample, Sample, ConditionedCritic]:
    """Actions at the next states, for the target, and at the states, for the policy, in one batch of 2B.

    Neither sees a parameter that this update changes before both are drawn, so one chain serves both.
    """
    num_rows = len(batch.reward)
    obs = torch.cat([batch.next_obs, batch.obs])
    target_critics = model.target_critics.condition(obs)
    both = model.sample(obs, noise, "train", critic=target_critics, detached_rows=num_rows)
    return _rows(both, slice(0, num_rows)), _rows(both, slice(num_rows, None)), target_critics


def _rows(sample: Sample, rows: slice) -> Sample:
    log_prob = None if sample.log_prob is None else sample.log_prob[rows]
    penalty = None if sample.penalty is None else sample.penalty[rows]
    return Sample(sample.action[rows], log_prob, penalty)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, name: str, replica: Replica, guard: Guard) -> None:
    """Adam along the gradient, in the optimizer's own parameters, of the loss's mean over all replicas."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        # The fused kernel takes parameters and gradients for rows of numbers in the same order.
        parameter.grad = None if gradient is None else gradient.contiguous()
    mean_loss = replica.average_gradients(optimizer, loss.detach())
    adam_step(optimizer, guard.check(mean_loss, name))


@torch.no_grad()
def _move_targets(model: ActorCritic, tau: float, frozen: Tensor | None) -> None:
    """Polyak averaging: target <- target + tau (online - target), unless frozen."""
    targets: list[Tensor] = list(model.target_critics.parameters())
    onlines: list[Tensor] = list(model.critics.parameters())
    if frozen is None:
        torch._foreach_lerp_(targets, onlines, tau)
    else:
        changes = torch._foreach_sub(onlines, targets)
        torch._foreach_mul_(changes, torch.rsub(frozen, tau, alpha=tau))
        torch._foreach_add_(targets, changes)


def _metrics(
    loss_critic: Tensor, loss_policy: Tensor, q: Tensor, sample: Sample, alpha: Tensor
) -> dict[str, Tensor]:
    metrics = {
        "critic_loss": loss_critic.detach(),
        "policy_loss": loss_policy.detach(),
        "q_mean": q.detach().mean(),
        "alpha": alpha,
    }
    if sample.log_prob is not None:
        metrics["log_prob_mean"] = sample.log_prob.detach().mean()
    return metrics

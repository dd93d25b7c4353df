"""Metrics of RLlib's results under flat names, as W&B, TensorBoard, Tune and Prometheus show them; what each means.

In RLlib's results `learner/X` is `learners/default_policy/X`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rllib_hpo.results import COST_COLUMNS, SUCCESS_RATE

MEANINGS: dict[str, str] = {
    "train/return_mean": "Mean return of the training episodes that ended lately, with the noise of exploration",
    "train/episode_length_mean": "Mean length of those episodes, in steps",
    "train/success_rate": "Share of those episodes that succeeded, where the environment reports `is_success`",
    "train/num_episodes": "Training episodes that have ended in all",
    "train/env_restarts": "Environments that were rebuilt after an error",
    "train/cost_mean": "Mean cost of the training episodes that ended lately",
    "train/cost_discounted_mean": "Mean discounted cost of those episodes",
    "train/cost_total": "Cost of all steps of training so far",
    "train/forward_max": "Farthest point forward in any training episode, in metres",
    "train/forward_min": "Farthest point backward in any training episode, in metres",
    "train/displacement_max": "Farthest from the start in any training episode, in metres",
    "train/goal_distance_min": "Smallest distance to a goal in any training episode, in metres",
    "evaluation/return_mean": "Mean return of the noise-free episodes of the latest evaluation",
    "evaluation/return_std": "Standard deviation of their returns",
    "evaluation/episode_length_mean": "Mean length of those episodes, in steps",
    "evaluation/success_rate": "Share of those episodes that succeeded, where the environment reports `is_success`",
    "evaluation/env_steps": "Environment step whose weights were evaluated",
    "evaluation/discounted_return_mean": "Mean discounted return, where the environment reports outcomes",
    "evaluation/cost_mean": "Mean cost of an episode of the evaluation",
    "evaluation/cost_sd": "Standard deviation of their costs",
    "evaluation/cost_discounted_mean": "Mean discounted cost of an episode",
    "evaluation/violation_share": "Share of the steps that cost something",
    "evaluation/cost_limit": "The limit that the task sets",
    "evaluation/forward_mean": "Mean of the episodes' farthest points forward, in metres",
    "evaluation/net_displacement_mean": "Mean distance between an episode's start and end, in metres",
    "evaluation/goal_distance_mean": "Mean of the episodes' smallest distances to a goal, in metres",
    "evaluation/goal_reached": "Share of the episodes that reached a goal; with a number, that goal",
    "evaluation/frames": "Steps of the simulator in training so far, repeats of actions included",
    "learner/critic_loss": "Loss of the critics",
    "learner/reconstruction_loss": "Mean squared error of the decoder's images",
    "learner/q_mean": "Mean Q of the batch, over critics and transitions",
    "learner/policy_loss": "Loss of the policy",
    "learner/alpha": "Temperature",
    "learner/log_prob_mean": "Mean log-density of the policy's actions, in nats",
    "learner/num_updates": "Updates made so far",
    "learner/replay_rows": "Transitions in the replay",
    "learner/gpu_memory_bytes": "Most GPU memory that torch has held at a time in the learner's process",
    "learner/gate_mean": "Mean gate of the leapfrog's force: 1 follows the gradient, 0 the learned translation",
    "learner/action_gradient_norm": "Mean norm of Q's gradient in the action, along the chain",
    "learner/q_gain": "Mean gain in Q from the first action to the last",
    "learner/clipped_share": "Share of the components of actions that the clipping to [-1, 1] changes",
    "learner/momentum_norm": "Mean norm of the last momentum",
    "learner/displacement": "Mean distance between first and last action",
    "learner/displacement_drift": "The same with zero momentum: what the force does alone",
    "learner/displacement_noise": "Mean distance between the last actions with and without momentum",
    "learner/displacement_value": "Mean displacement by the gradient of Q alone",
    "learner/displacement_prior": "Mean displacement by the pull of the previous policy alone",
    "learner/displacement_networks": "Mean displacement by the flow's networks, without a force",
    "learner/prior_distance_mean": "Distance to the previous policy, of the latest update",
    "learner/prior_distance": "Distance to the previous policy, as the diagnostics measure it",
    "learner/beta": "Multiplier of the distance to the previous policy",
    "learner/kappa": "Output of the PID controller, the multiplier in units of the force's norm",
    "learner/pid_error": "Error of the PID controller: distance over target, minus 1, clamped",
    "learner/pid_integral": "Integral of the PID controller",
    "learner/force_norm_ema": "Moving average of the norm of Q's gradient, by which the multiplier is scaled",
    "learner/step_size_mean": "Mean step size of the chain",
    "learner/step_size_min": "Smallest step size",
    "learner/step_size_max": "Largest step size",
    "learner/cost_loss": "Loss of the cost critics",
    "learner/q_cost_mean": "Mean predicted discounted cost of the batch",
    "learner/lambda": "Lagrange multiplier",
    "learner/cost_estimate": "Cost of the last training episodes, which the multiplier is updated with",
    "learner/cost_discounted_latest": "Discounted cost of the last training episodes",
    "learner/q_cost_start": "What the cost critics predicted for them at their start",
    "learner/shield_accept": "Share of decisions in which the shield found an action that passed its test",
    "learner/shield_steps_mean": "Mean number of leapfrog steps that a decision took",
    "learner/value_mean": "Mean soft value of the next states",
    "learner/action_std": "Mean standard deviation of a state's actions, over draws of the sampler",
    "learner/action_near_border": "Share of components of actions beyond 0.95",
    "pipeline/learner_waited_s": "Seconds that the learner waited for transitions",
    "pipeline/runners_waited_s": "Seconds that runners waited for requests or weights",
    "pipeline/most_lead_steps": "Most steps that sampling was ahead of learning",
    "pipeline/queued_steps": "Steps that have arrived and are not learned from yet",
    "pipeline/arrived_while_learning": "Blocks that arrived while updates were being made",
    "pipeline/weights_fetched": "Times that runners fetched weights",
    "pipeline/policy_lag_mean": "Mean number of updates since the weights that runners acted with",
    "pipeline/policy_lag_max": "Largest of those numbers",
    "pipeline/wire_bytes_per_transition": "Bytes sent for a transition, with its metadata",
    "pipeline/weights_bytes_per_transition": "Bytes of weights that runners fetched, for a transition",
}


def meaning(name: str) -> str | None:
    """Return the description of a metric; None if there is none. A goal's number is ignored."""
    return MEANINGS.get(name) or MEANINGS.get(name.rstrip("0123456789").rstrip("_"))


def flat_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a result of `Algorithm.train()` as a flat mapping, such as "evaluation/return_mean"."""
    runners = result["env_runners"]
    metrics = {
        "train/return_mean": runners.get("episode_return_mean"),
        "train/episode_length_mean": runners.get("episode_len_mean"),
        "train/num_episodes": runners.get("num_episodes_lifetime"),
        "train/env_restarts": runners.get("num_env_restarts_lifetime"),
        "train/success_rate": runners.get(SUCCESS_RATE),
        "train/cost_mean": runners.get("train_cost_mean"),
        "train/cost_discounted_mean": runners.get("train_cost_discounted_mean"),
        "train/cost_total": runners.get("train_cost_total"),
        **{f"train/{name}": value for name, value in runners.get("outcome", {}).items()},
        **(evaluation_metrics(result["evaluation"]) if "evaluation" in result else {}),
        **{f"learner/{name}": value for name, value in result["learners"]["default_policy"].items()},
        **{f"pipeline/{name}": value for name, value in result.get("pipeline", {}).items()},
    }
    # RLlib's mean over no episodes is NaN.
    return {
        name: float(value) for name, value in metrics.items() if value is not None and not math.isnan(value)
    }


def evaluation_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of an evaluation in RLlib's results, under the names of `flat_metrics`."""
    runners = evaluation["env_runners"]
    return {
        "evaluation/return_mean": runners["episode_return_mean"],
        "evaluation/return_std": runners["episode_return_std"],
        "evaluation/episode_length_mean": runners["episode_len_mean"],
        "evaluation/env_steps": float(evaluation["env_steps"]),
        **{f"evaluation/{name}": runners[name] for name in (SUCCESS_RATE, *COST_COLUMNS) if name in runners},
        **{f"evaluation/{name}": value for name, value in evaluation.get("outcome", {}).items()},
    }

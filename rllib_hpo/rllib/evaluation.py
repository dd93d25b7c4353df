"""Evaluation: noise-free episodes in environments of their own, all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from rllib_hpo.errors import NonFiniteError
from rllib_hpo.learning.actor_critic import Actor
from rllib_hpo.streams import seed_sequence
from rllib_hpo.tasks import ActionScaling, wrappers


class Evaluation(NamedTuple):
    """Undiscounted returns and lengths of the episodes of one evaluation."""

    returns: list[float]
    lengths: list[int]


class EvaluationStopped(Exception):
    """A stop was requested before the evaluation had ended; it is made up when the run is resumed."""


def episode_seeds(seed: int, evaluation: int, num_episodes: int) -> list[int]:
    """Seeds of the episodes of a run's evaluation number `evaluation`, the same for every algorithm."""
    states = seed_sequence(seed, "evaluation", evaluation).generate_state(num_episodes)
    return [int(state >> 1) for state in states]


def off_schedule_seeds(seed: int, env_steps: int, num_episodes: int) -> list[int]:
    """Seeds of the episodes of an evaluation at step `env_steps` of a run, between two scheduled ones."""
    states = seed_sequence(seed, "evaluation off schedule", env_steps).generate_state(num_episodes)
    return [int(state >> 1) for state in states]


def evaluate(
    actor: Actor,
    make: Callable[[], gym.Env[Any, Any]],
    seeds: list[int],
    wrapper_state: Sequence[Sequence[Any]] = (),
    *,
    watch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Plays one noise-free episode per seed, in step, so that one forward pass serves all of them.

    Environments are made afresh and closed: nothing of one evaluation can reach the next.

    Args:
        actor: What acts.
        make: Makes an environment.
        seeds: Of the episodes.
        wrapper_state: What the wrappers have gathered in training (`rllib_hpo.tasks.wrappers`); they gather no more.
        watch: Called before each step of the episodes with the number of steps played; may raise to stop.

    Raises:
        NonFiniteError: If an observation or reward is not finite.
    """
    envs = [make() for _ in seeds]
    try:
        for env in envs:
            wrappers.set_state(env, wrapper_state, frozen=True)
        scaling = ActionScaling.of(envs[0].action_space)
        obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]).astype(
            np.float32
        )
        returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
        running = list(range(len(seeds)))
        while running:
            if watch is not None:
                watch(int(lengths.sum()))
            actions = scaling.to_env(_noise_free(actor, obs[running]))
            ended = set()
            for i, action in zip(running, actions, strict=True):
                obs[i], reward, terminated, truncated, _ = envs[i].step(action)
                returns[i] += float(reward)
                lengths[i] += 1
                if not (math.isfinite(reward) and np.isfinite(obs[i]).all()):
                    what = "observation" if math.isfinite(reward) else "reward"
                    raise NonFiniteError(
                        f"The {what} is not finite at step {lengths[i]} of an episode of an evaluation"
                    )
                if terminated or truncated:
                    ended.add(i)
            running = [i for i in running if i not in ended]
    finally:
        for env in envs:
            env.close()
    return Evaluation(returns.tolist(), lengths.tolist())


def _noise_free(actor: Actor, obs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    device = actor.log_alpha.device
    actions: npt.NDArray[np.float32] = actor.act(torch.from_numpy(obs).to(device)).cpu().numpy()
    return actions

"""Estimate how long a sweep would take, by timing a second of its work on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import gymnasium as gym
import torch

from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.experiments.config.run_config import RunConfig
from rllib_hpo.experiments.config.sweep_config import Sweep
from rllib_hpo.learning.trainer import Trainer
from rllib_hpo.replay.frames import random_batch
from rllib_hpo.streams import TorchStreams
from rllib_hpo.tasks import Boundary, boundary, make_env

Clock = Callable[[], float]
"""Returns seconds since some moment."""


class Cost(NamedTuple):
    """Cost of a trial's parts on this machine, in seconds."""

    env_step: float
    """One step of the environment."""
    act: float
    """One action for one state."""
    update: float
    """One update."""

    def seconds(self, config: RunConfig) -> float:
        """Seconds of a whole trial in one process, assuming evaluations of full-length episodes."""
        settings, steps = config.settings, config.run.steps
        updates = max(0, steps - settings.warmup_steps) * settings.update_to_data
        length = min(_episode_length(config.task.env_id), settings.evaluation_max_episode_steps)
        evaluated = (-(-steps // settings.evaluation_every) + 1) * settings.evaluation_episodes * length
        return (steps + evaluated) * (self.env_step + self.act) + updates * self.update


def time_trials(sweep: Sweep, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Seconds of each trial by name; trials that differ only by seed are timed once.

    Args:
        sweep: The trials.
        clock: `time.process_time` measures on a machine that others use, too.
    """
    timed: dict[tuple[str, str, str], Cost] = {}
    seconds = {}
    for trial in sweep.trials:
        key = trial.config.run.algorithm, trial.variant, trial.config.task.env_id
        if key not in timed:
            timed[key] = time_one(trial.config, clock)
        seconds[trial.name] = timed[key].seconds(trial.config)
    return seconds


def makespan(seconds: Sequence[float], slots: int) -> float:
    """Time at which the last trial ends if each takes the first free one of `slots`, in order."""
    free = [0.0] * max(1, min(slots, len(seconds)))
    for duration in seconds:
        free[free.index(min(free))] += duration
    return max(free)


def time_one(config: RunConfig, clock: Clock = time.perf_counter) -> Cost:
    """Time steps, actions and updates of a trial, with random rows."""
    torch.set_num_threads(config.settings.num_torch_threads)
    env = make_env(config.task.env_id, **config.run.env_config)
    try:
        checked = Boundary(env)
        checked.reset(env, seed=0)
        env.action_space.seed(0)

        def step() -> None:
            _, _, terminated, truncated = checked.step(env, env.action_space.sample())
            if terminated or truncated:
                checked.reset(env)

        obs_dim, action_dim = map(gym.spaces.flatdim, (env.observation_space, env.action_space))
        env_step = _seconds(step, 50, clock)
    finally:
        boundary.close(env)
    method = make_method(config.settings)
    model = method.make_model(obs_dim, action_dim, seed=0)
    trainer = Trainer(method, model)
    batch = random_batch(trainer.layout, config.settings.train_batch_size_per_learner)
    streams = TorchStreams(0, "estimate")
    return Cost(
        env_step,
        _seconds(lambda: model.act(batch.obs[:1], streams), 20, clock),
        _seconds(lambda: trainer.learn(batch), 10, clock),
    )


def _seconds(call: Callable[[], Any], times: int, clock: Clock) -> float:
    """Median seconds of a call."""
    call()
    durations = []
    for _ in range(times):
        began = clock()
        call()
        durations.append(clock() - began)
    return sorted(durations)[times // 2]


@cache
def _episode_length(env_id: str) -> int:
    env = make_env(env_id)
    try:
        return (env.spec.max_episode_steps if env.spec is not None else None) or 1_000
    finally:
        boundary.close(env)

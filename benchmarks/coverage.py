"""Measure how much of the state space policies visit when they explore.

The measure is the entropy of the visited states, estimated from distances to nearest neighbours (Kozachenko and
Leonenko 1987). Each policy plays batches of equally many steps, with the noise of training; states of all policies
of a task are standardized together, so that entropies can be compared, and only those. Policies with leapfrog steps
also play without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln

from rllib_hpo.deployment import DeployedPolicy, load_policy_file
from rllib_hpo.samplers.hamiltonian import HamiltonianSampler
from rllib_hpo.streams import TorchStreams
from rllib_hpo.tasks import ActionScaling, Boundary, boundary, make_env

BATCHES, STEPS = 20, 2_000
"""Batches of a policy, and steps of each, over as many episodes as those take."""
NEIGHBOUR = 5
"""Which nearest neighbour's distance counts."""

States = NDArray[np.float64]


class Explored(NamedTuple):
    """What a policy visited."""

    task: str
    name: str
    leapfrog_steps: int
    """Steps that it explored with."""
    batches: list[States]
    """States (T, S) of each batch."""


def entropy(states: States, neighbour: int = NEIGHBOUR) -> float:
    """Return the estimated differential entropy (nats) of the density that states (N, S) were drawn from."""
    num, dim = states.shape
    distances = cKDTree(states).query(states, neighbour + 1)[0][:, -1]  # the first is the state itself
    log_ball = dim / 2 * np.log(np.pi) - gammaln(dim / 2 + 1)
    logs = np.log(np.maximum(distances, np.finfo(np.float64).tiny))
    return float(digamma(num) - digamma(neighbour) + log_ball + dim * logs.mean())


@torch.no_grad()
def visited(policy: DeployedPolicy, num_steps: int, seed: int) -> States:
    """Return the states (num_steps, S) that a policy visits with the noise of training."""
    actor, about = policy.actor, policy.metadata
    env = make_env(about.env, **about.env_config)
    try:
        checked, scaling = Boundary(env), ActionScaling.of(env.action_space)
        streams, found, episode_seed = TorchStreams(seed, "coverage"), [], seed * num_steps
        over = True
        for _ in range(num_steps):
            if over:
                obs, episode_seed = checked.reset(env, episode_seed), episode_seed + 1
                memory = actor.begin_episodes(torch.from_numpy(obs[None]), explores=True)
            action = actor.act(torch.from_numpy(obs[None]), streams, memory)
            obs, _, terminated, truncated, _ = checked.step_with_info(env, scaling.to_env(action.numpy()[0]))
            found.append(np.asarray(obs, np.float64))
            over = terminated or truncated
    finally:
        boundary.close(env)
    return np.stack(found)


def explore(paths: Sequence[Path], num_batches: int = BATCHES, num_steps: int = STEPS) -> Iterator[Explored]:
    """Let policies explore; those with leapfrog steps also without."""
    for path in paths:
        policy = load_policy_file(path)
        sampler, numbers = getattr(policy.actor, "sampler", None), [0]
        if isinstance(sampler, HamiltonianSampler):
            numbers = [sampler.settings.leapfrog_steps, 0]
        for number in numbers:
            if isinstance(sampler, HamiltonianSampler):
                sampler.take_steps(number)
            batches = [visited(policy, num_steps, seed) for seed in range(num_batches)]
            yield Explored(policy.metadata.task, path.stem, number, batches)


def entropies(explored: Sequence[Explored]) -> list[dict[str, Any]]:
    """Return the entropies of all batches, ready for JSON."""
    scales: dict[str, tuple[States, States]] = {}
    for task in {one.task for one in explored}:
        states = np.concatenate([batch for one in explored if one.task == task for batch in one.batches])
        scales[task] = states.mean(0), np.maximum(states.std(0), 1e-9)
    return [
        {
            "task": one.task,
            "policy": one.name,
            "leapfrog_steps": one.leapfrog_steps,
            "entropies": [
                entropy((batch - scales[one.task][0]) / scales[one.task][1]) for batch in one.batches
            ],
        }
        for one in explored
    ]


def find(
    measured: Sequence[Mapping[str, Any]], task: str, algorithm: str, *, steps: bool = False
) -> list[float] | None:
    """Return the entropies of an algorithm's policy on a task, with its steps or without any; None if not measured."""
    for one in measured:
        if one["policy"].startswith(f"{algorithm}-{task}-") and bool(one["leapfrog_steps"]) == steps:
            return list(one["entropies"])
    return None

"""Compare lower bounds on the memory of networks, batches and replay with what the machine has.

All numbers are lower bounds, so nothing that would fit is rejected.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from rllib_hpo.errors import SettingsError
from rllib_hpo.settings import NetworkSettings, Settings, layer_units

FLOAT = 4
"""Bytes of a float32 number."""
COPIES_LEARNED, COPIES_WITH_TARGET = 4, 5
"""Copies of a learned weight: itself, its gradient and Adam's two moments; and with a target network."""
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Part(NamedTuple):
    """A number of bytes, and the setting that dominates it."""

    num_bytes: int
    setting: str


def policy_and_critics(
    settings: NetworkSettings,
    obs_dim: int,
    action_dim: int,
    *,
    copies_of_policy: int,
    copies_of_critics: int,
    policy_outputs: int,
    num_critics: int = 2,
) -> Part:
    """Return the size of the given numbers of copies of the policy's and the critics' weights."""
    hidden = settings.hidden_units
    critics = num_critics * mlp_weights(obs_dim + action_dim, layer_units(hidden, settings.critic_layers), 1)
    policy = mlp_weights(obs_dim, layer_units(hidden, settings.policy_layers), policy_outputs)
    return Part(FLOAT * (copies_of_critics * critics + copies_of_policy * policy), "hidden_units")


def batch_part(settings: NetworkSettings, obs_dim: int, action_dim: int) -> Part:
    """Return the size of one batch with the hidden values of a critic."""
    hidden = sum(layer_units(settings.hidden_units, settings.critic_layers))
    numbers = row_width(obs_dim, action_dim) + hidden
    size = settings.train_batch_size_per_learner
    return Part(FLOAT * size * numbers, "train_batch_size_per_learner")


def row_width(obs_dim: int, action_dim: int) -> int:
    """Return the numbers in a transition: observation, action, reward, flag, next observation."""
    return 2 * obs_dim + action_dim + 2


def refuse_too_large(parts: list[Part], memory: int | None = None) -> None:
    """Reject parts that together exceed the memory of this machine.

    Args:
        parts: Parts that are held at the same time.
        memory: Available bytes. Default: those of this machine or its container.

    Raises:
        SettingsError: If they exceed it; it names the setting of the largest part, and both amounts.
    """
    memory = machine_memory() if memory is None else memory
    needed = sum(part.num_bytes for part in parts)
    if needed > memory:
        setting = max(parts, key=lambda part: part.num_bytes).setting
        raise SettingsError(
            f"{setting} is too large: networks and batches would take at least {gigabytes(needed)}, and this machine "
            f"has {gigabytes(memory)} of memory; choose a smaller {setting}."
        )


def refuse_replay(settings: Settings, row_bytes: int, steps: int, memory: int | None = None) -> None:
    """Reject a replay that `steps` environment steps would fill beyond the memory of this machine.

    Args:
        settings: The algorithm's settings.
        row_bytes: Size of a transition in the replay.
        steps: Environment steps of the run.
        memory: Available bytes. Default: those of this machine or its container.

    Raises:
        SettingsError: If it is too large; it names `replay_capacity` and both amounts.
    """
    memory = machine_memory() if memory is None else memory
    copies = 1 + settings.her_ratio if settings.replay == "her" else 1
    rows = min(settings.replay_capacity, steps * copies)
    needed = row_bytes * rows
    if needed > memory:
        raise SettingsError(
            f"replay_capacity={settings.replay_capacity} is too large: its first {rows:,} transitions would take at "
            f"least {gigabytes(needed)}, and this machine has {gigabytes(memory)} of memory; choose a smaller "
            "replay_capacity, or fewer steps."
        )


@cache
def machine_memory() -> int:
    """Return the bytes of memory of this machine, or of the container of this process."""
    amounts = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in map(Path, _CGROUP_LIMITS):
        try:
            amounts.append(int(file.read_text()))
        except (OSError, ValueError):  # no such file, or it says "max"
            continue
    return min(amounts)


def gigabytes(num_bytes: int) -> str:
    """Format an amount of bytes for a message; beyond any machine's size in powers of ten."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes < 10**15 else f"1e{len(str(num_bytes)) - 10} GB"


def mlp_weights(inputs: int, hidden: Sequence[int], outputs: int) -> int:
    """Count the weights of a network with these hidden layers, without biases."""
    return sum(before * after for before, after in pairwise([inputs, *hidden, outputs]))

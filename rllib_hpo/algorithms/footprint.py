"""The least memory that networks, batches and replay take, compared with what there is before any is taken.

All numbers are lower bounds, so nothing that would fit is refused.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rllib_hpo.errors import SettingsError
from rllib_hpo.settings import NetworkSettings, Settings

FLOAT = 4
"""Bytes of a number."""
COPIES_LEARNED, COPIES_WITH_TARGET = 4, 5
"""Of what is learned: weights, gradients and Adam's two moments; and with its target."""
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Part(NamedTuple):
    """What something takes, and the setting that makes it so large."""

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
    """The weights of ReLU networks, so many times."""
    hidden = settings.hidden_units
    critics = num_critics * mlp_weights(obs_dim + action_dim, hidden, settings.critic_layers, 1)
    policy = mlp_weights(obs_dim, hidden, settings.policy_layers, policy_outputs)
    return Part(FLOAT * (copies_of_critics * critics + copies_of_policy * policy), "hidden_units")


def batch_part(settings: NetworkSettings, obs_dim: int, action_dim: int) -> Part:
    """One batch with the hidden values of a critic."""
    numbers = row_width(obs_dim, action_dim) + settings.critic_layers * settings.hidden_units
    size = settings.train_batch_size_per_learner
    return Part(FLOAT * size * numbers, "train_batch_size_per_learner")


def row_width(obs_dim: int, action_dim: int) -> int:
    """Numbers in a transition: observation, action, reward, flag, next observation."""
    return 2 * obs_dim + action_dim + 2


def refuse_too_large(parts: list[Part], memory: int | None = None) -> None:
    """Refuses what takes more than all memory of this machine.

    Args:
        parts: What is to be held at a time.
        memory: Bytes there are. Default: this machine's, or its container's.

    Raises:
        SettingsError: Naming the setting that takes most, and both amounts.
    """
    memory = machine_memory() if memory is None else memory
    needed = sum(part.num_bytes for part in parts)
    if needed > memory:
        setting = max(parts, key=lambda part: part.num_bytes).setting
        raise SettingsError(
            f"{setting} is too large: networks and batches would take at least {gigabytes(needed)}, and this machine "
            f"has {gigabytes(memory)} of memory; choose a smaller {setting}."
        )


def refuse_replay(
    settings: Settings, obs_dim: int, action_dim: int, steps: int, memory: int | None = None
) -> None:
    """Refuses a replay that `steps` environment steps would fill beyond all memory of this machine.

    Raises:
        SettingsError: Naming `replay_capacity`, and both amounts.
    """
    memory = machine_memory() if memory is None else memory
    rows = min(settings.replay_capacity, steps)
    needed = FLOAT * row_width(obs_dim, action_dim) * rows
    if needed > memory:
        raise SettingsError(
            f"replay_capacity={settings.replay_capacity} is too large: its first {rows:,} transitions would take at "
            f"least {gigabytes(needed)}, and this machine has {gigabytes(memory)} of memory; choose a smaller "
            "replay_capacity, or fewer steps."
        )


@cache
def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that this process is in."""
    amounts = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in map(Path, _CGROUP_LIMITS):
        try:
            amounts.append(int(file.read_text()))
        except (OSError, ValueError):  # there is none, or it says "max"
            continue
    return min(amounts)


def gigabytes(num_bytes: int) -> str:
    """An amount in words; beyond any machine in powers of ten."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes < 10**15 else f"1e{len(str(num_bytes)) - 10} GB"


def mlp_weights(inputs: int, hidden: int, layers: int, outputs: int) -> int:
    """Weights of a network, biases left out."""
    return inputs * hidden + (layers - 1) * hidden * hidden + hidden * outputs

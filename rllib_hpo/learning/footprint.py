"""The least memory that networks, batches and replay take, compared with what there is before any is taken.

All numbers are lower bounds, so nothing that would fit is refused.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rllib_hpo.errors import SettingsError
from rllib_hpo.settings import ActorCriticSettings

_FLOAT = 4
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_COPIES_OF_CRITICS, _COPIES_OF_POLICY = 5, 4
"""Weights, gradients and Adam's two moments; of critics also the targets."""


class Part(NamedTuple):
    """What something takes, and the setting that makes it so large."""

    num_bytes: int
    setting: str


def actor_parts(settings: ActorCriticSettings, obs_dim: int, action_dim: int) -> list[Part]:
    """The weights of an actor: policy and target critics."""
    hidden, inputs = settings.hidden_units, obs_dim + action_dim
    critics = 2 * _mlp(inputs, hidden, settings.critic_layers, 1)
    policy = _mlp(obs_dim, hidden, settings.policy_layers, 2 * action_dim)
    gates = getattr(settings, "leapfrog_units", 0) if getattr(settings, "force_gate", "") == "gated" else 0
    return [
        Part(_FLOAT * (critics + policy), "hidden_units"),
        Part(_FLOAT * gates * 4 * action_dim, "leapfrog_units"),
        Part(_FLOAT * getattr(settings, "num_flows", 0) * action_dim, "num_flows"),
    ]


def learner_parts(settings: ActorCriticSettings, obs_dim: int, action_dim: int) -> list[Part]:
    """Networks with their optimizers, and one batch with the hidden values of the critics."""
    hidden, layers = settings.hidden_units, settings.critic_layers
    critics = 2 * _mlp(obs_dim + action_dim, hidden, layers, 1)
    policy = _mlp(obs_dim, hidden, settings.policy_layers, 2 * action_dim)
    batch = settings.train_batch_size_per_learner
    return [
        Part(_FLOAT * (_COPIES_OF_CRITICS * critics + _COPIES_OF_POLICY * policy), "hidden_units"),
        *actor_parts(settings, obs_dim, action_dim)[1:],
        Part(
            _FLOAT * batch * (row_width(obs_dim, action_dim) + layers * hidden),
            "train_batch_size_per_learner",
        ),
    ]


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
    settings: ActorCriticSettings, obs_dim: int, action_dim: int, steps: int, memory: int | None = None
) -> None:
    """Refuses a replay that `steps` environment steps would fill beyond all memory of this machine.

    Raises:
        SettingsError: Naming `replay_capacity`, and both amounts.
    """
    memory = machine_memory() if memory is None else memory
    rows = min(settings.replay_capacity, steps)
    needed = _FLOAT * row_width(obs_dim, action_dim) * rows
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


def _mlp(inputs: int, hidden: int, layers: int, outputs: int) -> int:
    """Weights of a network, biases left out."""
    return inputs * hidden + (layers - 1) * hidden * hidden + hidden * outputs

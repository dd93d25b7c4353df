"""How a Hamiltonian policy is shaped: actions before and after the leapfrog over Q's contours.

As in arXiv 2103.12020, Figure 7. It reads an exported policy, so it needs neither Ray nor a checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rllib_hpo.analysis.figures import to_bytes
from rllib_hpo.deployment import DeployedPolicy
from rllib_hpo.errors import CheckpointError, SettingsError
from rllib_hpo.results.atomic import write_atomically
from rllib_hpo.samplers.base import Mode, draw_noise, zero_noise
from rllib_hpo.samplers.hamiltonian import HamiltonianSampler
from rllib_hpo.streams import TorchStreams
from rllib_hpo.tasks import make_env

_INK, _MUTED = "#222222", "#666666"
_BEFORE, _AFTER = "#0072B2", "#D55E00"

Array = NDArray[np.float32]


class PolicyShape(NamedTuple):
    """Actions in one state, and what the critics say around them."""

    before: Array
    """(N, A) actions of the Gaussian."""
    after: Array
    """(N, A) actions of the policy, within [-1, 1]."""
    noise_free: Array
    """(A,) the action of an evaluation; components that are not shown are held there."""
    axis: Array
    """(M,) values of either action dimension."""
    q: Array
    """(M, M) minimum of the target critics, the first dimension along columns."""


def rollout_state(policy: DeployedPolicy, seed: int, num_steps: int) -> Array:
    """The observation (S,) that the noise-free policy reaches after `num_steps` of a seeded episode."""
    env = make_env(policy.metadata.env, **policy.metadata.env_config)
    try:
        if env.observation_space.shape != policy.metadata.observation_space.shape:
            raise CheckpointError(
                f"The policy takes observations {policy.metadata.observation_space.shape}, but its environment "
                f"'{policy.metadata.env}' gives {env.observation_space.shape}."
            )
        obs, _ = env.reset(seed=seed)
        for _ in range(num_steps):
            with torch.no_grad():
                action = policy(torch.as_tensor(np.asarray(obs, np.float32)[None])).numpy()[0]
            obs, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
        state: Array = np.asarray(obs, np.float32)
    finally:
        env.close()
    return state


@torch.no_grad()
def policy_shape(
    policy: DeployedPolicy,
    obs: Array,
    dims: tuple[int, int] = (0, 1),
    *,
    num_actions: int = 1_000,
    mode: Mode = "explore",
    resolution: int = 101,
    seed: int = 0,
) -> PolicyShape:
    """Draws actions in one state and evaluates Q over two of their dimensions.

    Args:
        policy: Of any algorithm; only a Hamiltonian sampler has actions before and after.
        obs: (S,).
        dims: The two action dimensions.
        num_actions: N.
        mode: Whose momentum: "explore" or "train".
        resolution: M.
        seed: Of the draws.

    Raises:
        SettingsError: If a dimension is not one of the action's.
    """
    actor = policy.actor
    for dim in dims:
        if not 0 <= dim < actor.action_dim:
            raise SettingsError(
                f"--dims {dim} must be from 0 to {actor.action_dim - 1}, the action's dimensions."
            )
    states = torch.as_tensor(obs)[None].expand(num_actions, -1)
    noise = draw_noise(actor.sampler, num_actions, TorchStreams(seed, "policy shape"))
    after = actor.sample(states, noise, mode).action
    before = after
    if isinstance(actor.sampler, HamiltonianSampler):
        before, _ = actor.sampler.initial_action(states, noise)
    still = actor.sample(states[:1], zero_noise(actor.sampler, 1), "train").action[0]
    axis = torch.linspace(-1, 1, resolution)
    second, first = torch.meshgrid(axis, axis, indexing="ij")
    actions = still.expand(resolution**2, -1).clone()
    actions[:, dims[0]], actions[:, dims[1]] = first.reshape(-1), second.reshape(-1)
    q = actor.target_critics.minimum(states[:1].expand(resolution**2, -1), actions)
    return PolicyShape(
        before.numpy(), after.numpy(), still.numpy(), axis.numpy(), q.reshape(resolution, resolution).numpy()
    )


def policy_shape_figure(shape: PolicyShape, dims: tuple[int, int], title: str) -> Figure:
    """Two panels, before and after the leapfrog, over the same contours."""
    figure = Figure(figsize=(9.6, 4.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # draws without a display, whatever backend the user has set
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    panels = ((shape.before, "before the leapfrog", _BEFORE), (shape.after, "after the leapfrog", _AFTER))
    for axis, (actions, name, color) in zip(axes, panels, strict=True):
        filled = axis.contourf(shape.axis, shape.axis, shape.q, levels=20, cmap="Greys", alpha=0.75)
        axis.plot(actions[:, dims[0]], actions[:, dims[1]], ".", color=color, alpha=0.45, markersize=4)
        axis.plot(*(shape.noise_free[dim] for dim in dims), "k+", markersize=12, markeredgewidth=2)
        axis.set_title(name, loc="left", fontsize=11, fontweight="bold", color=_INK)
        axis.set_xlabel(f"action dimension {dims[0]}", fontsize=10, color=_INK)
        axis.set_xlim(-1.02, 1.02)
        axis.set_ylim(-1.02, 1.02)
        axis.set_aspect("equal")
    axes[0].set_ylabel(f"action dimension {dims[1]}", fontsize=10, color=_INK)
    figure.colorbar(filled, ax=axes, shrink=0.85).set_label("Q, minimum of the target critics", color=_INK)
    figure.suptitle(title, fontsize=11, color=_INK)
    figure.supxlabel(
        f"{len(shape.after):,} actions in one state; cross: the noise-free action, which holds the other dimensions",
        fontsize=8,
        color=_MUTED,
    )
    return figure


def write_policy_shape(
    policy: DeployedPolicy,
    out: Path,
    dims: tuple[int, int] = (0, 1),
    *,
    mode: Mode = "explore",
    num_actions: int = 1_000,
    after_steps: int = 50,
    seed: int = 0,
) -> Path:
    """Writes the figure (PNG, PDF or SVG by the name of `out`) for a state of a noise-free episode.

    Raises:
        UserError: If a dimension or the file's kind is impossible, or the environment cannot be made.
    """
    kind = out.suffix.removeprefix(".")
    if kind not in ("png", "pdf", "svg"):
        raise SettingsError(f"--out {out} must end in .png, .pdf or .svg.")
    obs = rollout_state(policy, seed, after_steps)
    shape = policy_shape(policy, obs, dims, num_actions=num_actions, mode=mode, seed=seed)
    meta = policy.metadata
    title = f"{meta.algorithm} on {meta.env} after {meta.env_steps:,} steps, {mode}"
    return write_atomically(out, to_bytes(policy_shape_figure(shape, dims, title), kind))

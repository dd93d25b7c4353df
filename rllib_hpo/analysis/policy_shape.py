"""Show the shape of Hamiltonian policies: actions before and after the leapfrog over Q's contours, and statistics.

As in arXiv 2103.12020, Figure 7, with several policies side by side. It reads exported policies, so it needs neither
Ray nor a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rllib_hpo.algorithms.sac import SamplerActor
from rllib_hpo.algorithms.sac_ae import ImageActor
from rllib_hpo.analysis.figures import blank, to_bytes
from rllib_hpo.analysis.shape_statistics import ShapeNumbers, shape_numbers
from rllib_hpo.analysis.statistics import Interval
from rllib_hpo.analysis.tables import NOTHING, Table
from rllib_hpo.deployment import DeployedPolicy
from rllib_hpo.errors import CheckpointError, SettingsError
from rllib_hpo.results.atomic import write_atomically
from rllib_hpo.samplers.base import Mode, draw_noise, zero_noise
from rllib_hpo.samplers.hamiltonian import HamiltonianSampler
from rllib_hpo.streams import TorchStreams
from rllib_hpo.tasks import Boundary, boundary, make_env

_INK, _MUTED = "#222222", "#666666"
_BEFORE, _AFTER = "#0072B2", "#D55E00"

Array = NDArray[np.float32]


class PolicyShape(NamedTuple):
    """Actions in one state, and the values of the critics around them."""

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
    q_before: Array
    """(N,) minimum of the target critics at the actions before."""
    q_after: Array
    """(N,) minimum of the target critics at the actions after."""

    def numbers(self, seed: int = 0) -> ShapeNumbers:
        """Statistics of the leapfrog with intervals; `seed` seeds the bootstrap."""
        before, after, q_before, q_after = (
            draws.astype(np.float64) for draws in (self.before, self.after, self.q_before, self.q_after)
        )
        return shape_numbers(before, after, q_before, q_after, np.random.default_rng(seed))


def rollout_state(policy: DeployedPolicy, seed: int, num_steps: int) -> Array:
    """The observation (S,) that the noise-free policy reaches after `num_steps` of a seeded episode."""
    env = make_env(policy.metadata.env, **policy.metadata.env_config)
    try:
        if env.observation_space.shape != policy.metadata.observation_space.shape:
            raise CheckpointError(
                f"The policy takes observations {policy.metadata.observation_space.shape}, but its environment "
                f"'{policy.metadata.env}' gives {env.observation_space.shape}."
            )
        checked = Boundary(env)
        state: Array = checked.reset(env, seed)
        memory = policy.begin(torch.as_tensor(state[None]))
        for _ in range(num_steps):
            with torch.no_grad():
                result = policy(torch.as_tensor(state[None]), *memory)
            acted, *memory = result if isinstance(result, tuple) else (result,)
            action = acted.numpy()[0]
            state, _, terminated, truncated = checked.step(env, action.astype(env.action_space.dtype))
            if terminated or truncated:
                break
    finally:
        boundary.close(env)
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
        SettingsError: If a dimension is not one of the action's, or the policy draws no actions from a density.
    """
    actor = policy.actor
    if not isinstance(actor, SamplerActor) or isinstance(actor, ImageActor):
        why = "acts from images" if isinstance(actor, ImageActor) else "has no sampler to draw"
        raise SettingsError(
            f"A policy of '{policy.metadata.algorithm}' {why}: give policies of soft actor-critics with vectors for "
            "observations."
        )
    for dim in dims:
        if not 0 <= dim < actor.action_dim:
            raise SettingsError(
                f"--dims {dim} must be from 0 to {actor.action_dim - 1}, the action's dimensions."
            )
    states = actor.normalized(torch.as_tensor(obs)[None]).expand(num_actions, -1)
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
    contours = q.reshape(resolution, resolution)
    q_before, q_after = (actor.target_critics.minimum(states, action) for action in (before, after))
    return PolicyShape(
        *(values.numpy() for values in (before, after, still, axis, contours, q_before, q_after))
    )


def policy_shape_figure(shape: PolicyShape, dims: tuple[int, int], title: str) -> Figure:
    """Two panels, before and after the leapfrog, over the same contours."""
    figure = blank(9.6, 4.6)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    filled = _draw(axes, shape, dims, ("before the leapfrog", "after the leapfrog"))
    for axis in axes:
        axis.set_xlabel(f"action dimension {dims[0]}", fontsize=10, color=_INK)
    axes[0].set_ylabel(f"action dimension {dims[1]}", fontsize=10, color=_INK)
    figure.colorbar(filled, ax=axes, shrink=0.85).set_label("Q, minimum of the target critics", color=_INK)
    figure.suptitle(title, fontsize=11, color=_INK)
    _footnote(figure, shape)
    return figure


def side_by_side_figure(
    shapes: Mapping[str, PolicyShape], numbers: Mapping[str, ShapeNumbers], dims: tuple[int, int], title: str
) -> Figure:
    """A column for each policy, by its name: before the leapfrog, after it, and the numbers below."""
    figure = blank(1.2 + 3.6 * len(shapes), 8.2)
    axes = figure.subplots(2, len(shapes), sharex=True, sharey=True, squeeze=False)
    for column, (name, shape) in zip(axes.T, shapes.items(), strict=True):
        filled = _draw(column, shape, dims, (f"{name}\nbefore", "after"))
        bar = figure.colorbar(filled, ax=list(column), shrink=0.6, location="bottom")
        bar.ax.tick_params(labelsize=7)
        bar.ax.xaxis.set_major_locator(MaxNLocator(4))
        text = "\n".join(_lines(numbers[name]))
        bar.set_label(f"Q, minimum of the target critics\n\n{text}", fontsize=8, color=_INK)
        column[1].set_xlabel(f"action dimension {dims[0]}", fontsize=9, color=_INK)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"action dimension {dims[1]}", fontsize=9, color=_INK)
    figure.suptitle(title, fontsize=11, color=_INK)
    _footnote(figure, next(iter(shapes.values())))
    return figure


def _draw(axes: Sequence[Any], shape: PolicyShape, dims: tuple[int, int], names: tuple[str, str]) -> Any:
    """Draws actions before and after on two axes; returns the contours."""
    for axis, name, actions, color in zip(
        axes, names, (shape.before, shape.after), (_BEFORE, _AFTER), strict=True
    ):
        filled = axis.contourf(shape.axis, shape.axis, shape.q, levels=20, cmap="Greys", alpha=0.75)
        axis.plot(actions[:, dims[0]], actions[:, dims[1]], ".", color=color, alpha=0.45, markersize=4)
        axis.plot(*(shape.noise_free[dim] for dim in dims), "k+", markersize=12, markeredgewidth=2)
        axis.set_title(name, loc="left", fontsize=11, fontweight="bold", color=_INK)
        axis.set_xlim(-1.02, 1.02)
        axis.set_ylim(-1.02, 1.02)
        axis.set_aspect("equal")
    return filled


def _footnote(figure: Figure, shape: PolicyShape) -> None:
    figure.supxlabel(
        f"{len(shape.after):,} actions in one state; cross: the noise-free action, which holds the other dimensions",
        fontsize=8,
        color=_MUTED,
    )


def _lines(numbers: ShapeNumbers) -> list[str]:
    return [f"{name} {_cell(interval)}" for name, interval in zip(COLUMNS, numbers, strict=True)]


COLUMNS = ("Q rises", "variance ratio", "non-Gaussianity before", "non-Gaussianity after")
"""Titles of the fields of `ShapeNumbers`."""


def _cell(interval: Interval) -> str:
    estimate, low, high = (f"{float(value):.3f}" for value in interval)
    return f"{estimate} [{low}, {high}]" if np.isfinite(interval.estimate) else NOTHING


def shape_table(numbers: Mapping[str, ShapeNumbers]) -> Table:
    """The numbers of each policy, by its name."""
    note = (
        "Share of draws whose Q rises along the leapfrog; ratio of the total variance of the actions after to that "
        "before; and the share of their variance that the quantiles of a Gaussian do not explain. In brackets "
        "bootstrap 95% intervals."
    )
    rows = [[name, *map(_cell, one)] for name, one in numbers.items()]
    return Table("policy-shape", "Shape of the policy", note, ["policy", *COLUMNS], rows)


def write_policy_shape(
    policies: Sequence[DeployedPolicy],
    out: Path,
    dims: tuple[int, int] = (0, 1),
    *,
    mode: Mode = "explore",
    num_actions: int = 1_000,
    after_steps: int = 50,
    seed: int = 0,
) -> tuple[Path, Table]:
    """Writes the figure (PNG, PDF or SVG by the name of `out`), and the numbers as CSV beside it.

    All policies are drawn in one state, that of a noise-free episode of the last of them, with the same noise.

    Returns:
        The figure's path, and the numbers.

    Raises:
        UserError: If a dimension or the file's kind is impossible, the policies act in several environments, or
            the environment cannot be made.
    """
    kind = out.suffix.removeprefix(".")
    if kind not in ("png", "pdf", "svg"):
        raise SettingsError(f"--out {out} must end in .png, .pdf or .svg.")
    last = policies[-1].metadata
    for policy in policies:
        if (policy.metadata.env, policy.metadata.env_config) != (last.env, last.env_config):
            raise SettingsError(
                f"Policies of {policy.metadata.env} and {last.env} cannot be drawn side by side: give policies of one "
                "environment, with the same env_config."
            )
    obs = rollout_state(policies[-1], seed, after_steps)
    names = policy_names(policies)
    shapes = {
        name: policy_shape(policy, obs, dims, num_actions=num_actions, mode=mode, seed=seed)
        for name, policy in zip(names, policies, strict=True)
    }
    numbers = {name: shape.numbers(seed) for name, shape in shapes.items()}
    if len(policies) == 1:
        figure = policy_shape_figure(shapes[names[0]], dims, f"{names[0]} on {last.env}, {mode}")
    else:
        figure = side_by_side_figure(shapes, numbers, dims, f"{last.env}, {mode}")
    table = shape_table(numbers)
    write_atomically(out, to_bytes(figure, kind))
    write_atomically(out.with_suffix(".csv"), table.to_csv().encode())
    return out, table


def policy_names(policies: Sequence[DeployedPolicy]) -> list[str]:
    """Names of the policies, with their tasks if these differ; equal names are numbered."""
    about = [policy.metadata for policy in policies]
    several = len({one.task for one in about}) > 1
    plain = [
        f"{one.algorithm}{f' on {one.task}' if several else ''} after {one.env_steps:,} steps"
        for one in about
    ]
    return [
        name if plain.count(name) == 1 else f"{name} ({plain[: i + 1].count(name)})"
        for i, name in enumerate(plain)
    ]

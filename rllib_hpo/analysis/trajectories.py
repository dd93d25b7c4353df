"""Draw rollouts of policies from above, among goals and walls, and actions in a few states over Q.

The figures correspond to Figures 1 and 7 of Haarnoja et al. 2017, arXiv 1702.08165, for any algorithm on a task that
reports `xy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from numpy.typing import NDArray

from rllib_hpo.algorithms.base import Actor, EvaluationNoise
from rllib_hpo.analysis.figures import INK, MUTED, blank, to_bytes
from rllib_hpo.analysis.tables import Table
from rllib_hpo.deployment import DeployedPolicy
from rllib_hpo.errors import SettingsError
from rllib_hpo.results.atomic import write_atomically
from rllib_hpo.streams import TorchStreams
from rllib_hpo.tasks import ActionScaling, Boundary, boundary, make_env, outcomes
from rllib_hpo.tasks.soft_q.multi_goal import GOALS, HALF_WIDTH, REACHED
from rllib_hpo.tasks.soft_q.snake import FINISH

Array = NDArray[np.float64]
STATES = ((-2.5, 0.0), (0.0, 0.0), (2.5, 2.5))
"""States of multi-goal in which actions are drawn over Q."""
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_NUM_ACTIONS = 300
_RESOLUTION = 61


class Rollouts(NamedTuple):
    """Episodes of one policy."""

    paths: list[Array]
    """(T + 1, 2) positions of each episode, in metres."""
    outcomes: list[outcomes.Outcome]

    def numbers(self) -> dict[str, float]:
        """Return `rllib_hpo.tasks.outcomes.summary`; of no goals, those that any episode reached."""
        return outcomes.summary(self.outcomes, len(GOALS) if "goal" in self.outcomes[0] else 0)


@torch.no_grad()
def roll_out(policy: DeployedPolicy, num: int, seed: int = 0, *, explores: bool = True) -> Rollouts:
    """Play episodes in parallel environments.

    Args:
        policy: Policy of any algorithm.
        num: Number of episodes.
        seed: Seed of the episodes and of all noise.
        explores: Whether actions are those of training, drawn with noise; else those of evaluations.

    Raises:
        SettingsError: If the environment reports no positions.
    """
    actor, about = policy.actor, policy.metadata
    envs = [make_env(about.env, **about.env_config) for _ in range(num)]
    try:
        if not outcomes.reports_outcome(envs[0]):
            raise SettingsError(
                f"The environment '{about.env}' reports no positions, so there are no trajectories."
            )
        checked, scaling = Boundary(envs[0]), ActionScaling.of(envs[0].action_space)
        obs = np.stack([checked.reset(env, seed + k) for k, env in enumerate(envs)])
        paths: list[list[Array]] = [[_position(env)] for env in envs]
        found: list[outcomes.Outcome] = [{} for _ in envs]
        streams, noise = TorchStreams(seed, "trajectories"), EvaluationNoise(actor, range(seed, seed + num))
        memory = actor.begin_episodes(torch.from_numpy(obs), explores=explores)
        running = list(range(num))
        while running:
            if not explores:
                noise.draw(memory, running)
            own = {name: value[running] for name, value in memory.items()}
            action = actor.act(torch.from_numpy(obs[running]), streams if explores else None, own)
            for name, value in own.items():
                memory[name][running] = value
            ended = set()
            for i, one in zip(running, scaling.to_env(action.numpy()), strict=True):
                obs[i], _, terminated, truncated, info = checked.step_with_info(envs[i], one)
                outcomes.observe(found[i], info)
                paths[i].append(np.asarray(info["xy"], np.float64))
                if terminated or truncated:
                    ended.add(i)
            running = [i for i in running if i not in ended]
    finally:
        for env in envs:
            boundary.close(env)
    return Rollouts([np.stack(path) for path in paths], found)


def _position(env: Any) -> Array:
    position: Array = env.unwrapped.xy
    return position


def trajectories_figure(
    policies: Sequence[DeployedPolicy], rollouts: Sequence[Rollouts], seed: int = 0
) -> Figure:
    """Draw one row per policy: its paths, and on multi-goal its actions in three states over the contours of Q."""
    env = policies[0].metadata.env
    with_states = env.startswith("MultiGoal")
    columns = 1 + len(STATES) * with_states
    width, height = (3.6, 3.6) if with_states else (6.0, _row_height(rollouts, 6.0))
    figure = blank(width * columns + 0.8, height * len(policies) + 0.4)
    shared = not with_states  # so that distances can be compared
    axes = figure.subplots(len(policies), columns, squeeze=False, sharex=shared, sharey=shared)
    scene = make_env(env, **policies[0].metadata.env_config)
    try:
        for row, policy, played in zip(axes, policies, rollouts, strict=True):
            _draw_scene(row[0], scene.unwrapped)
            for k, path in enumerate(played.paths):
                row[0].plot(*path.T, color=_COLORS[k % len(_COLORS)], linewidth=0.8, alpha=0.6)
            row[0].set_title(_name(policy), loc="left", fontsize=10, fontweight="bold", color=INK)
            row[0].set_aspect("equal")
            for axis, state in zip(row[1:], STATES, strict=False):
                _draw_actions(axis, policy.actor, state, seed)
    finally:
        boundary.close(scene)
    figure.supxlabel(
        f"{env}: {len(rollouts[0].paths)} episodes of each policy, seen from above, in metres"
        + (f"; {_NUM_ACTIONS} actions in one state over Q, if the policy contains Q" if with_states else ""),
        fontsize=7.5,
        color=MUTED,
    )
    return figure


def _row_height(rollouts: Sequence[Rollouts], width: float) -> float:
    """Return the height that all paths need at a width, in inches, with room for a title."""
    positions = np.concatenate([path for played in rollouts for path in played.paths])
    spans = np.ptp(positions, axis=0)
    return float(np.clip(width * spans[1] / max(spans[0], 1e-9), 0.8, 8.0)) + 0.6


def _draw_scene(axis: Axes, env: Any) -> None:
    """Draw level lines of the distance to a goal; or walls, goal and finish line."""
    if getattr(env, "num_goals", 0):
        grid = np.linspace(-HALF_WIDTH, HALF_WIDTH, 101)
        x, y = np.meshgrid(grid, grid)
        cost = np.min([(x - goal[0]) ** 2 + (y - goal[1]) ** 2 for goal in GOALS], 0)
        axis.contour(grid, grid, cost, levels=12, cmap="Greys", linewidths=0.6)
        for goal in GOALS:
            axis.add_patch(Circle(tuple(goal), REACHED, color="#CC3333", alpha=0.5))
        return
    model = env.model
    for k in range(model.ngeom):
        if model.geom(k).name.startswith("wall"):
            (x, y, _), (width, height, _) = model.geom_pos[k], model.geom_size[k]
            axis.add_patch(Rectangle((x - width, y - height), 2 * width, 2 * height, color="#888888"))
    if getattr(env, "goal", None) is not None:
        axis.plot(*env.goal, "*", color="#CC3333", markersize=12)
    if type(env).__name__ == "SnakeFinish":
        axis.axvline(FINISH, color="#CC3333", linewidth=1, linestyle="dashed")


@torch.no_grad()
def _draw_actions(axis: Axes, actor: Actor, state: tuple[float, float], seed: int) -> None:
    """Draw actions of one state of multi-goal over Q."""
    obs = torch.tensor([state]).expand(_NUM_ACTIONS, -1)
    drawn = actor.act(obs, TorchStreams(seed, "trajectories", *map(str, state))).numpy()
    critics: Any = getattr(actor, "target_critics", None)
    if critics is not None:
        grid = torch.linspace(-1, 1, _RESOLUTION)
        y, x = torch.meshgrid(grid, grid, indexing="ij")
        actions = torch.stack([x.reshape(-1), y.reshape(-1)], -1)
        q = critics.minimum(actor.normalized(obs[:1]).expand(len(actions), -1), actions).view(
            _RESOLUTION, _RESOLUTION
        )
        axis.contourf(grid, grid, q, levels=20, cmap="Greys", alpha=0.75)
    axis.plot(*drawn.T, ".", color=_COLORS[0], markersize=3, alpha=0.6)
    axis.set_title(f"actions at ({state[0]:g}, {state[1]:g})", loc="left", fontsize=9, color=INK)
    axis.set_xlim(-1.02, 1.02)
    axis.set_ylim(-1.02, 1.02)
    axis.set_aspect("equal")


def trajectories_table(policies: Sequence[DeployedPolicy], rollouts: Sequence[Rollouts]) -> Table:
    """Return the outcomes of each policy's episodes."""
    numbers = [played.numbers() for played in rollouts]
    names = list(numbers[0])
    rows = [
        [_name(policy), *(f"{one[name]:.2f}" for name in names)]
        for policy, one in zip(policies, numbers, strict=True)
    ]
    note = f"{len(rollouts[0].paths)} episodes of each policy. Distances in metres; shares of episodes."
    return Table("trajectories", "Where policies go", note, ["policy", *names], rows)


def _name(policy: DeployedPolicy) -> str:
    return f"{policy.metadata.algorithm} after {policy.metadata.env_steps:,} steps"


def write_trajectories(
    policies: Sequence[DeployedPolicy], out: Path, *, num: int = 100, seed: int = 0, explores: bool = True
) -> tuple[Path, Table]:
    """Write the figure (PNG, PDF or SVG by the name of `out`), and the numbers as CSV beside it.

    Raises:
        UserError: If the file's kind is impossible, the policies are of several environments, or theirs reports no
            positions.
    """
    kind = out.suffix.removeprefix(".")
    if kind not in ("png", "pdf", "svg"):
        raise SettingsError(f"--out {out} must end in .png, .pdf or .svg.")
    first = policies[0].metadata
    for policy in policies:
        if policy.metadata.env != first.env:
            raise SettingsError(
                f"Policies of {first.env} and {policy.metadata.env} cannot be drawn together: give policies of one "
                "environment."
            )
    rollouts = [roll_out(policy, num, seed, explores=explores) for policy in policies]
    table = trajectories_table(policies, rollouts)
    write_atomically(out, to_bytes(trajectories_figure(policies, rollouts, seed), kind))
    write_atomically(out.with_suffix(".csv"), table.to_csv().encode())
    return out, table

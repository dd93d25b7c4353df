"""The schema of a row: the record of one evaluation of a policy.

Curves, tables and dashboards are made from these rows and from nothing else. A column's name is the same word
everywhere: here, in Weights & Biases, and in the results that Tune sees.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 6
"""Version 1 had no column `diagnostics`; its rows are read with an empty one. Before 3, `episodes_cut` is null.

Before 4, `env_restarts` is null, and files hold the columns that name their folders, too (`writer.PARTITIONS`).
Before 5, columns of costs are null, as they are later where a task has no cost. Before 6, `success_rate` is null.
"""


def _column(name: str, type_: pa.DataType, description: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"description": description})


SCHEMA = pa.schema(
    [
        _column("sweep", pa.string(), "Name of the sweep that the run belongs to."),
        _column("algorithm", pa.string(), "Name of the algorithm."),
        _column(
            "variant",
            pa.string(),
            "Variant of the algorithm's settings: 'default', or its name in the sweep.",
        ),
        _column("task", pa.string(), "Short task name (hopper), or the gymnasium id where there is none."),
        _column("env_id", pa.string(), "gymnasium id with version (Hopper-v4)."),
        _column("seed", pa.int64(), "Seed of the run; evaluation seeds derive from it."),
        _column("env_steps", pa.int64(), "Training environment steps taken when this evaluation was due."),
        _column("return_mean", pa.float64(), "Mean over episodes of the undiscounted return."),
        _column("return_std", pa.float64(), "Population standard deviation over the same episodes."),
        _column("returns", pa.list_(pa.float64()), "Undiscounted return of every episode, in order."),
        _column("episode_length_mean", pa.float64(), "Mean number of environment steps per episode."),
        _column(
            "episodes_cut",
            pa.int64(),
            "Episodes cut at evaluation_max_episode_steps; null in rows of versions without this limit.",
            nullable=True,
        ),
        _column(
            "env_restarts",
            pa.int64(),
            "Training environments rebuilt so far after raising an error; null in rows of earlier versions.",
            nullable=True,
        ),
        _column(
            "success_rate",
            pa.float64(),
            "Share of episodes that succeeded; null where the environment reports no is_success.",
            nullable=True,
        ),
        _column("cost_mean", pa.float64(), "Mean over episodes of the undiscounted cost.", nullable=True),
        _column(
            "cost_sd", pa.float64(), "Population standard deviation over the same episodes.", nullable=True
        ),
        _column(
            "cost_discounted_mean",
            pa.float64(),
            "Mean over episodes of the cost discounted by gamma.",
            nullable=True,
        ),
        _column("violation_share", pa.float64(), "Share of all steps with a cost above 0.", nullable=True),
        _column(
            "costs", pa.list_(pa.float64()), "Undiscounted cost of every episode, in order.", nullable=True
        ),
        _column(
            "cost_limit",
            pa.float64(),
            "Maximum mean cost of an episode: of cost_mean or cost_discounted_mean, depending on cost_discounting "
            "in config_json.",
            nullable=True,
        ),
        _column("weights_env_steps", pa.int64(), "env_steps at which the evaluated weights were frozen."),
        _column("updates", pa.int64(), "Gradient updates behind the evaluated weights."),
        _column(
            "diagnostics",
            pa.map_(pa.string(), pa.field("value", pa.float64(), nullable=False)),
            "Latest training diagnostics by name (gate, drift, costs, multiplier, ...), and outcomes of episodes "
            "in training (forward_max, ...) and in the evaluation (goal_reached, ...).",
        ),
        _column("eval_sampler", pa.string(), "Sampler of the actions in the evaluation, without noise."),
        _column("config_json", pa.string(), "Resolved configuration of the run, as canonical JSON."),
        _column("config_hash", pa.string(), "First 16 hex digits of SHA-256 of config_json."),
        _column("schema_version", pa.int64(), "Version of this schema."),
        _column("device", pa.string(), "Device of the training."),
        _column(
            "wall_time_s", pa.float64(), "Seconds since the start of the run, including those before resumes."
        ),
        _column(
            "trial_id",
            pa.string(),
            "Identifier of the run directory; together with env_steps, the key of a row.",
        ),
        _column(
            "git_commit",
            pa.string(),
            "Commit of the package's checkout, with '-dirty' if modified; '' if there is no checkout.",
        ),
        _column("versions", pa.string(), "Versions of Python, libraries and platform, as JSON."),
    ]
)

COST_COLUMNS = ("cost_mean", "cost_sd", "cost_discounted_mean", "violation_share", "cost_limit")
"""Numbers of an evaluation that are null where the task says nothing of costs."""

SUCCESS_RATE = "success_rate"
"""Column of the share of episodes that succeeded."""

FRAMES = "frames"
"""Diagnostic of runs from images: steps of the simulator so far, of which a step of the environment takes several."""

VOLATILE_COLUMNS = frozenset({"wall_time_s", "trial_id", "device", "git_commit", "versions"})
"""Columns about time, machine and build; equal runs agree in all others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One evaluation; the fields are the columns of `SCHEMA`, which documents them."""

    sweep: str
    algorithm: str
    variant: str
    task: str
    env_id: str
    seed: int
    env_steps: int
    return_mean: float
    return_std: float
    returns: tuple[float, ...]
    episode_length_mean: float
    weights_env_steps: int
    updates: int
    eval_sampler: str
    config_json: str
    config_hash: str
    device: str
    wall_time_s: float
    trial_id: str
    git_commit: str
    versions: str
    diagnostics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    episodes_cut: int | None = None
    env_restarts: int | None = None
    success_rate: float | None = None
    cost_mean: float | None = None
    cost_sd: float | None = None
    cost_discounted_mean: float | None = None
    violation_share: float | None = None
    costs: tuple[float, ...] | None = None
    cost_limit: float | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for name in ("sweep", "algorithm", "task", "trial_id"):  # these name folders and files
            if not getattr(self, name):
                raise ValueError(f"{name} of an evaluation row is empty")
        if self.env_steps < 0:
            raise ValueError(f"env_steps is {self.env_steps}, less than 0")
        object.__setattr__(self, "returns", tuple(float(value) for value in self.returns))
        if self.costs is not None:
            object.__setattr__(self, "costs", tuple(float(value) for value in self.costs))
        object.__setattr__(self, "diagnostics", dict(self.diagnostics))

    def to_arrow(self) -> pa.Table:
        """A table of `SCHEMA` with this one row."""
        return pa.Table.from_pylist([dataclasses.asdict(self)], schema=SCHEMA)


def rows_from_arrow(table: pa.Table) -> list[EvaluationRow]:
    """The rows of a table of `SCHEMA`, in its order."""
    return [EvaluationRow(**record) for record in table.select(SCHEMA.names).to_pylist()]


def without_volatile(table: pa.Table) -> pa.Table:
    """The columns in which two runs of one configuration and seed must agree."""
    return table.drop_columns([name for name in table.column_names if name in VOLATILE_COLUMNS])


def episode_statistics(returns: Sequence[float], lengths: Sequence[int]) -> dict[str, Any]:
    """Columns return_mean, return_std, returns and episode_length_mean of one evaluation.

    Args:
        returns: undiscounted return of every episode, at least one.
        lengths: environment steps of the same episodes.
    """
    if not returns or len(returns) != len(lengths):
        raise ValueError(
            f"{len(returns)} returns and {len(lengths)} lengths: one of each is required per episode"
        )
    values = np.asarray(returns, dtype=np.float64)
    return {
        "return_mean": float(values.mean()),
        "return_std": float(values.std()),
        "returns": tuple(values.tolist()),
        "episode_length_mean": float(np.mean(lengths)),
    }


def cost_statistics(
    costs: Sequence[float], discounted: Sequence[float], costly_steps: Sequence[int], lengths: Sequence[int]
) -> dict[str, Any]:
    """Columns cost_mean, cost_sd, cost_discounted_mean, violation_share and costs of one evaluation.

    Args:
        costs: Undiscounted cost of every episode, at least one.
        discounted: The same, discounted.
        costly_steps: Steps of each that cost more than 0.
        lengths: All steps of each.
    """
    values = np.asarray(costs, dtype=np.float64)
    return {
        "cost_mean": float(values.mean()),
        "cost_sd": float(values.std()),
        "cost_discounted_mean": float(np.mean(discounted)),
        "violation_share": float(np.sum(costly_steps) / np.sum(lengths)),
        "costs": tuple(values.tolist()),
    }


def limited_cost(config: Mapping[str, Any]) -> str:
    """Return the column that a configuration's `cost_limit` bounds, as its `cost_discounting` says."""
    return "cost_mean" if config.get("cost_discounting") == "undiscounted" else "cost_discounted_mean"


def excess_cost(cost: float, limit: float) -> float:
    """Return by how much a cost exceeds its limit, 0 within it."""
    return max(0.0, cost - limit)


def canonical_json(config: Mapping[str, Any]) -> str:
    """`config` as JSON that depends on its content only: sorted keys, no spaces, no NaN or infinity."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)


def config_hash(config: Mapping[str, Any]) -> str:
    """First 16 hex digits of SHA-256 over the canonical JSON of `config`."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:16]

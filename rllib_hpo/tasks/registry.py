"""Register tasks: names, environments, and the paper's hyperparameters for each (Table I)."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

import gymnasium as gym

from rllib_hpo.costs import Cost, SpeedCost, TorqueCost
from rllib_hpo.errors import UnknownNameError, UserError, nearest
from rllib_hpo.tasks.environments import find_spec
from rllib_hpo.tasks.modules import load_module
from rllib_hpo.tasks.pixels import dm_control

ENTRY_POINT_GROUP = "rllib_hpo.tasks"

Settings = Mapping[str, object]


@dataclass(frozen=True)
class Task:
    """An environment with each algorithm's settings for it.

    Attributes:
        name: The user's name for it ("hopper"); for an environment without its own row, its id.
        env_id: A gymnasium id, or "module:Id-v0" for one that `module` registers.
        steps: Environment steps of a full run.
        defaults: Settings that differ from the algorithm's defaults, by algorithm ("sac", "sac-nf", "sac-hpo"). SAC and
            SAC-HPO with a constraint use those of SAC and SAC-HPO.
        constraint: The settings `cost`, `cost_limit` and `cost_discounting`, for every algorithm.
    """

    name: str
    env_id: str
    steps: int = 1_000_000
    defaults: Mapping[str, Settings] = field(default_factory=dict)
    constraint: Settings = field(default_factory=dict)

    def settings_for(self, algorithm: str) -> dict[str, object]:
        """Return this task's settings for `algorithm`; for one unknown to the task, its constraint alone."""
        row = self.defaults.get(algorithm, self.defaults.get(algorithm.removesuffix("-lagrangian"), {}))
        return {**row, **self.constraint}


def _row(
    alpha: float, std_train: float, std_explore: float, step_size: float, steps: int, units: int, flows: int
) -> dict[str, Settings]:
    """Make one row of Table I, with the number of radial flows of SAC-NF."""
    return {
        "sac": {"alpha": alpha},
        "sac-nf": {"alpha": alpha, "num_flows": flows},
        "sac-hpo": {
            "alpha": alpha,
            "momentum_std_train": std_train,
            "momentum_std_explore": std_explore,
            "step_size": step_size,
            "leapfrog_steps": steps,
            "leapfrog_units": units,
        },
    }


# fmt: off
TABLE_ONE = (
    #                                                                 alpha  train explore  eps  K  h_n flows
    Task("halfcheetah", "HalfCheetah-v4", 1_000_000,               _row(0.20, 1.0, 0.5, 0.20, 3, 32, 3)),
    Task("hopper", "Hopper-v4", 1_000_000,                         _row(0.20, 0.1, 1.5, 0.15, 2, 32, 5)),
    Task("walker2d", "Walker2d-v4", 1_000_000,                     _row(0.20, 0.2, 1.5, 0.15, 3, 32, 5)),
    Task("ant", "Ant-v4", 1_000_000,                               _row(0.20, 0.1, 1.0, 0.10, 3, 32, 4)),
    Task("humanoid", "Humanoid-v4", 3_000_000,                     _row(0.05, 1.0, 1.0, 0.10, 3, 64, 4)),
    Task("humanoid-pybullet", "HumanoidPyBulletEnv-v0", 3_000_000, _row(0.05, 0.4, 1.5, 0.20, 3, 64, 4)),
    Task("humanoid-flagrun-pybullet", "HumanoidFlagrunPyBulletEnv-v0", 3_000_000,
                                                                   _row(0.05, 0.2, 1.0, 0.15, 3, 32, 4)),
    Task("humanoid-flagrun-harder-pybullet", "HumanoidFlagrunHarderPyBulletEnv-v0", 3_000_000,
                                                                   _row(0.05, 0.2, 1.5, 0.15, 3, 64, 4)),
)
# fmt: on
"""The eight tasks of the paper's comparison."""


def _constrained(name: str, base: str, cost: Cost, limit: float, discounting: str, env_id: str = "") -> Task:
    """Make a constrained task from a row of Table I; an episode may cost `limit`.

    It uses the row's environment unless `env_id` names another.
    """
    row = next(task for task in TABLE_ONE if task.name == base)
    constraint = {"cost": cost.model_dump(), "cost_limit": limit, "cost_discounting": discounting}
    return replace(row, name=name, env_id=env_id or row.env_id, steps=1_000_000, constraint=constraint)


def _without_short_cut(task: Task) -> Task:
    """Return the task with mean costs for the multiplier, so that ending an episode early does not lower its cost."""
    rows = {
        f"{base}-lagrangian": {**task.defaults[base], "lagrange_estimate": "mean"}
        for base in ("sac", "sac-hpo")
    }
    return replace(task, defaults={**task.defaults, **rows})


def _velocity(
    base: str, limit: float, axis: Literal["x", "xy"] = "x", name: str = "", env_id: str = ""
) -> Task:
    """Make a velocity task of Safety-Gymnasium (version 1): 25 of 1,000 steps may exceed the speed limit."""
    cost = SpeedCost(limit=limit, axis=axis, absolute=False)
    return _constrained(f"{name or base}-velocity", base, cost, 25.0, "undiscounted", env_id)


_CONSTRAINED = (
    # Xu & Fekri 2021, arXiv 2103.12020, V-B.
    _constrained("halfcheetah-speed1", "halfcheetah", SpeedCost(limit=1.0), 10.0, "discounted"),
    _without_short_cut(_constrained("ant-torque25", "ant", TorqueCost(), 25.0, "discounted")),
    # Ji et al. 2023, Safety-Gymnasium: half of the highest speed that PPO reached in 10 M steps.
    _velocity("halfcheetah", 3.2096),
    _velocity("ant", 2.6222, "xy"),
    _velocity("hopper", 0.7402),
    _velocity("walker2d", 2.3415),
    _velocity("humanoid", 1.4149, "xy"),
    _velocity("ant", 0.2282, name="swimmer", env_id="Swimmer-v4"),
)

_SOFT = ("sac", "sac-nf", "sac-hpo", "soft-q")
_ALL = (*_SOFT, "td3", "ddpg")
_SHORT: Settings = {"warmup_steps": 100, "evaluation_every": 1_000, "evaluation_episodes": 100}


def _soft(alpha: float) -> dict[str, Settings]:
    """Return one temperature for all algorithms that have one: that of Haarnoja et al. 2017, Appendix D."""
    return {name: {"alpha": alpha} for name in _SOFT}


_SOFT_Q = (
    Task(
        "multi-goal", "MultiGoal-v0", 10_000, {name: {**_soft(10.0).get(name, {}), **_SHORT} for name in _ALL}
    ),
    Task("snake-finish", "SnakeFinish-v0", 5_000_000, _soft(0.1)),
    Task("quad-open", "QuadOpen-v0", 5_000_000, _soft(0.1)),
    Task("quad-maze", "QuadMaze-v0", 5_000_000, _soft(0.1)),
    Task("quad-hall-wide", "QuadHallWide-v0", 2_000_000, _soft(0.1)),
    Task("quad-hall-narrow", "QuadHallNarrow-v0", 2_000_000, _soft(0.1)),
    Task("quad-u", "QuadU-v0", 2_000_000, _soft(0.1)),
)
"""The tasks of soft Q-learning's paper; see `rllib_hpo.tasks.soft_q`."""

_PIXELS = tuple(
    Task(
        f"dm-{domain}-{name}",
        dm_control.env_id_of(domain, name),
        500_000 // dm_control.ACTION_REPEATS[domain],
    )
    for domain, name in dm_control.OF_THE_PAPER
)
"""The tasks of the first version's section 5.1.3, from images: 500,000 frames each, as steps of repeated actions."""

_tasks: dict[str, Task] = {task.name: task for task in (*TABLE_ONE, *_CONSTRAINED, *_SOFT_Q, *_PIXELS)}
_seen_entry_points: set[EntryPoint] = set()


def register_task(task: Task) -> None:
    """Register a task; registering an equal task again has no effect.

    Raises:
        UserError: If another task has that name.
    """
    known = _tasks.setdefault(task.name, task)
    if known != task:
        raise UserError(f"The task '{task.name}' already exists, with environment '{known.env_id}'.")


def all_tasks() -> tuple[Task, ...]:
    """Return all known tasks, including those of other installed packages, in order of registration."""
    _load_plugins()
    return tuple(_tasks.values())


def find_task(name_or_env_id: str) -> Task:
    """Return the task of that name, or make one for a gymnasium id.

    An environment's id means its task without a constraint. Another version of the id ("Hopper-v5" for hopper's
    "Hopper-v4") gets that task's settings, with the id as its name, so that results of two versions never mix. Any
    other id gets Ant's settings.

    Args:
        name_or_env_id: "hopper", "Hopper-v4", or "module:Id-v0" where importing `module` registers the id.

    Raises:
        UnknownNameError: If it is neither; names the nearest one.
    """
    if name_or_env_id not in _tasks:
        _load_plugins()
    if name_or_env_id in _tasks:
        return _tasks[name_or_env_id]
    for task in _tasks.values():
        if task.env_id == name_or_env_id and not task.constraint:
            return task
    if (suite_task := _suite_task(name_or_env_id)) is not None:
        return suite_task
    if find_spec(name_or_env_id) is None:
        close = nearest(name_or_env_id, [*_tasks, *gym.registry])
        hint = f" Did you mean '{close}'?" if close else ""
        raise UnknownNameError(
            f"Unknown task '{name_or_env_id}'.{hint} Valid: {', '.join(sorted(_tasks))}, or any gymnasium id; if a "
            "package registers the id, give --import PACKAGE too, or write PACKAGE:ID."
        )
    unconstrained = [task for task in _tasks.values() if not task.constraint]
    row = next((task for task in unconstrained if _base(task.env_id) == _base(name_or_env_id)), None)
    if row is None:
        row = replace(_tasks["ant"], steps=1_000_000)
    return replace(row, name=name_or_env_id, env_id=name_or_env_id)


def _suite_task(name: str) -> Task | None:
    """Make the task "dm-DOMAIN-TASK" of the DeepMind Control Suite; None for other names.

    The suite may not be installed here, so whether it has the task is checked where an environment is made.
    """
    prefix, _, names = name.partition("-")
    domain, dash, task = names.partition("-")
    is_suite = prefix == "dm" and dash and task
    return Task(name, dm_control.env_id_of(domain, task), 250_000) if is_suite else None


def _base(env_id: str) -> str:
    """Return an environment id without its version."""
    return env_id.rpartition("-v")[0] or env_id


def _load_plugins() -> None:
    """Load tasks of installed packages through the entry points of our group, each once per process."""
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        if entry_point in _seen_entry_points:
            continue
        # Mark it before loading, since a plugin may look up tasks while it loads.
        _seen_entry_points.add(entry_point)
        try:
            _register_from(entry_point)
        except Exception as error:  # noqa: BLE001 - one broken package must not take away the tasks of others
            warnings.warn(f"The tasks of '{entry_point.value}' could not be loaded: {error!r}", stacklevel=3)


def _register_from(entry_point: EntryPoint) -> None:
    """Load an entry point: a module that registers, a Task, or a callable that registers or returns tasks."""
    loaded = entry_point.load()
    if isinstance(loaded, types.ModuleType):
        return
    found = loaded() if callable(loaded) else loaded
    if found is None:
        return
    tasks: Iterable[object] = [found] if isinstance(found, Task) else found
    for task in tasks:
        if not isinstance(task, Task):
            raise TypeError(f"expected a Task, got {type(task).__name__}")
        register_task(task)


def import_modules(modules: Sequence[str], needed_by: str = "") -> None:
    """Import modules that register environments, tasks, algorithms or samplers.

    Args:
        modules: Names of the modules.
        needed_by: Source of the names, unless it is the command line: a run's configuration, a checkpoint, ...

    Raises:
        UserError: If a module cannot be imported.
    """
    for module in modules:
        try:
            load_module(module)
        except ImportError as error:
            if not needed_by:
                raise UserError(f"--import {module}: {error}.") from error
            raise UserError(
                f"{needed_by} needs the module '{module}' (--import), which cannot be imported: {error}. Install "
                "it, or add its directory to PYTHONPATH."
            ) from error

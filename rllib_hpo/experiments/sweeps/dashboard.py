"""Make the W&B workspace that compares the algorithms of a sweep, as a file or online.

A panel cannot choose among the runs of its workspace, but shows those that have its metric; so each task's
evaluation return is logged under a name of its own too (`task_metric`), and gets a section of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from rllib_hpo.errors import CheckpointError, UserError
from rllib_hpo.experiments.config.run_config import read_config_file
from rllib_hpo.experiments.sweeps.plan import SweepFiles, read_plan
from rllib_hpo.experiments.tracking.wandb_logger import PROJECT, STEP_METRIC, group_of, task_metric
from rllib_hpo.results import SUCCESS_RATE, read_rows, write_atomically

DIAGNOSTICS = {
    "gate_mean": "Gate",
    "action_gradient_norm": "Norm of the action gradient",
    "q_gain": "Gain in Q along the chain",
    "clipped_share": "Share of clipped actions",
    "momentum_norm": "Norm of the momentum",
    "displacement": "Displacement of the action",
    "displacement_drift": "Displacement by drift",
    "displacement_noise": "Displacement by noise",
}
"""Diagnostics of SAC-HPO's sampler (`Sampler.diagnose`), with titles."""

LOSSES = {
    "critic_loss": "Critic loss",
    "policy_loss": "Policy loss",
    "q_mean": "Mean Q",
    "alpha": "Temperature",
    "log_prob_mean": "Mean log-density",
}
"""Metrics of updates, with titles."""

SAFETY = {
    "lambda": "Multiplier",
    "cost_estimate": "Cost of the last training episodes",
    "q_cost_start": "Predicted cost of an episode",
    "cost_discounted_latest": "Discounted cost of the last training episodes",
    "q_cost_mean": "Mean Q_C",
    "cost_loss": "Loss of the cost critic",
    "shield_accept": "Share of steps with a safe action",
    "shield_steps_mean": "Leapfrog steps of the shield",
}
"""Metrics of algorithms under a cost limit, with titles; the last two with a shield only."""

MOST_LINES = 100
"""Greatest number of groups in one panel; W&B's default is 10."""


@dataclass(frozen=True)
class _Cell:
    """Algorithm, variant and task of trials that differ only by seed."""

    task: str
    algorithm: str
    variant: str
    has_cost: bool = False
    is_constrained: bool = False
    has_goals: bool = False


def workspace(files: SweepFiles, entity: str | None = None, project: str = PROJECT) -> Any:
    """The workspace of a sweep, as an object of wandb-workspaces.

    Args:
        files: The sweep, run or only planned.
        entity: W&B user or team.
        project: W&B project.

    Raises:
        UserError: If the directory is not that of a sweep, or wandb-workspaces is not installed.
    """
    ws, _ = _libraries()
    plan = read_plan(files)
    cells = _cells(files, plan["trials"])
    tasks = _unique(cell.task for cell in cells)
    costly = {cell.task for cell in cells if cell.has_cost}
    succeeding = {cell.task for cell in cells if cell.has_goals} | _tasks_with_success(files)
    sections = [
        _task_section(task, has_success=task in succeeding, has_cost=task in costly) for task in tasks
    ]
    sections += [_ablation_section(task, cells) for task in tasks if _ablated(task, cells)]
    if any(cell.is_constrained for cell in cells):
        sections.append(_section("Safety", [_learner_panel(*item) for item in SAFETY.items()]))
    sections.append(_section("Sampler diagnostics", [_learner_panel(*item) for item in DIAGNOSTICS.items()]))
    sections.append(_section("Losses", [_learner_panel(*item) for item in LOSSES.items()]))
    return ws.Workspace(
        entity=entity or "",
        project=project,
        name=f"{plan['sweep']}: {', '.join(_unique(cell.algorithm for cell in cells))}",
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP_METRIC, max_runs=MOST_LINES),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group").isin([group_of(plan["sweep"], task) for task in tasks])),
            # The task comes first: means of returns or losses over tasks would say nothing.
            groupby=[ws.Metric("Group"), ws.Metric("JobType"), ws.Config("variant")],
        ),
    )


def write_workspace(built: Any, path: Path) -> None:
    """Writes a workspace as the JSON that W&B's server takes.

    Raises:
        StorageError: If the file cannot be written.
    """
    view = json.loads(built._to_model().model_dump_json(by_alias=True, exclude_none=True))
    write_atomically(path, f"{json.dumps(view, indent=1)}\n".encode())


def save_workspace(built: Any) -> str:
    """Saves a workspace online, as a new view of its project, and returns its address.

    Raises:
        UserError: If there is no account, or W&B refuses.
    """
    import wandb

    try:
        wandb.setup(wandb.Settings(silent=True))
        if not wandb.login(prompt=False):
            raise ValueError("no account is logged in, or WANDB_MODE is offline")
        built.entity = built.entity or wandb.Api().default_entity
        return str(built.save().url)
    except Exception as error:  # W&B raises many kinds, some of them bare
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"The workspace could not be saved online ({reason[0].rstrip('.')}); run `wandb login`, and give an "
            "--entity and --project that the account can write to."
        ) from error


def _libraries() -> tuple[Any, Any]:
    """Import workspaces and panels, an optional dependency."""
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError(
            "The dashboard needs wandb-workspaces: `pip install 'rllib-hpo[dashboard]'`."
        ) from error
    return workspaces, panels


def _cells(files: SweepFiles, trials: dict[str, str]) -> list[_Cell]:
    cells = []
    for name, variant in trials.items():
        config_file = files.trial(name).config
        if not config_file.is_file():
            raise CheckpointError(f"{config_file}, which the sweep's plan names, is missing.")
        config = read_config_file(config_file)
        about = {
            "has_cost": config.get("cost") is not None,
            "is_constrained": "lagrange" in config,
            "has_goals": config.get("replay") == "her",
        }
        cells.append(_Cell(str(config["task"]), str(config["algorithm"]), variant, **about))
    return _unique(cells)


def _tasks_with_success(files: SweepFiles) -> set[str]:
    """Tasks with an evaluation so far whose environment reported successes; no configuration tells."""
    rows = read_rows(files.results)
    return set(rows.filter(pc.field(SUCCESS_RATE).is_valid())["task"].to_pylist())


def _ablated(task: str, cells: Sequence[_Cell]) -> bool:
    return len({cell.variant for cell in cells if cell.task == task}) > 1


def _task_section(task: str, *, has_success: bool, has_cost: bool) -> Any:
    """A section that compares algorithms and variants: returns, success rates, and costs with their limit."""
    panels = [_panel(task_metric(task), "Evaluation return, by algorithm and variant")]
    if has_success:
        panels.append(_panel(task_metric(task, SUCCESS_RATE), "Share of episodes that succeeded"))
    if has_cost:
        limit = task_metric(task, "cost_limit")
        panels += [
            _panel(task_metric(task, "cost_mean"), "Cost of an episode", limit),
            _panel(task_metric(task, "cost_discounted_mean"), "Discounted cost of an episode", limit),
        ]
    return _section(task, panels)


def _ablation_section(task: str, cells: Sequence[_Cell]) -> Any:
    """A section that compares variants; with several algorithms, each line belongs to one."""
    _, wr = _libraries()
    algorithms = {cell.algorithm for cell in cells if cell.task == task}
    by_variant = {"groupby": wr.Config("variant")} if len(algorithms) == 1 else {}
    panel = _panel(task_metric(task), "Evaluation return, by variant", **by_variant)
    return _section(f"Ablation: {task}", [panel])


def _learner_panel(name: str, title: str) -> Any:
    return _panel(f"learner/{name}", title)


def _panel(metric: str, title: str, *more: str, **options: Any) -> Any:
    """Metrics over environment steps: mean over the runs of a group, with a band of a standard deviation."""
    _, wr = _libraries()
    return wr.LinePlot(
        title=title,
        x=STEP_METRIC,
        y=[metric, *more],
        title_x="environment steps",
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_runs_to_show=MOST_LINES,
        **options,
    )


def _section(name: str, panels: list[Any]) -> Any:
    ws, _ = _libraries()
    columns = min(len(panels), 3)
    return ws.Section(
        name=name,
        panels=panels,
        is_open=True,
        layout_settings=ws.SectionLayoutSettings(columns=columns, rows=-(-len(panels) // columns)),
        panel_settings=ws.SectionPanelSettings(x_axis=STEP_METRIC),
    )


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))

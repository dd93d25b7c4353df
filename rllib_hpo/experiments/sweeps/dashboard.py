"""The W&B workspace that compares the algorithms of a sweep: made here as a file, saved online on request.

A panel cannot choose among the runs of its workspace, but shows those that have its metric; so each task's
evaluation return is logged under a name of its own too (`return_metric`), and gets a section of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rllib_hpo.errors import CheckpointError, UserError
from rllib_hpo.experiments.config.run_config import read_config_file
from rllib_hpo.experiments.sweeps.sweep import SweepFiles, read_plan
from rllib_hpo.experiments.tracking.wandb_logger import PROJECT, STEP_METRIC, group_of, return_metric
from rllib_hpo.results import write_atomically

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
"""What SAC-HPO's sampler says of itself (`Sampler.diagnose`), with titles."""

LOSSES = {
    "critic_loss": "Critic loss",
    "policy_loss": "Policy loss",
    "q_mean": "Mean Q",
    "alpha": "Temperature",
    "log_prob_mean": "Mean log-density",
}
"""What an update says of itself, with titles."""

MOST_LINES = 100
"""Groups that one panel shows; W&B's own limit is 10."""


@dataclass(frozen=True)
class _Cell:
    """What one or more trials, which differ by seed, are of."""

    task: str
    algorithm: str
    variant: str


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
    sections = [_task_section(task) for task in tasks]
    sections += [_ablation_section(task, cells) for task in tasks if _ablated(task, cells)]
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
            raise ValueError("there is no account, or WANDB_MODE is offline")
        built.entity = built.entity or wandb.Api().default_entity
        return str(built.save().url)
    except Exception as error:  # W&B raises many kinds, some of them bare
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"The workspace could not be saved online ({reason[0].rstrip('.')}); run `wandb login`, "
            "and name with --entity and --project what the account may write to."
        ) from error


def _libraries() -> tuple[Any, Any]:
    """Workspaces and panels; an extra, for training needs neither."""
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
            raise CheckpointError(f"{config_file} of the sweep's plan is missing.")
        config = read_config_file(config_file)
        cells.append(_Cell(str(config["task"]), str(config["algorithm"]), variant))
    return _unique(cells)


def _ablated(task: str, cells: Sequence[_Cell]) -> bool:
    return len({cell.variant for cell in cells if cell.task == task}) > 1


def _task_section(task: str) -> Any:
    """Algorithms and variants against each other, as the runs are grouped."""
    return _section(task, [_panel(return_metric(task), "Evaluation return, by algorithm and variant")])


def _ablation_section(task: str, cells: Sequence[_Cell]) -> Any:
    """Variants against each other. Where they are of several algorithms, each line is still of one."""
    _, wr = _libraries()
    algorithms = {cell.algorithm for cell in cells if cell.task == task}
    by_variant = {"groupby": wr.Config("variant")} if len(algorithms) == 1 else {}
    panel = _panel(return_metric(task), "Evaluation return, by variant", **by_variant)
    return _section(f"Ablation: {task}", [panel])


def _learner_panel(name: str, title: str) -> Any:
    return _panel(f"learner/{name}", title)


def _panel(metric: str, title: str, **options: Any) -> Any:
    """A metric over environment steps: mean over the runs of a group, with a band of a standard deviation."""
    _, wr = _libraries()
    return wr.LinePlot(
        title=title,
        x=STEP_METRIC,
        y=[metric],
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

"""List the available choices: `rllib-hpo tasks` and `settings`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Column, Table

from rllib_hpo.cli.console import console
from rllib_hpo.cli.options import ALGORITHMS, Imports, import_all


def tasks(imports: Imports = None) -> None:
    """List the tasks, their environments and hyperparameters for SAC-HPO (Table I), and the constrained ones."""
    import_all(imports)
    from rllib_hpo.tasks import all_tasks

    columns = {
        "alpha": "alpha",
        "momentum_std_train": "std train",
        "momentum_std_explore": "std explore",
        "step_size": "epsilon",
        "leapfrog_steps": "K",
        "leapfrog_units": "h_n",
    }
    names = ("task", "environment", "steps", *columns.values(), "SAC-NF flows")
    table = Table(*(Column(name, overflow="fold") for name in names))
    known = all_tasks()
    for task in (task for task in known if not task.constraint):
        hpo, flows = task.settings_for("sac-hpo"), task.settings_for("sac-nf").get("num_flows", "")
        table.add_row(
            task.name,
            task.env_id,
            f"{task.steps:,}",
            *(str(hpo.get(name, "")) for name in columns),
            str(flows),
        )
    console.print(table)
    limits = Table(
        *(Column(name, overflow="fold") for name in ("task", "environment", "cost", "limit", "of"))
    )
    for task in (task for task in known if task.constraint):
        cost, limit, discounting = (
            task.constraint[name] for name in ("cost", "cost_limit", "cost_discounting")
        )
        limits.add_row(task.name, task.env_id, _cost(cost), f"{limit:g}", f"{discounting} sum")
    console.print(limits)
    console.print(
        "Any other gymnasium id works too, with Ant's hyperparameters, and with any cost and cost_limit."
    )


def _cost(cost: Any) -> str:
    """Format a task's cost as the setting is written."""
    return ", ".join(f"{name}: {value}" for name, value in cost.items())


def settings(
    algorithm: Annotated[str, typer.Argument(help=f"{ALGORITHMS}, or one of another package.")] = "sac-hpo",
    imports: Imports = None,
) -> None:
    """List an algorithm's settings: what `--set`, a `--config` file and Python's `training()` accept."""
    import_all(imports)
    from rllib_hpo.algorithms.registry import find_settings

    table = Table("setting", "default", "meaning")
    for name, field in find_settings(algorithm).model_fields.items():
        table.add_row(name, str(field.default), field.description)
    console.print(table)

"""Tables of results: from runs to rows of text, and their Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_hpo.analysis import statistics
from rllib_hpo.analysis.random_policy import random_return
from rllib_hpo.analysis.runs import BASELINE, Floats, Run, TaskId, cells_of, clock, series_of, tasks_of
from rllib_hpo.analysis.statistics import Interval
from rllib_hpo.results.configurations import filled

NOTHING = "-"


class Table(NamedTuple):
    """A table of text cells with title and note."""

    name: str
    """Name of its files."""
    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]

    def to_markdown(self) -> str:
        """With title and note."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        body = "\n".join(
            "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines
        )
        return f"### {self.title}\n\n{self.note}\n\n{body}\n"

    def to_latex(self) -> str:
        """A table environment for the package booktabs."""
        lines = [" & ".join(map(_latex, line)) + r" \\" for line in (self.columns, *self.rows)]
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_latex(self.title)}. {_latex(self.note)}}}",
                rf"\label{{tab:{self.name}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
                r"\toprule",
                lines[0],
                r"\midrule",
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def to_csv(self) -> str:
        """The cells as they are, comma-separated."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.columns, *self.rows])
        return buffer.getvalue()


_LATEX = str.maketrans(
    {
        **{c: rf"\{c}" for c in "&%$#_{}"},
        "±": r"$\pm$",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
    }
)


def _latex(text: str) -> str:
    return text.translate(_LATEX)


class Scores(NamedTuple):
    """One score per run, all runs of a task read at the same step."""

    values: Mapping[tuple[TaskId, str], dict[int, float]]
    """Scores of each task and label, by seed."""
    tasks: list[TaskId]
    labels: list[str]

    def of(self, task: TaskId, label: str) -> Floats:
        """Scores (R,) in the order of seeds; empty if there is no run."""
        by_seed = self.values.get((task, label), {})
        return np.array([by_seed[seed] for seed in sorted(by_seed)])

    def matrix(self, label: str) -> Floats | None:
        """Scores (R, T) of the seeds that all tasks have; None if a task has none."""
        cells = [self.values.get((task, label), {}) for task in self.tasks]
        seeds = sorted(set.intersection(*map(set, cells))) if cells else []
        return np.array([[cell[seed] for cell in cells] for seed in seeds]) if seeds else None


def common_steps(runs: Sequence[Run]) -> dict[TaskId, int]:
    """The last step that every run of a task has reached, at which runs are compared."""
    return {task: min(int(run.steps[-1]) for run in runs if run.task == task) for task in tasks_of(runs)}


def scores_of(runs: Sequence[Run], score: Callable[[Floats], float]) -> Scores:
    """A score of each run's returns up to the common step of its task.

    Args:
        runs: Of one or several tasks and algorithms.
        score: Of scheduled returns (N,), as `best` and `final`.
    """
    common = common_steps(runs)
    values = {
        cell: {run.seed: score(_scheduled_up_to(run, common[run.task])) for run in own}
        for cell, own in cells_of(runs).items()
    }
    return Scores(values, tasks_of(runs), [series.label for series in series_of(runs)])


def _scheduled_up_to(run: Run, step: int) -> Floats:
    within = run.steps <= step
    return run.returns[within & run.scheduled] if (within & run.scheduled).any() else run.returns[within]


def best(returns: Floats) -> float:
    """The best evaluation."""
    return float(statistics.final_and_best(returns)[1])


def final(returns: Floats) -> float:
    """The mean of the last five evaluations."""
    return float(statistics.final_and_best(returns)[0])


def normalised(scores: Scores, reference: Scores) -> Scores | None:
    """Normalise scores: a random policy is 0, the final mean of SAC in the same rows is 1; None without either."""
    scaled: dict[tuple[TaskId, str], dict[int, float]] = {}
    for (task, label), by_seed in scores.values.items():
        base, zero = reference.of(task, BASELINE), random_return(task.env_id)
        if not len(base) or zero is None or base.mean() == zero:
            return None
        column = np.array([*by_seed.values()])[:, None]
        values = statistics.normalise(column, [zero], [base.mean()])[:, 0]
        scaled[task, label] = dict(zip(by_seed, values.tolist(), strict=True))
    return Scores(scaled, scores.tasks, scores.labels)


def all_tables(runs: Sequence[Run], rng: np.random.Generator) -> list[Table]:
    """Every table of a report."""
    finals = scores_of(runs, final)
    scaled = normalised(finals, finals)
    tables = [
        _by_task(scores_of(runs, best), "best", "Best return", "each seed's best evaluation", runs),
        _by_task(finals, "final", "Final return", "each seed's last five evaluations' mean", runs),
    ]
    if scaled is not None:
        tables.append(aggregate_table(scaled, rng))
    if len(finals.labels) > 1:
        tables.append(improvement_table(finals, rng))
        tables.append(paired_table(finals, rng))
        tables.append(steps_table(runs, finals))
    return tables


def baseline_of(labels: Sequence[str]) -> str:
    """The baseline of comparisons: SAC, or else the proposed algorithm, or else the first label."""
    proposed = (label for label in labels if label.endswith("(proposed)"))
    return BASELINE if BASELINE in labels else next(proposed, labels[0])


def coverage(runs: Sequence[Run]) -> str:
    """A note on the steps that runs have reached, if they differ within a task; otherwise ""."""
    common = common_steps(runs)
    behind = [
        f"{task.name} up to {common[task]:,} {_unit(runs, task)}"
        for task in common
        if common[task] < max(int(run.steps[-1]) for run in runs if run.task == task)
    ]
    return f" Not all runs are complete; compared: {', '.join(behind)}." if behind else ""


def _unit(runs: Sequence[Run], task: TaskId) -> str:
    return clock(run for run in runs if run.task == task).removeprefix("environment ")


def _by_task(scores: Scores, name: str, title: str, what: str, runs: Sequence[Run]) -> Table:
    rows = []
    for task in scores.tasks:
        cells = [_mean_and_std(scores.of(task, label)) for label in scores.labels]
        rows.append([*_task_cells(task), *cells])
    note = f"Mean ± sample standard deviation over seeds of {what}; in brackets the number of seeds."
    return Table(name, title, note + coverage(runs), ["task", "environment", *scores.labels], rows)


def _mean_and_std(values: Floats) -> str:
    if not len(values):
        return NOTHING
    spread = f" ± {values.std(ddof=1):,.1f}" if len(values) > 1 else ""
    return f"{values.mean():,.1f}{spread} ({len(values)})"


def _task_cells(task: TaskId) -> list[str]:
    return [task.name, task.env_id]


def aggregate_table(scores: Scores, rng: np.random.Generator) -> Table:
    """Interquartile mean, mean and optimality gap over all tasks, of normalised scores."""
    measures = {
        "interquartile mean": statistics.interquartile_mean,
        "mean": lambda values: np.asarray(values.mean((-2, -1))),
        "optimality gap": statistics.optimality_gap,
    }
    rows = []
    for label in scores.labels:
        matrix = scores.matrix(label)
        if matrix is None:
            rows.append([label, *[NOTHING] * (len(measures) + 1)])
            continue
        intervals = [statistics.stratified_bootstrap(matrix, measure, rng) for measure in measures.values()]
        rows.append([label, *map(_interval, intervals), f"{matrix.shape[0]} x {matrix.shape[1]}"])
    note = (
        "Final returns, a random policy 0 and these rows' final SAC mean 1; in brackets stratified-bootstrap 95% "
        "intervals."
    )
    columns = ["algorithm", *measures, "seeds x tasks"]
    return Table("aggregate", "All tasks together", note, columns, rows)


def _interval(interval: Interval, digits: int = 2) -> str:
    estimate, low, high = (f"{float(value):,.{digits}f}" for value in interval)
    return f"{estimate} [{low}, {high}]"


def improvement_table(scores: Scores, rng: np.random.Generator) -> Table:
    """Probability that a run of one algorithm beats one of the baseline, per task and over all."""
    base = baseline_of(scores.labels)
    others = [label for label in scores.labels if label != base]

    def cell(ours: Floats | None, theirs: Floats | None) -> str:
        if ours is None or theirs is None or not (len(ours) and len(theirs)):
            return NOTHING
        return _interval(statistics.bootstrap_improvement(ours, theirs, rng))

    rows = [
        [task.name, *(cell(_column(scores.of(task, o)), _column(scores.of(task, base))) for o in others)]
        for task in scores.tasks
    ]
    if len(scores.tasks) > 1:
        rows.append(["all tasks", *(cell(scores.matrix(o), scores.matrix(base)) for o in others)])
    note = (
        f"Probability that the final return of a run is higher than that of a run of {base}; in brackets bootstrap 95% "
        "intervals over seeds."
    )
    return Table("improvement", f"Probability of improvement over {base}", note, ["task", *others], rows)


def _column(values: Floats) -> Floats | None:
    return values[:, None] if len(values) else None


def paired_table(scores: Scores, rng: np.random.Generator) -> Table:
    """Difference of final returns by seed."""
    base = baseline_of(scores.labels)
    others = [label for label in scores.labels if label != base]
    rows = []
    for task in scores.tasks:
        cells = [task.name]
        for label in others:
            ours, theirs = scores.values.get((task, label), {}), scores.values.get((task, base), {})
            seeds = sorted(set(ours) & set(theirs))
            if len(seeds) < 2:
                cells.append(NOTHING)
                continue
            x, y = ([[own[seed]] for seed in seeds] for own in (ours, theirs))
            difference = statistics.paired_difference(x, y, rng)
            cells.append(f"{_interval(Interval(*(one[0] for one in difference)), 1)} ({len(seeds)})")
        rows.append(cells)
    note = (
        f"Mean over seeds of the final return minus that of {base} with the same seed; in brackets bootstrap 95% "
        "intervals and the number of pairs."
    )
    return Table("paired", f"Difference to {base} by seed", note, ["task", *others], rows)


def steps_table(runs: Sequence[Run], finals: Scores) -> Table:
    """How many steps each algorithm takes to where the baseline ends."""
    base = baseline_of(finals.labels)
    cells, common = cells_of(runs), common_steps(runs)
    rows = []
    for task in finals.tasks:
        reference = finals.of(task, base)
        if not len(reference):
            continue
        target = float(reference.mean())
        row = [task.name, f"{target:,.1f}"]
        for label in finals.labels:
            own = cells.get((task, label), [])
            steps = np.array([_steps_to(run, target, common[task]) for run in own])
            row.append(_median_steps(steps))
        rows.append(row)
    note = (
        f"Median over seeds of the {clock(runs)} until an evaluation first reaches the mean final return of "
        f"{base}; in brackets how many seeds do. A seed that never does counts as later than all others."
    )
    return Table("steps-to-reach", f"Steps to reach {base}", note, ["task", "return", *finals.labels], rows)


def _steps_to(run: Run, target: float, common: int) -> float:
    within = run.steps <= common
    return float(statistics.steps_to_reach(run.steps[within], run.returns[None, within], target)[0])


def _median_steps(steps: NDArray[np.float64]) -> str:
    if not len(steps):
        return NOTHING
    reached = int(np.isfinite(steps).sum())
    median = float(np.median(np.where(np.isfinite(steps), steps, np.inf)))
    return (
        f"{median:,.0f} ({reached} of {len(steps)})"
        if np.isfinite(median)
        else f"never ({reached} of {len(steps)})"
    )


def progress_table(runs: Sequence[Run]) -> Table:
    """How far each cell has come, and its returns so far."""
    rows = []
    for (task, label), own in cells_of(runs).items():
        ends = [int(run.steps[-1]) for run in own]
        reached = f"{min(ends):,}" if min(ends) == max(ends) else f"{min(ends):,} - {max(ends):,}"
        rows.append(
            [
                task.name,
                label,
                str(len(own)),
                reached,
                _plain(np.array([run.returns[-1] for run in own])),
                _plain(np.array([final(run.returns[run.scheduled]) for run in own])),
                _plain(np.array([best(run.returns[run.scheduled]) for run in own])),
            ]
        )
    columns = ["task", "algorithm", "seeds", "steps", "latest", "mean of the last 5", "best"]
    note = f"Mean ± sample standard deviation over seeds, each at its own last evaluation. Steps are {clock(runs)}."
    return Table("progress", "Results so far", note, columns, rows)


def _plain(values: Floats) -> str:
    return _mean_and_std(values).rpartition(" (")[0]


def differences_table(runs: Sequence[Run]) -> Table:
    """The settings in which the algorithms and variants differ; what a task sets is listed by task."""
    labels = [series.label for series in series_of(runs)]
    settings: dict[str, dict[str, set[str]]] = {}
    written = dict.fromkeys(name for run in runs for name in run.config)
    for run in runs:
        config = filled(run.config)
        for name in (name for name in written if name in config):
            settings.setdefault(name, {}).setdefault(run.label, set()).add(_short(config[name]))
    rows = []
    for name, by_label in settings.items():
        if name in ("seed", "task", "env"):
            continue
        if len({frozenset(by_label.get(label, set())) for label in labels}) > 1:
            rows.append([name, *(", ".join(sorted(by_label.get(label, {NOTHING}))) for label in labels)])
    note = "Several values in a cell belong to different tasks."
    return Table("differences", "What differs", note, ["setting", *labels], rows)


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

"""Group rows into runs, and give each algorithm a label, a colour and dashes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rllib_hpo.algorithms.registry import algorithm_names, complete_config, title
from rllib_hpo.results.configurations import CellKey, cells_in
from rllib_hpo.results.schema import FRAMES, SUCCESS_RATE, limited_cost
from rllib_hpo.tasks import all_tasks

Floats = NDArray[np.float64]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which the colour-blind can tell apart."""
DASHES = ("solid", "dashed", "dashdot", "dotted")
"""Line styles, so that neighbours differ without colour, too; with the colours they repeat after 28 labels."""
BASELINE = "SAC"
"""The baseline of comparisons, if there are runs of it."""

_NUMBERS = ("return_mean", "return_std", "updates", "wall_time_s")
COSTS = ("cost_mean", "cost_discounted_mean", "violation_share", "cost_limit", "episode_length_mean")
"""Columns that tell what episodes cost, and how long they were."""


class TaskId(NamedTuple):
    """A task in one version of its environment; results of two versions never mix."""

    name: str
    env_id: str


@dataclass(frozen=True)
class Run:
    """One seed of one algorithm on one task; N evaluations."""

    label: str
    algorithm: str
    variant: str
    sweep: str
    task: TaskId
    seed: int
    trial_id: str
    config: Mapping[str, Any]
    config_hash: str
    steps: NDArray[np.int64]
    """(N,) environment steps, strictly increasing; frames of the simulator where rows count them (`decisions`)."""
    numbers: Mapping[str, Floats]
    """(N,) each: return_mean, return_std, updates and wall_time_s."""
    diagnostics: Mapping[str, Floats]
    """(N,) each, NaN where there was none yet; the column success_rate among them, where it is not null."""
    costs: Mapping[str, Floats] = field(default_factory=dict)
    """(N,) each of `COSTS`, NaN where null; none for a task without a cost."""
    decisions: NDArray[np.int64] | None = None
    """(N,) environment steps where `steps` are frames: a decision is repeated for several of them."""

    @property
    def limited(self) -> str:
        """Which of `COSTS` the limit bounds."""
        return limited_cost(self.config)

    @property
    def returns(self) -> Floats:
        """(N,) mean return of each evaluation."""
        return self.numbers["return_mean"]

    @property
    def scheduled(self) -> NDArray[np.bool_]:
        """(N,) whether each evaluation is at a multiple of `evaluation_every`.

        Not so are the ends of runs, which enter no mean over the last evaluations; all count where there are no
        others but the one at step 0.
        """
        taken = self.steps if self.decisions is None else self.decisions
        on_schedule = taken % int(self.config.get("evaluation_every") or 1) == 0
        return on_schedule if (on_schedule & (self.steps > 0)).any() else np.ones_like(on_schedule)


class Series(NamedTuple):
    """Label, colour and dashes of an algorithm and variant, the same in all figures."""

    label: str
    color: str
    dash: str


def runs_of(table: pa.Table) -> list[Run]:
    """Runs of a table of `read_rows`, in the order of labels and seeds.

    Trials of one algorithm and variant whose configurations differ have different labels, by what differs. The trials
    of a search (`Cell.is_search`) are left out: they are no seeds of one configuration, see `searches_of`.
    Evaluations that stand there more than once (two trials of one seed) are averaged.
    """
    cells = cells_in(table)
    several_sweeps = len(table["sweep"].unique()) > 1
    columns = {name: table[name].to_pylist() for name in (*_KEYS, "env_steps", "trial_id", "config_hash")}
    places: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, key in enumerate(zip(*(columns[name] for name in _KEYS), strict=True)):
        cell = cells[_cell_key(key)]
        if not cell.is_search:
            places[(*key, cell.lines[columns["config_hash"][place]])].append(place)
    numbers = {name: table[name].to_numpy().astype(np.float64) for name in (*_NUMBERS, *COSTS)}
    diagnostics = [
        dict(pairs) | ({} if rate is None else {SUCCESS_RATE: rate})
        for pairs, rate in zip(table["diagnostics"].to_pylist(), table[SUCCESS_RATE].to_pylist(), strict=True)
    ]
    configs = {hash_: complete_config(json.loads(text)) for hash_, text in _distinct(table)}
    runs = []
    for (sweep, algorithm, variant, task, env_id, seed, line), own in places.items():
        last = own[-1]
        steps, groups = _by_step([columns["env_steps"][place] for place in own], own)
        hash_ = columns["config_hash"][last]
        means = {
            name: np.array([values[group].mean() for group in groups]) for name, values in numbers.items()
        }
        measured = _latest(diagnostics, groups)
        frames = measured.get(FRAMES, np.array([np.nan]))
        in_frames = bool(np.isfinite(frames).all())
        has_costs = np.isfinite(means["cost_mean"]).any()
        runs.append(
            Run(
                label=label_of(algorithm, variant, sweep if several_sweeps else "", line),
                algorithm=algorithm,
                variant=variant,
                sweep=sweep,
                task=TaskId(task, env_id),
                seed=seed,
                trial_id=columns["trial_id"][last],
                config=configs[hash_],
                config_hash=hash_,
                steps=frames.astype(np.int64) if in_frames else steps,
                decisions=steps if in_frames else None,
                numbers={name: means[name] for name in _NUMBERS},
                costs={name: means[name] for name in COSTS} if has_costs else {},
                diagnostics=measured,
            )
        )
    return sorted(runs, key=lambda run: (_task_sort_key(run.task), _sort_key(run.label), run.seed))


def _latest(diagnostics: Sequence[Mapping[str, float]], groups: Sequence[Sequence[int]]) -> dict[str, Floats]:
    """Diagnostics by name, each from the last row of every group; NaN where that row lacks it."""
    names = sorted({name for group in groups for place in group for name in diagnostics[place]})
    return {name: np.array([diagnostics[group[-1]].get(name, np.nan) for group in groups]) for name in names}


_KEYS = ("sweep", "algorithm", "variant", "task", "env_id", "seed")


def _cell_key(key: Sequence[Any]) -> CellKey:
    return CellKey(**{name: value for name, value in zip(_KEYS, key, strict=True) if name != "seed"})


def _distinct(table: pa.Table) -> Iterable[tuple[str, str]]:
    """Each configuration once, with its hash."""
    pairs = (
        table.select(["config_hash", "config_json"])
        .group_by("config_hash")
        .aggregate([("config_json", "max")])
    )
    return zip(pairs["config_hash"].to_pylist(), pairs["config_json_max"].to_pylist(), strict=True)


def _by_step(steps: Sequence[int], places: Sequence[int]) -> tuple[NDArray[np.int64], list[list[int]]]:
    """Distinct steps in order, and the table indices of each."""
    groups: dict[int, list[int]] = defaultdict(list)
    for step, place in zip(steps, places, strict=True):
        groups[step].append(place)
    ordered = sorted(groups)
    return np.array(ordered, np.int64), [groups[step] for step in ordered]


def label_of(algorithm: str, variant: str, sweep: str = "", line: str = "") -> str:
    """Label of an algorithm and variant: "SAC-HPO (k-1)", "SAC-HPO (step_size=0.05)"."""
    extra = [part for part in (variant if variant != "default" else "", sweep, line) if part]
    name = title(algorithm)
    return f"{name} ({', '.join(extra)})" if extra else name


def clock(runs: Iterable[Run]) -> str:
    """Name what the steps of runs count, for an axis."""
    names = sorted({"environment steps" if run.decisions is None else "frames" for run in runs})
    return " or ".join(names)


def series_of(runs: Iterable[Run]) -> list[Series]:
    """Series of each label: the baseline, the other known algorithms, then by name."""
    labels = sorted({run.label for run in runs}, key=_sort_key)
    return [Series(label, COLORS[i % len(COLORS)], DASHES[i % len(DASHES)]) for i, label in enumerate(labels)]


def tasks_of(runs: Iterable[Run]) -> list[TaskId]:
    """The tasks, in the order of Table I, then by name."""
    return sorted({run.task for run in runs}, key=_task_sort_key)


def cells_of(runs: Iterable[Run]) -> dict[tuple[TaskId, str], list[Run]]:
    """The runs by task and label, one for each seed."""
    cells: dict[tuple[TaskId, str], list[Run]] = defaultdict(list)
    for run in runs:
        cells[run.task, run.label].append(run)
    return cells


def _task_sort_key(task: TaskId) -> tuple[int, TaskId]:
    known = [one.name for one in all_tasks()]
    return (known.index(task.name) if task.name in known else len(known), task)


def _sort_key(label: str) -> tuple[int, bool, str]:
    """Sort key of a label: known algorithms in their order, and the default variant first."""
    known = [title(algorithm) for algorithm in algorithm_names()]
    name = label.split(" (")[0]
    return (known.index(name) if name in known else len(known), not label.endswith("(proposed)"), label)

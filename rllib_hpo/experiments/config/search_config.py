"""Read a search file: one algorithm on one task, the settings to search, and how.

```yaml
search: my-search          # name of the rows' column `sweep`
description: What it is for.
algorithm: sac-hpo
task: Pendulum-v1          # a task, or any gymnasium id
steps: 20_000              # of a trial, at most
trials: 40
sampler: tpe               # tpe or random
scheduler: asha            # none, asha or pbt
asha: {reduction_factor: 3, first_rung: 2_000}
settings:                  # of all trials; else Table I and the defaults hold
  evaluation_every: 2_000
space:                     # the settings to search
  alpha: {low: 0.01, high: 1.0, log: true}
  leapfrog_steps: {low: 1, high: 4}    # whole numbers, as the setting is
  explore_sampler: {choices: [gaussian, hamiltonian]}
first:                     # tried before the sampler chooses
  - {alpha: 0.2}
```

Each trial has a seed of its own: the file's, plus the trial's number. Settings are those of a sweep file. Both ends of
every range, and every choice, are validated before anything starts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from rllib_hpo.algorithms.registry import find_settings
from rllib_hpo.documents import reading
from rllib_hpo.errors import SettingsError, nearest, shown
from rllib_hpo.experiments.config.model_file import FileModel, ModelLines
from rllib_hpo.experiments.config.run_config import RunConfig, RunSettings, resolve
from rllib_hpo.experiments.config.sweep_config import AXIS_SETTINGS
from rllib_hpo.results import limited_cost
from rllib_hpo.tasks import find_task

MAX_TRIALS = 10_000
NOT_SEARCHED = (
    *("steps", "seed", "evaluation_every", "evaluation_episodes", "evaluation_max_episode_steps"),
    *("cost", "cost_limit", "cost_discounting"),
)
"""Settings that all trials share, or they could not be compared."""

Values = Mapping[str, Any]
"""Searched settings by name."""


def choice_label(choice: Any) -> Any:
    """A choice for a study or a figure: numbers, words and truth values as they are, others as JSON."""
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)


class Domain(FileModel):
    """The values of one searched setting: a range, or choices."""

    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value."""
    log: bool = False
    """Whether the range is searched in its logarithm."""
    choices: Annotated[list[Any], Field(min_length=2)] | None = None
    """Instead of a range: the values to choose from."""

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError("give either low and high, or choices")
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("choices take no low, high or log")
            if len(set(map(choice_label, self.choices))) < len(self.choices):
                raise ValueError("a choice stands there twice")
            return self
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low={low:g} must be below high={high:g}, and both finite")
        if self.log and low <= 0:
            raise ValueError(f"low={low:g} must be above 0 for a logarithmic range")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Both ends of a range."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high


class Asha(FileModel):
    """Successive halving without waiting: Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020."""

    reduction_factor: Annotated[int, Field(ge=2, le=100)] = 3
    """Of this many trials at a rung one goes on, and rungs are this factor apart."""
    first_rung: Annotated[int, Field(ge=1)] | None = None
    """Environment steps before a trial can be stopped; by default about steps / reduction_factor^2."""


class Pbt(FileModel):
    """Population-based training: Jaderberg et al., arXiv 1711.09846, with a population that waits for all members."""

    interval: Annotated[int, Field(ge=1)] | None = None
    """Environment steps between two comparisons; by default evaluation_every."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of members that go on from a checkpoint of a member among the best such share."""
    resample: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Probability that such a member's setting is drawn anew, and not perturbed."""
    factor: Annotated[float, Field(gt=1)] = 1.2
    """Factor by which a number is multiplied or divided; a choice moves to a neighbour."""


class SearchFile(FileModel):
    """The keys of a search file."""

    search: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Name of the search, and of the column `sweep` of its rows."""
    description: str = ""
    """What it is for."""
    algorithm: str
    """Name of an algorithm."""
    task: str
    """Name of a task, or any gymnasium id."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Environment steps of a trial, at most; by default the task's."""
    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)]
    """Number of trials; for pbt, members of the population."""
    seed: Annotated[int, Field(ge=0, lt=2**30)] = 0
    """Seed of the sampler and of the first trial; each further trial has the next number."""
    sampler: Literal["tpe", "random"] = "tpe"
    """What chooses settings: Optuna's tree-structured Parzen estimator, or chance. With pbt, chance begins."""
    scheduler: Literal["none", "asha", "pbt"] = "none"
    """What ends trials early: nothing; asha; or pbt, whose worst members continue from checkpoints of the best."""
    asha: Asha | None = None
    """Options of the scheduler asha."""
    pbt: Pbt | None = None
    """Options of the scheduler pbt."""
    metric: str = "return_mean"
    """Number of an evaluation to compare trials by, as `return_mean` or `cost_mean`."""
    mode: Literal["max", "min"] = "max"
    """Whether more of it is better, or less."""
    within_cost_limit: bool = True
    """Whether trials that exceed the task's limit on costs rank behind all others, by how much they exceed it."""
    confirmation_seeds: Annotated[int, Field(ge=1, le=1_000)] = 5
    """Number of fresh seeds to train the best configuration with, afterwards."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of all trials."""
    space: Annotated[dict[str, Domain], Field(min_length=1)]
    """Settings to search, with their values."""
    first: list[dict[str, Any]] = Field(default_factory=list)
    """Values of the first trials; the sampler chooses what one leaves open."""


@dataclass(frozen=True)
class Search:
    """A validated search file.

    Attributes:
        file: Its keys, with the changes that were asked for.
        steps: Environment steps of a trial, at most.
        whole: Searched settings that are whole numbers.
        rungs: Steps at which asha may stop a trial, or at which pbt compares; ascending, all below `steps`.
        limited: Number of an evaluation that must not exceed `cost_limit`; None if trials compare by the metric alone.
    """

    file: SearchFile
    steps: int
    whole: frozenset[str]
    rungs: tuple[int, ...] = ()
    limited: str | None = None

    def config(self, number: int, values: Values, steps: int | None = None) -> RunConfig:
        """The configuration of a trial.

        Args:
            number: The trial's, which decides its seed.
            values: The searched settings.
            steps: Its last step; by default the search's.

        Raises:
            SettingsError: If these values do not go together.
        """
        file = self.file
        fixed = {"algorithm": file.algorithm, "task": file.task, "seed": file.seed + number}
        return resolve({**file.settings, **values, **fixed, "steps": steps or self.steps})

    @property
    def fresh_seeds(self) -> range:
        """Seeds that no trial has, to confirm the best configuration with."""
        first = self.file.seed + self.file.trials
        return range(first, first + self.file.confirmation_seeds)


def read_search(path: Path, changes: Mapping[str, Any] | None = None) -> Search:
    """Read a search file, and validate both ends of every searched setting.

    Args:
        path: YAML.
        changes: Keys that replace the file's, and below `settings`, settings that do.

    Raises:
        UserError: Naming file, line, key, value, what is allowed and the nearest valid name.
    """
    with reading(f"The search file {path}"):
        lines = ModelLines(path, "search file", {"space": Domain, "asha": Asha, "pbt": Pbt})
        given = lines.parsed(SearchFile)
        changes = dict(changes or {})
        settings = {**given.settings, **changes.pop("settings", {})}
        file = _changed(given, {**changes, "settings": settings})
        lines.located(("algorithm",), find_settings, file.algorithm)
        lines.located(("task",), find_task, file.task)
        _check_names(file, lines)
        _check_options(file, lines)
        model = find_settings(file.algorithm)
        whole = frozenset(
            name
            for name, domain in file.space.items()
            if domain.choices is None and not _is_float(model.model_fields[name].annotation)
        )
        steps = file.steps or find_task(file.task).steps
        search = Search(file, steps, whole)
        _check_ranges(search, lines)
        base = _check_values(search, lines)
        has_limit = file.within_cost_limit and base.settings.cost_limit is not None
        limited = limited_cost(base.values()) if has_limit else None
        return Search(file, steps, whole, _rungs(file, base, lines), limited)


def _changed(given: SearchFile, changes: Mapping[str, Any]) -> SearchFile:
    try:
        return SearchFile(**{**given.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Input should be ")
        raise SettingsError(f"{name}={shown(first['input'])} must be {reason}.") from None


def is_search(path: Path) -> bool:
    """Whether a YAML file is a search's, and not a sweep's."""
    text = path.read_bytes() if path.is_file() else b""
    return re.search(rb"^search\s*:", text, flags=re.MULTILINE) is not None


def _check_names(file: SearchFile, lines: ModelLines) -> None:
    searchable = set(find_settings(file.algorithm).model_fields)
    valid = {*searchable, *RunSettings.model_fields}
    for name in file.settings:
        if name in AXIS_SETTINGS or name == "steps":
            raise lines.error(
                ("settings", name), f"'{name}' is a key of the search file itself, not a setting"
            )
        if name not in valid:
            raise lines.error(("settings", name), _unknown(name, file.algorithm, valid))
    for name in file.space:
        if name in NOT_SEARCHED:
            raise lines.error(("space", name), f"'{name}' cannot be searched: trials are compared by it")
        if name not in searchable:
            raise lines.error(("space", name), _unknown(name, file.algorithm, searchable))
        if name in file.settings:
            raise lines.error(("settings", name), f"'{name}' is searched: it stands in space, too")


def _check_options(file: SearchFile, lines: ModelLines) -> None:
    for i, values in enumerate(file.first):
        for name in values:
            lines.among(("first", i, name), name, list(file.space), "searched setting")
    for scheduler in ("asha", "pbt"):
        if getattr(file, scheduler) is not None and file.scheduler != scheduler:
            raise lines.error((scheduler,), f"'{scheduler}' has no effect with scheduler: {file.scheduler}")
    if file.scheduler == "pbt" and file.trials < 2:
        raise lines.error(("trials",), f"trials={file.trials}: a population has at least 2 members")


def _unknown(name: str, algorithm: str, valid: set[str]) -> str:
    close = nearest(name, valid)
    return f"'{name}' is not a setting of {algorithm}" + (f". Did you mean '{close}'?" if close else "")


def _is_float(annotation: Any) -> bool:
    return annotation is float or any(map(_is_float, get_args(annotation)))


def _check_ranges(search: Search, lines: ModelLines) -> None:
    for name in search.whole:
        for end in search.file.space[name].bounds:
            if not end.is_integer():
                raise lines.error(("space", name), f"{name}={end:g} must be a whole number")
    for i, values in enumerate(search.file.first):
        for name, value in values.items():
            if not contains(search, name, value):
                raise lines.error(("first", i, name), f"{name}={shown(value)} is not in the space")


def contains(search: Search, name: str, value: Any) -> bool:
    """Whether a value is in the domain of a searched setting."""
    domain = search.file.space[name]
    if domain.choices is not None:
        return any(type(value) is type(choice) and value == choice for choice in domain.choices)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = domain.bounds
    return low <= value <= high and (name not in search.whole or float(value).is_integer())


def ends(search: Search, name: str) -> list[Any]:
    """The values of a searched setting that are validated: the ends of its range, or every choice."""
    domain = search.file.space[name]
    if domain.choices is not None:
        return list(domain.choices)
    return [int(end) if name in search.whole else end for end in domain.bounds]


def _check_values(search: Search, lines: ModelLines) -> RunConfig:
    """Validate every end of the space, the others at their first value; return the first configuration."""
    middle = {name: ends(search, name)[0] for name in search.file.space}
    tried = [middle, *({**middle, name: end} for name in middle for end in ends(search, name)[1:])]
    configs = []
    for values in tried:
        try:
            configs.append(search.config(0, values))
        except SettingsError as error:
            named = re.match(r"\w+", str(error))
            name = named.group() if named else ""
            part = next((part for part in ("space", "settings") if name in getattr(search.file, part)), "")
            raise (lines.error((part, name), str(error)) if part else error) from None
    _check_changeable(search, configs, lines)
    return configs[0]


def _check_changeable(search: Search, configs: list[RunConfig], lines: ModelLines) -> None:
    """Check that pbt may change every searched setting in a trained member."""
    if search.file.scheduler != "pbt":
        return
    settings = configs[0].settings
    for name in search.file.space:
        if not all(settings.may_change(name, end) for end in ends(search, name)):
            raise lines.error(
                ("space", name),
                f"pbt cannot search {name}: it cannot change when a member continues from another's checkpoint; "
                "use asha, or none",
            )


def _rungs(file: SearchFile, base: RunConfig, lines: ModelLines) -> tuple[int, ...]:
    """Steps at which trials are compared before their end.

    Raises:
        SettingsError: If no evaluation, or no end of an iteration, falls on them.
    """
    if file.scheduler == "none":
        return ()
    every, steps = base.settings.evaluation_every, base.run.steps
    if every % base.settings.steps_per_iteration:
        raise lines.error(
            ("settings", "steps_per_iteration"),
            f"steps_per_iteration={base.settings.steps_per_iteration} must divide evaluation_every={every}, so that "
            f"{file.scheduler} can stop a trial where it is evaluated",
        )
    asha, pbt = file.asha or Asha(), file.pbt or Pbt()
    if file.scheduler == "asha":
        place, name, first = ("asha", "first_rung"), "first_rung", asha.first_rung
        first = first or max(1, round(steps / asha.reduction_factor**2 / every)) * every
    else:
        place, name, first = ("pbt", "interval"), "interval", pbt.interval or every
    if first % every:
        raise lines.error(place, f"{name}={first} must be a multiple of evaluation_every={every}")
    if first >= steps:
        raise lines.error(place, f"{name}={first} must be below the {steps} steps of a trial")
    if file.scheduler == "pbt":
        return tuple(range(first, steps, first))
    rungs = []
    while first < steps:
        rungs.append(first)
        first *= asha.reduction_factor
    return tuple(rungs)

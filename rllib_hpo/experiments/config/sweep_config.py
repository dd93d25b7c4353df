"""Read a sweep file (algorithms, variants, tasks, seeds, settings) and expand it into trials.

```yaml
sweep: my-sweep            # name of the rows' column `sweep`
description: What it is for.
algorithms: [sac, sac-hpo]
tasks: [hopper, ant]       # tasks, or any gymnasium ids
seeds: 0-4                 # or a list
settings:                  # of all trials whose algorithm has them; else Table I and the defaults hold
  evaluation_every: 5_000
variants:                  # instead of one variant called default
  k-1: {settings: {leapfrog_steps: 1}, algorithms: [sac-hpo]}
overrides:                 # of the trials they name; later ones win
  - {task: ant, algorithm: sac-hpo, settings: {step_size: 0.05}}
```

Settings are those of `rllib-hpo settings`, and steps, api_stack, env_config, num_env_runners,
num_envs_per_env_runner, rollout_fragment_length, max_lead_steps, num_learners, num_gpus_per_learner,
limit_gpu_memory, evaluation_num_env_runners and keep_policies_every.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rllib_hpo.algorithms.registry import find_settings
from rllib_hpo.documents import reading
from rllib_hpo.errors import SettingsError, nearest, shown
from rllib_hpo.experiments.config.model_file import FileModel, ModelLines
from rllib_hpo.experiments.config.run_config import RunConfig, RunSettings, resolve
from rllib_hpo.tasks import find_task

Settings = dict[str, Any]
DEFAULT_VARIANT = "default"
MAX_TRIALS = 10_000
MAX_NAME = 200
"""Greatest length in bytes of a trial's name, which also names files and folders."""
AXIS_SETTINGS = ("algorithm", "task", "seed")
"""Settings that the axes of a sweep determine."""


class Variant(FileModel):
    """A named set of settings."""

    settings: Settings = Field(default_factory=dict)
    """Settings of its trials."""
    algorithms: list[str] | None = None
    """Algorithms that it applies to; None for all."""


class Override(FileModel):
    """Settings for some of the trials."""

    settings: Settings
    """Settings of the trials that it applies to."""
    algorithm: str | None = None
    """Algorithm of these trials; None for any."""
    task: str | None = None
    """Task of these trials; None for any."""
    variant: str | None = None
    """Variant of these trials; None for any."""

    def applies(self, algorithm: str, variant: str, task: str) -> bool:
        """Whether it applies to a trial."""
        return all(
            own is None or own == other
            for own, other in ((self.algorithm, algorithm), (self.variant, variant), (self.task, task))
        )


class SweepFile(FileModel):
    """The keys of a sweep file."""

    sweep: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Name of the sweep, and of the column of its rows."""
    description: str = ""
    """What it is for."""
    algorithms: Annotated[list[str], Field(min_length=1)]
    """Names of algorithms."""
    tasks: Annotated[list[str], Field(min_length=1)]
    """Names of tasks, or any gymnasium ids."""
    seeds: list[int] | str | int
    """Seeds: a list, a range such as `0-4`, or one number."""
    settings: Settings = Field(default_factory=dict)
    """Settings of all trials whose algorithm has them."""
    variants: dict[str, Variant] = Field(default_factory=lambda: {DEFAULT_VARIANT: Variant()})
    """Named sets of settings; by default one without any, `default`."""
    overrides: list[Override] = Field(default_factory=list)
    """Settings of some of the trials; later ones win."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    sweep: str
    variant: str
    config: RunConfig

    @property
    def name(self) -> str:
        """Name of its directory, the same in every expansion of the file."""
        run = self.config.run
        variant = "" if self.variant == DEFAULT_VARIANT else f"-{self.variant}"
        return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{run.algorithm}{variant}-{run.task}-seed{run.seed}")


@dataclass(frozen=True)
class Sweep:
    """An expanded sweep file."""

    name: str
    description: str
    trials: tuple[Trial, ...]

    @property
    def configs(self) -> dict[str, RunConfig]:
        """Configurations by the trials' names."""
        return {trial.name: trial.config for trial in self.trials}

    def only(self, **wanted: str) -> Sweep:
        """The trials of one algorithm, task or variant.

        Raises:
            SettingsError: If a word is none of those, or no trial is left.
        """
        trials = self.trials
        for key, value in wanted.items():
            if key not in {"algorithm", "task", "variant"}:
                raise SettingsError(f"--only {key}={value}: '{key}' must be algorithm, task or variant.")
            values = {_of(trial, key) for trial in self.trials}
            if value not in values:
                close = nearest(value, values)
                hint = f" Did you mean '{close}'?" if close else ""
                raise SettingsError(
                    f"--only {key}={value}: the sweep has no such {key}.{hint} It has {', '.join(sorted(values))}."
                )
            trials = tuple(trial for trial in trials if _of(trial, key) == value)
        if not trials:
            raise SettingsError("No trial of the sweep matches every --only.")
        return Sweep(self.name, self.description, trials)

    def without(self, names: Iterable[str]) -> Sweep:
        """The sweep without some trials; it may be empty."""
        left_out = set(names)
        trials = tuple(trial for trial in self.trials if trial.name not in left_out)
        return Sweep(self.name, self.description, trials)


def _of(trial: Trial, key: str) -> str:
    return trial.variant if key == "variant" else str(getattr(trial.config.run, key))


def read_sweep(path: Path, seeds: str | None = None, changes: Mapping[str, Any] | None = None) -> Sweep:
    """Read a sweep file, and validate every trial.

    Args:
        path: YAML.
        seeds: Instead of the file's, as "0-4" or "0,3".
        changes: Settings of all trials that go before the file's.

    Raises:
        UserError: Naming file, line, key, value, what is allowed and the nearest valid name.
    """
    with reading(f"The sweep file {path}"):
        lines = ModelLines(path, "sweep file", {"variants": Variant, "overrides": Override})
        given = lines.parsed(SweepFile)
        _check_names(given, lines)
        parsed_seeds = parse_seeds(seeds, "--seeds") if seeds is not None else _seeds_of_file(given, lines)
        cells = list(itertools.islice(_grid(given, parsed_seeds), MAX_TRIALS + 1))
        if len(cells) > MAX_TRIALS:
            raise lines.error(
                ("seeds",), f"the sweep has more than {MAX_TRIALS:,} trials; split it into several sweeps"
            )
        trials = tuple(
            _trial(given, lines, algorithm, variant, task, seed, changes or {})
            for algorithm, variant, task, seed in cells
        )
        if not trials:
            raise lines.error(("variants",), "no variant belongs to any of the sweep's algorithms")
        _check_trial_names(trials, lines)
    return Sweep(given.sweep, given.description, trials)


def _check_trial_names(trials: Sequence[Trial], lines: ModelLines) -> None:
    """Check that every trial's name is a valid name of a folder."""
    seen: set[str] = set()
    for trial in trials:
        place = ("variants", trial.variant) if trial.variant != DEFAULT_VARIANT else ("tasks",)
        if trial.name in seen:
            raise lines.error(place, f"two trials would be called {shown(trial.name)}; list each only once")
        if len(trial.name.encode()) > MAX_NAME:
            raise lines.error(
                place, f"the name {shown(trial.name)} of a trial is longer than {MAX_NAME} bytes"
            )
        seen.add(trial.name)


def _grid(given: SweepFile, seeds: Sequence[int]) -> Iterator[tuple[str, str, str, int]]:
    """Algorithm, variant, task and seed of every trial; seeds vary slowest, so that one seed of each comes first."""
    for seed, task, algorithm, name in itertools.product(
        seeds, given.tasks, given.algorithms, given.variants
    ):
        among = given.variants[name].algorithms
        if among is None or algorithm in among:
            yield algorithm, name, task, seed


def _trial(
    given: SweepFile,
    lines: ModelLines,
    algorithm: str,
    variant: str,
    task: str,
    seed: int,
    changes: Mapping[str, Any],
) -> Trial:
    layers: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = [
        (("settings",), given.settings),
        (("variants", variant, "settings"), given.variants[variant].settings),
    ]
    for i, override in enumerate(given.overrides):
        if override.applies(algorithm, variant, task):
            layers.append((("overrides", i, "settings"), override.settings))
    valid = {*RunSettings.model_fields, *find_settings(algorithm).model_fields}
    values: dict[str, Any] = {}
    where: dict[str, tuple[Any, ...]] = {}
    for place, layer in layers:
        for name, value in layer.items():
            if name in valid:
                values[name], where[name] = value, (*place, name)
    values |= {name: value for name, value in changes.items() if name in valid}
    axes = {"algorithm": algorithm, "task": task, "seed": seed}
    try:
        return Trial(given.sweep, variant, resolve({**values, **axes}))
    except SettingsError as error:
        named = re.match(r"\w+", str(error))
        place = where.get(named.group() if named else "", ())
        raise (lines.error(place, str(error)) if place else error) from None


def _check_names(given: SweepFile, lines: ModelLines) -> None:
    """Check that all named algorithms, tasks, variants and settings exist."""
    for i, algorithm in enumerate(given.algorithms):
        lines.located(("algorithms", i), find_settings, algorithm)
    for i, task in enumerate(given.tasks):
        lines.located(("tasks", i), find_task, task)
    _check_settings(given.settings, given.algorithms, ("settings",), lines)
    for name, variant in given.variants.items():
        among = variant.algorithms or given.algorithms
        for i, algorithm in enumerate(variant.algorithms or ()):
            lines.among(("variants", name, "algorithms", i), algorithm, given.algorithms, "algorithm")
        _check_settings(variant.settings, among, ("variants", name, "settings"), lines)
    for i, override in enumerate(given.overrides):
        for key, names in (
            ("algorithm", given.algorithms),
            ("task", given.tasks),
            ("variant", list(given.variants)),
        ):
            if (value := getattr(override, key)) is not None:
                lines.among(("overrides", i, key), value, names, key)
        among = [override.algorithm] if override.algorithm else given.algorithms
        _check_settings(override.settings, among, ("overrides", i, "settings"), lines)


def _check_settings(
    settings: Settings, algorithms: Sequence[str], place: tuple[Any, ...], lines: ModelLines
) -> None:
    """Check that each is a setting of at least one of the algorithms, and not an axis of the sweep."""
    valid = set(RunSettings.model_fields).difference(AXIS_SETTINGS)
    for algorithm in algorithms:
        valid |= set(find_settings(algorithm).model_fields)
    for name in settings:
        if name in AXIS_SETTINGS:
            raise lines.error((*place, name), f"'{name}' is an axis of the sweep, not a setting")
        if name not in valid:
            close = nearest(name, valid)
            hint = f". Did you mean '{close}'?" if close else ""
            raise lines.error((*place, name), f"'{name}' is not a setting of {', '.join(algorithms)}{hint}")


def parse_seeds(text: str, source: str) -> list[int]:
    """Seeds from "0-4", "3" or "0,2,5-7".

    Raises:
        SettingsError: If it is something else.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,10})(?:\s*-\s*([0-9]{1,10}))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise SettingsError(
                f"{source} {shown(text)} must be numbers and ranges, for example 0-4 or 0,2,5-7."
            )
        seeds.extend(range(int(match[1]), int(match[2] or match[1]) + 1)[: MAX_TRIALS + 1])
        if len(seeds) > MAX_TRIALS:
            raise SettingsError(f"{source} {shown(text)} are more than {MAX_TRIALS:,} seeds.")
    return sorted(set(seeds))


def _seeds_of_file(given: SweepFile, lines: ModelLines) -> list[int]:
    seeds = given.seeds
    if isinstance(seeds, list):
        if not seeds or min(seeds) < 0:
            raise lines.error(("seeds",), f"seeds {shown(seeds)} must be one or more integers of at least 0")
        return sorted(set(seeds))
    try:
        return parse_seeds(str(seeds), "seeds")
    except SettingsError as error:
        raise lines.error(("seeds",), str(error)) from None

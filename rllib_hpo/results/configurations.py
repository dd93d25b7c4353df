"""Find the rows that are seeds of one configuration, and tell searches from sets of seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from rllib_hpo.algorithms.registry import complete_config
from rllib_hpo.results.schema import canonical_json

SEARCH_VARIANT = "search"
"""The variant of rows whose trials search for settings."""
MOST_LINES = 6
"""Number of configurations from which trials with few repetitions count as a search."""

WITHOUT_EFFECT = frozenset(
    """
    algorithm task env seed steps checkpoint_every steps_per_iteration diagnostics_interval num_torch_threads
    cuda_graph compile_update limit_gpu_memory
    """.split()
)
"""Settings in which the rows of one line may differ, since they do not affect what is learned."""

_RUN_DEFAULTS: Mapping[str, Any] = {
    "api_stack": "new",
    "env_config": {},
    "num_env_runners": 0,
    "num_envs_per_env_runner": 1,
    "rollout_fragment_length": "auto",
    "num_learners": 0,
    "max_lead_steps": "auto",
}


class CellKey(NamedTuple):
    """The rows that a mean over seeds includes: one algorithm and variant on one task of a sweep."""

    sweep: str
    task: str
    env_id: str
    algorithm: str
    variant: str


@dataclass(frozen=True)
class Cell:
    """The configurations of a cell's rows."""

    differing: tuple[str, ...]
    """Settings that are not the same in all rows, in alphabetical order; none for a set of seeds."""
    lines: Mapping[str, str]
    """Name of each configuration's line by hash, as "step_size=0.05"; "" if there is one line."""
    changing: Mapping[str, tuple[str, ...]]
    """Settings that change during a run, by trial, as population-based training changes them."""
    num_trials: int
    is_search: bool

    @property
    def refusal(self) -> str:
        """The reason why these rows have no mean over seeds; "" if they have one."""
        if not self.is_search:
            return ""
        names = ", ".join(self.differing)
        if self.changing:
            some = f"{len(self.changing)} of {self.num_trials} trials change"
            return f"a search, not seeds of one configuration: {some} {names} during the run"
        return f"a search, not seeds of one configuration: its {self.num_trials} trials differ in {names}"


def filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A row's configuration with the defaults of settings that did not exist yet when it was written."""
    return {**_RUN_DEFAULTS, **complete_config(config)}


def cells_in(table: pa.Table) -> dict[CellKey, Cell]:
    """Cells of a table of `read_rows`, with the differences of their configurations."""
    kinds = [*CellKey._fields, "trial_id", "config_hash"]
    distinct = table.select([*kinds, "config_json"]).group_by(kinds).aggregate([("config_json", "min")])
    configs: dict[str, dict[str, Any]] = {}
    trials: dict[CellKey, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in distinct.to_pylist():
        hash_ = row["config_hash"]
        if hash_ not in configs:
            configs[hash_] = _compared(json.loads(row["config_json_min"]))
        key = CellKey(*(row[name] for name in CellKey._fields))
        trials[key][row["trial_id"]].add(hash_)
    return {key: _cell(key, by_trial, configs) for key, by_trial in trials.items()}


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that must be equal for two trials to be seeds of one configuration."""
    return {name: value for name, value in filled(config).items() if name not in WITHOUT_EFFECT}


def _cell(key: CellKey, trials: Mapping[str, set[str]], configs: Mapping[str, Mapping[str, Any]]) -> Cell:
    own = {hash_: configs[hash_] for hashes in trials.values() for hash_ in hashes}
    differing = _differing(list(own.values()))
    lines = _lines(own, differing)
    changing = {
        trial: names
        for trial, hashes in sorted(trials.items())
        if len(hashes) > 1 and (names := _differing([own[hash_] for hash_ in hashes]))
    }
    num_lines = len(set(lines.values()))
    hardly_repeats = num_lines > MOST_LINES and len(trials) < 2 * num_lines
    is_search = bool(changing) or hardly_repeats or (key.variant == SEARCH_VARIANT and num_lines > 1)
    return Cell(differing, lines, changing, len(trials), is_search)


def _differing(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Settings in which configurations differ; 1 and 1.0 are the same."""
    names = sorted({name for config in configs for name in config})
    first = configs[0]
    return tuple(name for name in names if any(config.get(name) != first.get(name) for config in configs))


def _lines(configs: Mapping[str, Mapping[str, Any]], differing: Sequence[str]) -> dict[str, str]:
    """Names of configurations, from the settings in which they differ."""
    shown = {name: shown_values(config.get(name) for config in configs.values()) for name in differing}
    return {
        hash_: ", ".join(f"{name}={shown[name][exactly(config.get(name))]}" for name in differing)
        for hash_, config in configs.items()
    }


def exactly(value: Any) -> str:
    """A value as JSON, the same for 1 and 1.0."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return canonical_json({"": float(value) if is_number else value})[4:-1]


def shown_values(values: Iterable[Any]) -> dict[str, str]:
    """Values for display, by `exactly`: four digits, or all if four do not distinguish them."""
    by_exact = {exactly(value): value for value in values}
    short = {exact: _short(value) for exact, value in by_exact.items()}
    return short if len(set(short.values())) == len(short) else {exact: exact for exact in by_exact}


def _short(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

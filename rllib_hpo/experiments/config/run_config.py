"""Resolve the configuration of a training run, with the origin of each value, and read and write its file.

A value is, from weakest to strongest, the algorithm's default, the task's (Table I), a file's or a
flag's. The resolved configuration is one flat mapping; written as YAML it can be handed to `--config`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rllib_hpo.algorithms.footprint import refuse_replay, refuse_too_large
from rllib_hpo.algorithms.registry import find_settings, make_method
from rllib_hpo.documents import parse_json, read_mapping, read_text, reading
from rllib_hpo.errors import SettingsError, UserError, nearest, shown
from rllib_hpo.results import read_rows, write_atomically
from rllib_hpo.results.paths import absolute
from rllib_hpo.settings import (
    COMPILED_FROM_STEPS,
    EARLIER_BEHAVIOUR,
    PositiveInt,
    Settings,
    check_learners,
    parse_settings,
)
from rllib_hpo.tasks import Task, find_task, import_modules
from rllib_hpo.tasks.environments import check_env_config
from rllib_hpo.tasks.wrappers import unheld_wrappers

IMPORTS = "imports"
"""The key of a configuration file that lists the modules of --import."""

Origin = Literal["default", "task", "file", "flag"]
MAX_WORKERS = 100_000
NumWorkers = Annotated[int, Field(ge=0, le=MAX_WORKERS)]


class RunSettings(BaseModel):
    """Settings of a run besides the algorithm's hyperparameters."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    algorithm: str = "sac-hpo"
    """Name of an algorithm."""
    task: str = "hopper"
    """Name of a task, or any gymnasium id."""
    api_stack: Literal["new", "old"] = "new"
    """API stack of RLlib: RLModule, Learner and EnvRunner, or Policy and RolloutWorker."""
    env_config: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the environment, besides `wrappers`, a list, and `max_episode_steps`."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random: weights, actions, batches, environments, evaluations."""
    steps: PositiveInt = 1_000_000
    """Environment steps in all; by default the task's."""
    num_env_runners: NumWorkers = 0
    """Remote runners, each on a CPU; 0 samples in the process that trains."""
    num_envs_per_env_runner: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = 1
    """Environments that each runner steps."""
    rollout_fragment_length: Annotated[int, Field(ge=1, lt=2**31)] | Literal["auto"] = "auto"
    """Steps of each environment that a remote runner takes for one request."""
    max_lead_steps: Annotated[int, Field(ge=0, lt=2**53)] | Literal["auto"] = "auto"
    """Steps by which sampling may lead learning; `auto` is four fragments of every runner, 0 takes turns."""
    num_learners: NumWorkers = 0
    """Remote learners, which average gradients; 0 learns in the process that trains."""
    num_gpus_per_learner: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPUs of each learner; a fraction shares one."""
    limit_gpu_memory: bool = True
    """Whether a trial with a fraction of a GPU may take only that fraction of its memory."""
    evaluation_num_env_runners: NumWorkers = 0
    """Remote runners that evaluate beside training; 0 evaluates in the process that trains."""
    initialize_from: str | None = None
    """A run directory or checkpoint whose networks the run begins with; `{algorithm}`, `{task}` and `{seed}` in it are
    those of this run."""
    keep_policies_every: Annotated[int, Field(ge=0, lt=2**53)] = 0
    """Environment steps between the policy files that a run keeps (`policies/`); 0 keeps none."""


@dataclass(frozen=True)
class RunConfig:
    """A resolved configuration.

    Attributes:
        run: Algorithm, task, seed, steps and workers.
        settings: The hyperparameters.
        origins: Where each value comes from, by name.
        imports: Modules that register what the run uses. They decide no number, so rows do not hold them.
    """

    run: RunSettings
    settings: Settings
    origins: Mapping[str, Origin]
    imports: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """The task, with its environment."""
        return find_task(self.run.task)

    def values(self) -> dict[str, Any]:
        """All values in one flat mapping, in the order of the documentation."""
        return {**self.run.model_dump(), **self.settings.model_dump()}

    def nothing_learned(self) -> str | None:
        """A sentence that says why the run makes no update; None if it makes some."""
        return nothing_learned(self.run.steps, self.settings)

    def notices(self) -> list[str]:
        """Sentences that a user should read before the run starts, though nothing is wrong."""
        return [*filter(None, [self.nothing_learned()]), *self.settings.notices()]

    def to_yaml(self) -> str:
        """YAML for `--config`, with the origin of each value."""
        lines = [f"{IMPORTS}: {json.dumps(self.imports)}"] if self.imports else []
        lines += [
            f"{name}: {_inline(value)}  # {self.origins[name]}" for name, value in self.values().items()
        ]
        return "\n".join(lines) + "\n"

    def importing(self, modules: Iterable[str]) -> RunConfig:
        """The same configuration with more modules to import."""
        return replace(self, imports=_union(self.imports, modules))

    def compiled_like(self, earlier: RunConfig) -> RunConfig:
        """The same configuration, with what 'compile_update: auto' meant when the run began."""
        if self.origins["compile_update"] != "default":
            return self
        return replace(self, settings=_compiling(self.settings, earlier.settings.compile_update))

    def save(self, path: Path) -> None:
        """Write the YAML atomically."""
        write_atomically(path, self.to_yaml().encode())


def nothing_learned(steps: int, settings: Settings) -> str | None:
    """A sentence that says why a run of `steps` environment steps makes no update; None if it makes some."""
    warmup, rate = settings.warmup_steps, settings.update_to_data
    if (steps - warmup) * rate >= 1:
        return None
    if steps > warmup:
        reason, remedy = f"update_to_data={rate:g}", "increase update_to_data or the number of steps"
    else:
        reason, remedy = (
            f"warmup_steps={warmup:,}",
            f"give more than {warmup:,} steps, or set fewer warmup_steps",
        )
    return f"Nothing will be learned: {reason} allows no update within {steps:,} steps; {remedy}."


def resolve(flags: Mapping[str, Any], file: Path | None = None) -> RunConfig:
    """Resolve a configuration from flags, a file, the task and the defaults.

    Args:
        flags: Values by name; None means not given. `imports` lists modules, which are imported first.
        file: YAML or JSON, or one row of results (Parquet), whose configuration is repeated.

    Raises:
        UserError: Naming the key (and file), its value, what is allowed and the nearest valid name.
    """
    config = _resolve_any(flags, file)
    config.settings.refuse_idle()
    return config


def _resolve_any(flags: Mapping[str, Any], file: Path | None) -> RunConfig:
    """Resolve a configuration, accepting settings without effect, as earlier versions did."""
    with reading("The configuration" if file is None else f"The configuration file {file}"):
        return _resolve({name: value for name, value in flags.items() if value is not None}, file)


def _resolve(given: dict[str, Any], file: Path | None) -> RunConfig:
    from_file = read_config_file(file) if file is not None else {}
    stored = _parse_imports(from_file.pop(IMPORTS, ()), str(file))
    import_modules(stored, str(file))
    imports = _union(stored, _parse_imports(given.pop(IMPORTS, ()), "--import"))
    import_modules(imports)
    named = {**from_file, **given}
    algorithm = str(named.get("algorithm", RunSettings.model_fields["algorithm"].default))
    model = find_settings(algorithm)
    task = find_task(str(named.get("task", RunSettings.model_fields["task"].default)))
    from_task = {"steps": task.steps, **task.settings_for(algorithm)}

    for source, values in ((str(file), from_file), ("", given)):
        _check_known(values, model, source)
    merged = {**from_task, **named}
    run = _parse_run({name: value for name, value in merged.items() if name in RunSettings.model_fields})
    check_env_config(run.env_config)
    run = _with_origin(run)
    settings = parse_settings(model, {name: v for name, v in merged.items() if name in model.model_fields})
    if settings.compile_update == "auto":  # the run keeps what this means now, also if it gets more steps
        is_long = run.steps >= COMPILED_FROM_STEPS
        settings = _compiling(settings, is_long and not run.num_gpus_per_learner)
    check_learners(run.num_learners, run.num_gpus_per_learner, settings)
    _check_kept_policies(run, settings)
    # With the smallest spaces there are; what is true of the environment's own is checked where it is made.
    method = make_method(settings)
    refuse_too_large(method.learner_parts(1, 1))
    refuse_replay(settings, method.layout(1, 1).num_bytes, run.steps)
    layers: tuple[tuple[Origin, Mapping[str, Any]], ...] = (
        ("flag", given),
        ("file", from_file),
        ("task", from_task),
    )
    names = [*RunSettings.model_fields, *model.model_fields]
    origins = {n: next((origin for origin, layer in layers if n in layer), "default") for n in names}
    return RunConfig(run, settings, origins, imports)  # type: ignore[arg-type]


def resolve_saved(file: Path, changes: Mapping[str, Any]) -> RunConfig:
    """Read a configuration that `RunConfig.save` wrote, with origins, and change values by flags.

    Raises:
        UserError: As `resolve`.
    """
    config = _resolve_any(changes, file)
    text = read_text(file, "configuration file")
    found = dict(re.findall(r"^(\w+):.*  # (default|task|file|flag)$", text, flags=re.MULTILINE))
    origins = {
        name: config.origins[name] if name in changes else found.get(name, config.origins[name])
        for name in config.origins
    }
    unknown = {
        name: EARLIER_BEHAVIOUR[name] for name in EARLIER_BEHAVIOUR.keys() - found.keys() - changes.keys()
    }
    return replace(config, origins=origins, settings=config.settings.model_copy(update=unknown))


def read_config_file(path: Path) -> dict[str, Any]:
    """Read the values of a YAML or JSON file, or the configuration stored with a row of results.

    A row also says how far the run had got, so repeating it ends at the same step.

    Raises:
        UserError: If the file cannot be read or holds no mapping.
    """
    return _config_of_row(path) if path.suffix == ".parquet" else read_mapping(path, "configuration file")


def _config_of_row(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"The file {path} does not exist.")
    rows = read_rows(path).select(["config_json", "env_steps"]).to_pylist()
    if len({row["config_json"] for row in rows}) != 1:
        raise UserError(
            f"{path} holds {len(rows)} rows of several configurations; give the file of a single row."
        )
    stored = parse_json(rows[0]["config_json"], f"The configuration in {path}")
    values = {"steps": max(1, *(row["env_steps"] for row in rows)), **stored}
    values.pop("env", None)  # it follows from the task
    values.pop("initialize_digest", None)  # it follows from the origin
    return {**EARLIER_BEHAVIOUR, **values}


def _check_known(values: Mapping[str, Any], model: type[Settings], source: str) -> None:
    valid = [*RunSettings.model_fields, *model.model_fields]
    for name in values:
        if name not in valid:
            close = nearest(name, valid)
            hint = f" Did you mean '{close}'?" if close else f" Valid: {', '.join(sorted(valid))}."
            where = f"{source}: " if source else ""
            raise SettingsError(
                f"{where}'{name}' is not a setting of {model.__name__.removesuffix('Settings')}.{hint}"
            )


def _parse_imports(value: Any, source: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) and name for name in value):
        raise SettingsError(f"{source}: {IMPORTS}={value!r} must be a list of module names.")
    return tuple(value)


def _union(modules: Iterable[str], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*modules, *more]))


def _compiling(settings: Settings, compile_update: bool | str) -> Settings:
    return settings.model_copy(update={"compile_update": compile_update})


def _with_origin(run: RunSettings) -> RunSettings:
    """The run with the path of its origin as it is, absolute."""
    if run.initialize_from is None:
        return run
    path = run.initialize_from
    for name in ("algorithm", "task", "seed"):
        path = path.replace(f"{{{name}}}", str(getattr(run, name)))
    return run.model_copy(update={"initialize_from": str(absolute(path))})


def _check_kept_policies(run: RunSettings, settings: Settings) -> None:
    """Check that policies can be kept: they are written between iterations, without state of wrappers."""
    every = run.keep_policies_every
    if every == 0:
        return
    if every % settings.steps_per_iteration and every % settings.checkpoint_every:
        raise SettingsError(
            f"keep_policies_every={every} must be a multiple of steps_per_iteration={settings.steps_per_iteration} "
            f"or of checkpoint_every={settings.checkpoint_every}."
        )
    if unheld := unheld_wrappers(run.env_config):
        raise SettingsError(
            f"keep_policies_every={every} cannot keep policies that act on what the wrapper '{unheld[0]}' gathered "
            "in training; leave one of the two out."
        )


def _parse_run(values: Mapping[str, Any]) -> RunSettings:
    try:
        return RunSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        reason = first["msg"].removeprefix("Input should be ")
        raise SettingsError(f"{name}={shown(values[name])} must be {reason}.") from None


def _inline(value: Any) -> str:
    """A value on one line of YAML: JSON, except for numbers such as 1e-05, which need a point in YAML."""
    text = json.dumps(value).replace("\x7f", "\\u007f")  # which JSON allows and YAML does not
    return (
        text.replace("e", ".0e", 1) if isinstance(value, float) and "e" in text and "." not in text else text
    )

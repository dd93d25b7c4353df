"""The directory of a run: made for a new run, opened for a resume, and the RLlib config that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rllib_hpo.errors import CheckpointError, SettingsError, UserError
from rllib_hpo.experiments.config.run_config import RunConfig, resolve_saved
from rllib_hpo.experiments.storage.checkpoints import CheckpointStore
from rllib_hpo.experiments.storage.folder import remove_paths
from rllib_hpo.results.paths import absolute
from rllib_hpo.rllib.algorithms import make_config
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.rllib.environment import probe_environment

CONFIG_FILE = "config.yaml"
SINGLE_RUNS = "single"
"""Column `sweep` of runs without a sweep, so that their seeds are pooled."""


@dataclass(frozen=True)
class RunFiles:
    """Paths of a run's files."""

    directory: Path
    shared_results: Path | None = None
    """Directory of rows shared with other runs, as in a sweep."""
    is_new: bool = False
    """Whether the directory was just made for a new run."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", absolute(self.directory))

    @property
    def config(self) -> Path:
        """The resolved configuration, with the origin of every value."""
        return self.directory / CONFIG_FILE

    @property
    def results(self) -> Path:
        """Parquet, one row per evaluation."""
        return self.shared_results or self.directory / "results"

    @property
    def curve(self) -> Path:
        """The learning curve."""
        return self.directory / "curve.png"


def start_run(config: RunConfig, out: Path) -> RunFiles:
    """Make the directory of a new run, and store its configuration.

    Raises:
        UserError: If the directory already holds something, or the environment cannot be used; nothing is made then.
    """
    # Hidden files do not count: a run killed in its very first moment leaves one.
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise UserError(f"{out} already exists; resume it with `--resume {out}`, or choose another --out.")
    files = RunFiles(out, is_new=True)
    rllib_config = to_rllib(config, files)
    rllib_config.validate()
    probe_environment(rllib_config)
    config.save(files.config)
    return files


def remove_new_run(directory: Path) -> None:
    """Remove the files of `start_run` and of a run that never began, but no earlier hidden files."""
    remove_paths(
        path for path in directory.glob("*") if not path.name.startswith(".") or path.name == ".lock"
    )
    with suppress(OSError):
        directory.rmdir()


def open_run(
    directory: Path, steps: int | None, changed: Mapping[str, Any], imports: Sequence[str] = ()
) -> tuple[RunConfig, RunFiles]:
    """The configuration of a run to resume, with more steps and modules to import if asked for.

    Raises:
        UserError: If the directory is not a run, or settings other than `steps` would change.
    """
    files = RunFiles(directory)
    if not files.config.is_file():
        raise CheckpointError(f"{directory} is not a run directory: it has no {CONFIG_FILE}.")
    config = resolve_saved(files.config, {})
    for name, value in changed.items():
        if value is not None and value != config.values().get(name):
            raise SettingsError(
                f"A resumed run keeps its settings: {name} is {config.values().get(name)!r}, not {value!r}. "
                "Start a new run to change it."
            )
    if steps is not None and steps != config.run.steps:
        if steps < config.run.steps:
            raise SettingsError(
                f"--steps {steps} is less than the {config.run.steps} steps of this run; a resume can only "
                "extend it."
            )
        config = resolve_saved(files.config, {"steps": steps})
        config.importing(imports).save(files.config)
    return config.importing(imports), files


def to_rllib(
    config: RunConfig, files: RunFiles, sweep: str = SINGLE_RUNS, variant: str = ""
) -> ActorCriticConfig:
    """The RLlib config of a run, whose rows say that it belongs to `sweep`."""
    run, task = config.run, config.task
    is_new = run.api_stack == "new"
    gpus = {"num_gpus_per_learner": run.num_gpus_per_learner} if is_new else {}
    made = make_config(run.algorithm)
    made._accepts_idle_settings = True  # `resolve` has refused what is refused of a new run
    return (
        made.api_stack(enable_rl_module_and_learner=is_new, enable_env_runner_and_connector_v2=is_new)
        .environment(task.env_id, env_config=run.env_config, imports=config.imports)
        .training(**config.settings.model_dump())
        .env_runners(
            num_env_runners=run.num_env_runners,
            num_envs_per_env_runner=run.num_envs_per_env_runner,
            rollout_fragment_length=run.rollout_fragment_length,
            max_lead_steps=run.max_lead_steps,
        )
        .evaluation(evaluation_num_env_runners=run.evaluation_num_env_runners)
        .learners(num_learners=run.num_learners, limit_gpu_memory=run.limit_gpu_memory, **gpus)
        .resources(num_gpus=0 if is_new else run.num_gpus_per_learner)
        .debugging(seed=run.seed, log_level="ERROR")
        .results(results_dir=str(files.results), sweep=sweep, variant=variant, task=task.name)
        .checkpointing(
            replay_dir=str(CheckpointStore(files.directory).replay_dir), initialize_from=run.initialize_from
        )
    )

"""One training run in one directory: build, train, evaluate, log, checkpoint, stop, resume."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray

from rllib_hpo.errors import CheckpointError, SettingsError, UserError
from rllib_hpo.experiments.checkpoints import CheckpointStore
from rllib_hpo.experiments.progress import Progress
from rllib_hpo.experiments.run_config import RunConfig, resolve_saved
from rllib_hpo.experiments.wandb_logger import Mode, WandbRun
from rllib_hpo.results import trial_id
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.config import ActorCriticConfig, make_config

CONFIG_FILE = "config.yaml"
SINGLE_RUNS = "single"
"""What rows of runs that belong to no sweep have in the column `sweep`, so that seeds are pooled."""


@dataclass(frozen=True)
class RunFiles:
    """What a run leaves behind in its directory."""

    directory: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, with the origin of every value."""
        return self.directory / CONFIG_FILE

    @property
    def results(self) -> Path:
        """Parquet, one row per evaluation."""
        return self.directory / "results"

    @property
    def curve(self) -> Path:
        """The learning curve."""
        return self.directory / "curve.png"


class StopRequest:
    """Whether the user asked to stop: the first signal ends the run after the iteration, the second at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signal `number`."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


def start_run(config: RunConfig, out: Path) -> RunFiles:
    """Makes the directory of a new run and stores its configuration there.

    Raises:
        UserError: If the directory already holds something.
    """
    # Hidden files do not count: a run killed in its very first moment leaves one.
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise UserError(f"{out} already exists; go on with `--resume {out}`, or choose another --out.")
    files = RunFiles(out)
    to_rllib(config, files).validate()
    config.save(files.config)
    return files


def open_run(directory: Path, steps: int | None, changed: Mapping[str, Any]) -> tuple[RunConfig, RunFiles]:
    """The configuration of a run to resume, with more steps if asked for.

    Raises:
        UserError: If the directory is not a run, or settings other than `steps` would change.
    """
    files = RunFiles(directory)
    if not files.config.is_file():
        raise CheckpointError(f"{directory} is not the directory of a run: it has no {CONFIG_FILE}.")
    config = resolve_saved(files.config, {})
    for name, value in changed.items():
        if value is not None and value != config.values().get(name):
            raise SettingsError(
                f"A resumed run keeps its settings: {name} is {config.values().get(name)!r}, not {value!r}. "
                "Start a new run to change it."
            )
    if steps is not None and steps != config.run.steps:
        if steps < config.run.steps:
            raise SettingsError(f"--steps {steps} is less than the {config.run.steps} this run was to make.")
        config = resolve_saved(files.config, {"steps": steps})
        config.save(files.config)
    return config, files


def to_rllib(config: RunConfig, files: RunFiles) -> ActorCriticConfig:
    """The RLlib config of a run."""
    run, task = config.run, config.task
    is_new = run.api_stack == "new"
    gpus = {"num_gpus_per_learner": run.num_gpus_per_learner} if is_new else {}
    return (
        make_config(run.algorithm)
        .api_stack(enable_rl_module_and_learner=is_new, enable_env_runner_and_connector_v2=is_new)
        .environment(task.env_id, env_config=run.env_config)
        .training(**config.settings.model_dump())
        .env_runners(
            num_env_runners=run.num_env_runners,
            num_envs_per_env_runner=run.num_envs_per_env_runner,
            rollout_fragment_length=run.rollout_fragment_length,
        )
        .learners(num_learners=run.num_learners, **gpus)
        .resources(num_gpus=0 if is_new else run.num_gpus_per_learner)
        .debugging(seed=run.seed, log_level="ERROR")
        .results(results_dir=str(files.results), sweep=SINGLE_RUNS, task=task.name)
        .checkpointing(replay_dir=str(CheckpointStore(files.directory).replay_dir))
    )


def train(
    config: RunConfig,
    files: RunFiles,
    progress: Progress,
    *,
    keep_checkpoints: int = 2,
    wandb_mode: Mode = "offline",
) -> int | None:
    """Trains until `steps`, from the newest intact checkpoint if there is one.

    Returns:
        The number of the signal that stopped the run early, or None when it is complete.

    Raises:
        UserError: A failure the user can mend; the last checkpoint and all rows are on disk.
    """
    identity = trial_id(files.directory)
    rllib_config = to_rllib(config, files).results(trial_id=identity)
    store = CheckpointStore(files.directory, keep_checkpoints)
    with (
        _local_ray(config),
        _built(rllib_config) as algorithm,
        WandbRun(
            files.directory,
            wandb_mode,
            name=f"{config.run.algorithm}-{config.run.task}-{config.run.seed}",
            group=files.directory.name,
            config=config.values(),
            run_id=identity,
        ) as wandb_run,
    ):
        store.restore_newest(algorithm)
        algorithm.max_env_steps = config.run.steps
        with _stop_request() as stop, progress.running(algorithm, config.run.steps):
            _train_loop(algorithm, config.run.steps, store, wandb_run, progress, stop)
    return stop.signal


def _train_loop(
    algorithm: ActorCriticAlgorithm,
    steps: int,
    store: CheckpointStore,
    wandb_run: WandbRun,
    progress: Progress,
    stop: StopRequest,
) -> None:
    while algorithm.env_steps < steps and stop.signal is None:
        result = algorithm.train()
        wandb_run.log(flat_metrics(result), env_steps=algorithm.env_steps)
        progress.report(algorithm, result)
        ends = algorithm.env_steps == steps or stop.signal is not None
        scheduled = algorithm.schedule.checkpoint_due(algorithm.env_steps)
        # Off schedule only what can be saved exactly is: see ActorCriticSettings.checkpoint_every.
        if scheduled or (ends and algorithm.is_savable()):
            store.save(algorithm)


def flat_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a result of `Algorithm.train()` that people watch, as "evaluation/return_mean" and so on."""
    runners, evaluation = result["env_runners"], result["evaluation"]["env_runners"]
    metrics = {
        "train/return_mean": runners.get("episode_return_mean"),
        "train/episode_length_mean": runners.get("episode_len_mean"),
        "train/num_episodes": runners.get("num_episodes_lifetime"),
        "evaluation/return_mean": evaluation["episode_return_mean"],
        "evaluation/return_std": evaluation["episode_return_std"],
        "evaluation/episode_length_mean": evaluation["episode_len_mean"],
        "evaluation/env_steps": result["evaluation"]["env_steps"],
        **{f"learner/{name}": value for name, value in result["learners"]["default_policy"].items()},
    }
    return {name: float(value) for name, value in metrics.items() if value is not None}


@contextmanager
def _stop_request() -> Iterator[StopRequest]:
    """Turns SIGINT and SIGTERM (a spot machine being taken back) into a request to stop."""
    request = StopRequest()
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def quiet_ray() -> None:
    """Silences what Ray and RLlib log about themselves; errors are raised all the same."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)


@contextmanager
def _built(config: ActorCriticConfig) -> Iterator[ActorCriticAlgorithm]:
    algorithm: ActorCriticAlgorithm = config.build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


@contextmanager
def _local_ray(config: RunConfig) -> Iterator[None]:
    """Ray for this run: none without remote workers, else the cluster RAY_ADDRESS names, or one on this machine."""
    workers = config.run.num_env_runners + config.run.num_learners
    if workers == 0 or ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.ERROR)
    else:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, workers + 1),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    try:
        yield
    finally:
        ray.shutdown()

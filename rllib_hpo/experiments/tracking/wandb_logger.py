"""Log one run to Weights & Biases against environment steps; failures never stop the run."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from rllib_hpo.errors import StorageError, UserError

if TYPE_CHECKING:
    from rllib_hpo.experiments.config.run_config import RunConfig

Mode = Literal["offline", "online", "disabled"]

STEP_METRIC = "env_steps"
"""The x axis of all charts."""

PROJECT = "rllib-hpo"
_TAG_LENGTH = 64
"""Greatest length of a tag of W&B."""

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandbOptions:
    """Options of Weights & Biases for a run."""

    mode: Mode = "offline"
    artifacts: bool = False
    """Each checkpoint, without its replay, as a model."""
    video: bool = False
    """One noise-free episode of the policy that the run ends with."""


def group_of(sweep: str, task: str) -> str:
    """The W&B group of a sweep's runs of one task: all seeds, algorithms and variants."""
    return f"{sweep}/{task}"


def task_metric(task: str, name: str = "return_mean") -> str:
    """Name of a task's evaluation metric; each task has its own, since a panel shows all runs with a metric."""
    return f"tasks/{task}/{name}"


def describe_run(config: RunConfig, sweep: str, variant: str) -> dict[str, Any]:
    """Name, job type, tags and configuration of a run, as keyword arguments of `WandbRun`."""
    run, env_id = config.run, config.task.env_id
    variants = [] if variant in {"", "default"} else [variant]
    tags = dict.fromkeys([sweep, run.task, run.algorithm, *variants, env_id])
    return {
        "name": "-".join([run.algorithm, *variants, run.task, str(run.seed)]),
        "job_type": run.algorithm,
        "tags": [tag[:_TAG_LENGTH] for tag in tags],
        "config": {**config.values(), "sweep": sweep, "variant": variant or "default", "env_id": env_id},
    }


class WandbRun:
    """Send metrics to Weights & Biases, or write files for `wandb sync`, or do nothing.

    Offline needs no account and touches no network; all it writes is under `directory`/wandb. Disabled does not
    even import wandb. Once started, a failure of W&B is reported once and never stops the training.

    Example:
        with WandbRun(directory, "offline", name="hopper-0", config=config, run_id=trial_id) as run:
            run.log({"return_mean": 312.0}, env_steps=10_000)
    """

    def __init__(
        self,
        directory: Path,
        mode: Mode = "offline",
        *,
        project: str = PROJECT,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        """Start the run, or resume the one with this `run_id`.

        Args:
            directory: folder of the run; made where missing.
            mode: "offline", "online" (needs an account), or "disabled".
            project: W&B project.
            name: what W&B shows for the run.
            group: what W&B groups runs by, for instance a sweep.
            job_type: what W&B calls kinds of runs; the algorithm.
            tags: words to find the run by, of 64 characters at most.
            config: resolved configuration of the run, plain values.
            run_id: identity within the project; a resumed run passes the same again.

        Raises:
            StorageError: `directory` cannot be written.
            UserError: W&B could not start, for instance online without an account.
        """
        self._run: Any = None
        self._last_step = -1
        self._folder = directory / "wandb"
        if mode != "disabled":
            self._run = _start(
                directory,
                mode,
                project=project,
                name=name,
                group=group,
                job_type=job_type,
                tags=list(tags),
                config=dict(config or {}),
                id=run_id,
            )

    @property
    def is_on(self) -> bool:
        """Whether anything is recorded."""
        return self._run is not None

    def log(self, metrics: Mapping[str, Any], env_steps: int) -> None:
        """Record `metrics` (a flat mapping) at `env_steps`; late records, as of an evaluation, may come any time."""
        # W&B drops a record whose own step does not increase. Following env_steps, that step goes on where a
        # resumed run continues, and never collides within one session of the run.
        self._last_step = max(self._last_step + 1, env_steps)
        with self._reported("record metrics"):
            if self._run is not None:
                self._run.log({**metrics, STEP_METRIC: env_steps}, step=self._last_step)

    def log_model(
        self, directory: Path, files: Iterable[str], metadata: Mapping[str, Any], *, is_best: bool
    ) -> None:
        """Record `files` in a checkpoint's `directory` as the "latest" version of the run's model, or "best" too."""
        if self._run is None:
            return
        # A copy, for the checkpoint may be removed before it is uploaded; beside the run, not in the home folder.
        staging = {"WANDB_DATA_DIR": str(self._folder.resolve() / "data")}
        with self._reported("record a checkpoint"), _environment(staging):
            import wandb

            artifact = wandb.Artifact(f"model-{self._run.id}", type="model", metadata=dict(metadata))
            for name in files:
                artifact.add_file(str(directory / name), name=name, skip_cache=True)
            self._run.log_artifact(artifact, aliases=["latest", *(["best"] if is_best else [])])

    def log_video(self, film: Callable[[Path], Any], env_steps: int) -> None:
        """Record what `film` writes to the file it is given; one warning where it cannot."""
        if self._run is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "episode.mp4"
            try:
                film(path)
            except Exception as error:  # noqa: BLE001  (a machine that cannot render trains all the same)
                _LOGGER.warning("No video for Weights & Biases: %s", error)
                return
            with self._reported("record a video"):
                import wandb

                self.log({"video": wandb.Video(str(path), format="mp4")}, env_steps)

    def finish(self, exit_code: int = 0) -> None:
        """Flush and close the run, at most a minute when online; further calls do nothing."""
        with self._reported("finish the run"):
            if self._run is not None:
                self._run.finish(exit_code=exit_code)
        self._run = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(exit_code=0 if kind is None else 1)

    @contextlib.contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        """Report a failure of W&B instead of raising it, and leave W&B alone from then on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  (whatever goes wrong in W&B, training goes on)
            self._run = None
            _LOGGER.warning("Weights & Biases could not %s and is disabled from now on: %s", what, error)


def _start(directory: Path, mode: Mode, **identity: Any) -> Any:
    """`wandb.init` with silent, bounded settings; `identity` are its keyword arguments of the same names."""
    folder = directory / "wandb"
    try:
        folder.mkdir(parents=True, exist_ok=True)  # where it cannot write, wandb would go to /tmp unasked
    except OSError as error:
        raise StorageError(f"Cannot write {folder}: {error.strerror or error}.") from error
    with _environment(_quiet_variables(folder) if mode == "offline" else {}):
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",  # our progress bar stays ours
            finish_timeout=60,
            x_transaction_log_flush_interval=5,  # seconds that a kill may cost
            disable_git=True,  # every result row already names the commit
        )
        try:
            run = wandb.init(
                dir=str(directory),
                mode=mode,
                resume="allow",
                reinit="create_new",  # several seeds may train in one process
                settings=settings,
                **identity,
            )
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases could not start in mode '{mode}' ({str(error).splitlines()[0].rstrip('.')}); "
                "run `wandb login`, or use the mode 'offline', which needs no account."
            ) from error
    run.define_metric("*", step_metric=STEP_METRIC)
    return run


def _quiet_variables(folder: Path) -> dict[str, str]:
    """Variables, read when wandb starts its service, that keep an offline run off the network and in `folder`."""
    return {
        "WANDB_ERROR_REPORTING": "false",  # else telemetry looks up W&B's server even offline
        "WANDB_CACHE_DIR": str(folder.resolve() / "cache"),  # else the service logs to the home folder
        "WANDB_CONFIG_DIR": str(folder.resolve() / "config"),  # else it wants to write its settings there
    }


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that the user has not set, for as long as the context lasts."""
    added = [name for name in variables if name not in os.environ]
    os.environ.update({name: variables[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]

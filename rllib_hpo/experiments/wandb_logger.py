"""Weights & Biases for one run, on the axis of environment steps. A convenience: the result rows are the truth."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from rllib_hpo.errors import StorageError, UserError

Mode = Literal["offline", "online", "disabled"]

_LOGGER = logging.getLogger(__name__)


class WandbRun:
    """Sends metrics to Weights & Biases, or keeps them in files for `wandb sync`, or does nothing.

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
        project: str = "rllib-hpo",
        name: str | None = None,
        group: str | None = None,
        config: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        """Start the run, or go on with the one that has this `run_id`.

        Args:
            directory: folder of the run; made where missing.
            mode: "offline", "online" (needs an account), or "disabled".
            project: W&B project.
            name: what W&B shows for the run.
            group: what W&B groups runs by, for instance a sweep.
            config: resolved configuration of the run, plain values.
            run_id: identity within the project; a resumed run passes the same again.

        Raises:
            StorageError: `directory` cannot be written.
            UserError: W&B could not start, for instance online without an account.
        """
        self._run: Any = None
        self._last_step = -1
        if mode != "disabled":
            self._run = _start(
                directory,
                mode,
                project=project,
                name=name,
                group=group,
                config=dict(config or {}),
                id=run_id,
            )

    def log(self, metrics: Mapping[str, float], env_steps: int) -> None:
        """Record `metrics` (a flat mapping) at `env_steps`; late records, as of an evaluation, may come any time."""
        # W&B drops a record whose own step does not increase. Following env_steps, that step goes on where a
        # resumed run goes on, and never collides within one life of the run.
        self._last_step = max(self._last_step + 1, env_steps)
        with self._reported("record metrics"):
            if self._run is not None:
                self._run.log({**metrics, "env_steps": env_steps}, step=self._last_step)

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
            _LOGGER.warning("Weights & Biases could not %s and is off from here on: %s", what, error)


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
                reinit="finish_previous",
                settings=settings,
                **identity,
            )
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases could not start in mode '{mode}' ({str(error).splitlines()[0].rstrip('.')}); "
                "run `wandb login`, or choose the mode 'offline', which needs no account."
            ) from error
    run.define_metric("*", step_metric="env_steps")
    return run


def _quiet_variables(folder: Path) -> dict[str, str]:
    """Variables, read when wandb starts its service, that keep an offline run off the network and in `folder`."""
    return {
        "WANDB_ERROR_REPORTING": "false",  # else telemetry looks up W&B's server even offline
        "WANDB_CACHE_DIR": str(folder.resolve() / "cache"),  # else the service logs to the home folder
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

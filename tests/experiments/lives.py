"""Start, watch, kill and compare runs of the command line in processes of their own."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rllib_hpo.results import read_rows, without_volatile
from tests.rllib.tiny import assert_equal

REPOSITORY = Path(__file__).resolve().parents[2]
CLI = (sys.executable, "-m", "rllib_hpo.cli")
COMMANDS = """
import sys
from rllib_hpo.cli import main
for command in sys.argv[1:]:
    sys.argv = ["rllib-hpo", *command.split()]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""
"""Script that runs each `rllib-hpo COMMAND` of its arguments in one process; all must succeed."""
TIMEOUT_S = 400.0


def settings(**values: Any) -> list[str]:
    """Return flags that make a run tiny, with `values` added or replaced."""
    tiny = {
        "hidden_units": 16,
        "train_batch_size_per_learner": 16,
        "replay_capacity": 700,  # the ring goes round, and old segments go
        "warmup_steps": 60,
        "evaluation_every": 100,
        "evaluation_episodes": 1,
        "checkpoint_every": 100,
        "steps_per_iteration": 50,
        "diagnostics_interval": 30,
    }
    return [flag for name, value in (tiny | values).items() for flag in ("--set", f"{name}={value}")]


def new_run(
    directory: Path, algorithm: str, task: str = "hopper", steps: int = 600, **values: Any
) -> list[str]:
    """Return the arguments that start a tiny run."""
    what = ["--algorithm", algorithm, "--task", task, "--seed", "5", "--steps", str(steps)]
    return ["train", *what, "--out", str(directory), "--wandb", "disabled", *settings(**values)]


def resumed(directory: Path, *more: str) -> list[str]:
    """Return the arguments that resume a run."""
    return ["train", "--resume", str(directory), "--wandb", "disabled", *more]


@contextmanager
def life(arguments: list[str], cwd: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run one process of a run in a session of its own, and kill what remains of it at the end."""
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(
        [*CLI, *arguments],
        cwd=cwd,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end; return exit code, stdout and stderr."""
    out, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, err


def run(arguments: list[str], cwd: Path) -> str:
    """Run to the end, which must succeed; return stdout."""
    with life(arguments, cwd) as process:
        code, out, err = ended(process)
    assert (code, err) == (0, ""), (code, out, err)
    return out


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], poll_s: float = 0.01) -> bool:
    """Wait until `condition` holds (True) or the process ends (False)."""
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None:
        if condition():
            return True
        assert time.monotonic() < deadline, "the run hangs"
        time.sleep(poll_s)
    return False


def evaluated(directory: Path) -> list[int]:
    """Return the steps of the rows on disk."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in directory.rglob("task=*/[!.]*.parquet"))


def checkpoints(directory: Path) -> list[int]:
    """Return the steps of the checkpoints on disk."""
    return sorted(int(path.name.removeprefix("step-")) for path in directory.glob("checkpoints/step-*"))


def outcome(directory: Path) -> dict[str, Any]:
    """Return a run's complete result: last checkpoint, replay and result rows, without clock times."""
    rows = without_volatile(read_rows(directory / "results")).to_pylist()
    return {**last_state(directory), "rows": rows}


def last_state(directory: Path) -> dict[str, Any]:
    """Return a run's last checkpoint and its replay, without clock times."""
    last = (directory / "checkpoints" / "last").resolve()
    pickles = {str(p.relative_to(last)): pickle.loads(p.read_bytes()) for p in last.rglob("*state.pkl")}
    assert {"algorithm_state.pkl", "env_runner/state.pkl", "learner_group/learner/state.pkl"} <= set(pickles)
    del pickles["algorithm_state.pkl"]["progress"]["wall_time_s"]
    # Of RLlib's metrics the lifetime sums; a resumed process fills windows anew.
    metrics = pickles["algorithm_state.pkl"].pop("metrics_logger")["stats"]
    pickles["algorithm_state.pkl"].pop("training_iteration", None)  # a stop cuts an iteration in two
    sums = {name: stats["lifetime_sum"] for name, stats in metrics.items() if "lifetime_sum" in stats}
    assert sums
    manifest = json.loads((last / "manifest.json").read_text())
    return {
        "state": pickles,
        "lifetime": sums,
        "replay": _replay(last, manifest),
        "manifest": {name: manifest[name] for name in ("env_steps", "evaluation", "config", "versions")},
    }


def _replay(checkpoint: Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the newest rows of each of the replay's rings, oldest first."""
    replay, capacity = manifest["replay"], manifest["config"]["replay_capacity"]
    rings: dict[str, list[np.ndarray]] = {}
    for segment in replay["segments"]:
        name = segment["file"].split("-")[0]
        rings.setdefault(name, []).append(np.load(checkpoint / replay["directory"] / segment["file"]))
    return {name: np.concatenate(rows)[-capacity:] for name, rows in rings.items()}


def assert_same_outcome(one: Path, other: Path) -> None:
    """Check that two runs ended bitwise equal."""
    assert_equal(outcome(one), outcome(other))

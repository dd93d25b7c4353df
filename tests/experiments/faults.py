"""Break each part of a running sweep of one trial, and record the result.

Each function of `FAULTS` runs a sweep in a directory, breaks it when it has made `BREAK_AT` steps, and then does
what its owner would do. test_faults.py checks that nothing is lost; `python -m benchmarks.faults` measures the cost.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import psutil
import pyarrow as pa
import yaml

from rllib_hpo.experiments.storage.folder import Storage, rows_from
from rllib_hpo.results import read_rows, without_volatile
from tests.experiments.lives import CLI, REPOSITORY
from tests.experiments.s3_server import s3_server
from tests.experiments.steps_log import STEPS_FILE, Iteration, read_iterations, uptime
from tests.experiments.token_cluster import TokenCluster, joining, started, token_cluster

TIMEOUT_S = 300.0
STEPS, EVALUATION_EVERY, CHECKPOINT_EVERY = 2_000, 100, 500
EVALUATIONS = range(0, STEPS + 1, EVALUATION_EVERY)
BREAK_AT = 1_250
"""Half-way between two checkpoints."""
TRIAL = "sac-hpo-Pendulum-v1-seed0"
SETTINGS = {
    "steps": STEPS,
    "hidden_units": 32,
    "train_batch_size_per_learner": 32,
    "warmup_steps": 200,
    "evaluation_every": EVALUATION_EVERY,
    "evaluation_episodes": 1,
    "checkpoint_every": CHECKPOINT_EVERY,
    "steps_per_iteration": 10,
}
MOUNT_MIB = 8
SKEW_S = 6 * 3_600


def kill(*pids: int) -> None:
    """Send SIGKILL, as the kernel does when memory is short; return when the processes are gone."""
    processes = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):  # one of many may have ended by itself
            processes.append(psutil.Process(pid))
            processes[-1].kill()
    assert processes, f"all of {pids} had ended before"
    deadline = time.monotonic() + 30
    while any(_runs(process) for process in processes):
        assert time.monotonic() < deadline, f"SIGKILL did not end {processes}"
        time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def flip_a_byte(path: Path) -> None:
    """Flip one byte, the smallest possible damage."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class Cost(NamedTuple):
    """Cost of a fault."""

    seconds_lost: float
    """Seconds from the fault until training was as far as before, or continued."""
    steps_repeated: int
    """Environment steps that were repeated."""
    rows_lost: int
    """Evaluations that are due but missing among the rows."""
    rows_doubled: int
    """Rows of an evaluation that has one already."""

    @classmethod
    def of(
        cls, iterations: list[Iteration], broke_at: float, evaluated: list[int], due: Iterable[int]
    ) -> Self:
        """Compute the cost from the iterations, the time of the fault, and the steps of existing and due rows."""
        pid = iterations[-1].pid
        before = [each for each in iterations if each.pid != pid] or [
            each for each in iterations if each.time <= broke_at
        ]
        reached = max(each.after for each in before)
        again = next(
            each for each in iterations if each.pid == pid and each.time > broke_at and each.after >= reached
        )
        made = sum(each.after - each.before for each in iterations)
        return cls(
            seconds_lost=round(again.time - broke_at, 2),
            steps_repeated=made - max(each.after for each in iterations),
            rows_lost=len(set(due) - set(evaluated)),
            rows_doubled=len(evaluated) - len(set(evaluated)),
        )


class Broken(NamedTuple):
    """Result of a fault."""

    rows: pa.Table
    """All final rows, without clock times."""
    iterations: list[Iteration]
    broke_at: float
    """Uptime of the machine, in seconds."""
    said: str
    """Output of the broken sweep, and of the one that resumed it."""

    def cost(self) -> Cost:
        """Compute the cost for the sweep of this file."""
        return Cost.of(self.iterations, self.broke_at, self.rows["env_steps"].to_pylist(), EVALUATIONS)


class WatchedSweep:
    """Run `rllib-hpo sweep` of one trial in a process of its own, and watch its progress.

    Args:
        work: Directory of its files.
        settings: Settings in addition to `SETTINGS`.
        directory: Directory of the sweep, as the process sees it.
        prefix: Words before the command.
        options: Words after it, for a new sweep only.
        environment: Complete environment, unless it is this process's.
    """

    def __init__(
        self,
        work: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        directory: Path | None = None,
        prefix: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.work, self.directory, self.prefix = work, directory or work / "sweep", prefix
        self._steps, self._said, self._broke_at = work / "steps", "", 0.0
        self._environment = {
            **(os.environ if environment is None else environment),
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            STEPS_FILE: str(self._steps),
        }
        file = work / "faults.yaml"
        names = {"sweep": "faults", "algorithms": ["sac-hpo"], "tasks": ["Pendulum-v1"], "seeds": 0}
        file.write_text(yaml.safe_dump({**names, "settings": {**SETTINGS, **(settings or {})}}))
        self._start(
            str(file), "--out", str(self.directory), "--import", "tests.experiments.steps_log", *options
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def _start(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [*self.prefix, *CLI, "sweep", *words, "--wandb", "disabled"],
            cwd=self.work,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def resume(self) -> None:
        """Resume the sweep, after its driver has ended or died."""
        self._start("--resume", str(self.directory))

    @property
    def iterations(self) -> list[Iteration]:
        """Return all iterations so far, in all sessions."""
        return read_iterations(self._steps)

    @property
    def trial(self) -> Path:
        """Path of the trial's run directory."""
        return self.directory / "trials" / TRIAL

    @property
    def trial_pid(self) -> int:
        """Process id of the training process."""
        return self.iterations[-1].pid

    def reaches(self, steps: int) -> None:
        """Wait until the given number of steps is made."""
        self.waits(lambda: bool(self.iterations) and self.iterations[-1].after >= steps)

    def waits(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, while the sweep lives."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "the sweep hangs"
            time.sleep(0.01)

    def breaks(self, strike: Callable[[], Any]) -> None:
        """Inject the fault, and record the time."""
        self._broke_at = uptime()
        strike()

    def ends(self, code: int = 0) -> str:
        """Wait for the end; return the output."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        self._said += out + err
        assert self.process.returncode == code, (self.process.returncode, out, err)
        return err

    def broken(self, rows: Path | None = None) -> Broken:
        """Return the result, after the end."""
        table = without_volatile(read_rows(rows or self.directory / "results"))
        return Broken(table, self.iterations, self._broke_at, self._said)

    def worker(self, name: str) -> int:
        """Return the process of a remote worker, by Ray's name for its class."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any(word.startswith("ray::") and name in word for word in process.cmdline()[:1]):
                    found.append(process.pid)
        assert len(found) == 1, found
        return found[0]


def undisturbed(work: Path, settings: Mapping[str, Any] | None = None) -> pa.Table:
    """Return the rows of a sweep without a fault."""
    with WatchedSweep(work, settings=settings) as sweep:
        sweep.ends()
        return sweep.broken().rows


# The faults --------------------------------------------------------------------------------------------

WITH_RUNNER = {"num_env_runners": 1}
WITH_LEARNER = {"num_learners": 1}


def runner_killed(work: Path) -> Broken:
    """Kill a remote environment runner; RLlib starts another one."""
    with WatchedSweep(work, settings=WITH_RUNNER) as sweep:
        sweep.reaches(BREAK_AT)
        sweep.breaks(lambda: kill(sweep.worker("EnvRunner")))
        sweep.ends()
        return sweep.broken()


def learner_killed(work: Path) -> Broken:
    """Kill the remote learner, and with it the replay in its memory."""
    with WatchedSweep(work, settings=WITH_LEARNER) as sweep:
        sweep.reaches(BREAK_AT)
        sweep.breaks(lambda: kill(sweep.worker("_WrappedExecutable")))
        sweep.ends()
        return sweep.broken()


def trial_killed(work: Path) -> Broken:
    """Kill the trial's process; Tune starts another one."""
    with WatchedSweep(work) as sweep:
        sweep.reaches(BREAK_AT)
        sweep.breaks(lambda: kill(sweep.trial_pid))
        sweep.ends()
        return sweep.broken()


def driver_killed(work: Path) -> Broken:
    """Kill `rllib-hpo sweep` itself, and resume it at once."""
    with WatchedSweep(work) as sweep:
        sweep.reaches(BREAK_AT)
        sweep.breaks(lambda: kill(sweep.process.pid))
        sweep.ends(-signal.SIGKILL)
        sweep.resume()
        sweep.ends()
        return sweep.broken()


def node_killed(work: Path, ahead_s: float = 0.0) -> Broken:
    """Kill the machine that trains, including its raylet; another one has room.

    Args:
        work: Directory of its files.
        ahead_s: Seconds by which one node's clock is ahead, and the other's behind.
    """
    with two_nodes(work, ahead_s) as (cluster, nodes):
        said = cluster.run("doctor", "--address", cluster.address, code=None)[0] if ahead_s else ""
        with WatchedSweep(work, environment=cluster.environment(RAY_ADDRESS=cluster.gcs)) as sweep:
            sweep.reaches(BREAK_AT)
            (victim,) = [tree for tree in map(_tree, nodes) if sweep.trial_pid in tree]
            _set_back(sweep.trial / "checkpoints", ahead_s)
            sweep.breaks(lambda: kill(*victim))
            sweep.ends()
            broken = sweep.broken()
            return broken._replace(said=said + broken.said)


def clocks_apart(work: Path) -> Broken:
    """Kill the machine, with one node's clock six hours ahead and the other's six hours behind."""
    return node_killed(work, ahead_s=SKEW_S)


def storage_full(work: Path) -> Broken:
    """Fill the disk; its owner makes room and resumes."""
    directory = work / "disk" / "sweep"
    with (
        tiny_disk(work / "disk", MOUNT_MIB) as (seen, inside),
        WatchedSweep(work, directory=directory, prefix=inside) as sweep,
    ):
        sweep.reaches(BREAK_AT)
        sweep.breaks(lambda: fill(seen / "filler"))
        sweep.ends(2)
        (seen / "filler").unlink()
        sweep.resume()
        sweep.ends()
        shutil.copytree(seen / "sweep" / "results", work / "rows")  # a path that others can resolve
        return sweep.broken(work / "rows")


def storage_away(work: Path, seconds: float = 60.0) -> Broken:
    """Switch S3 off for a while; training does not wait for it."""
    with s3_server(work / "s3.log") as s3:
        base, uri = s3.uri("bucket/sweeps"), s3.uri("bucket/sweeps/faults")
        with WatchedSweep(work, options=("--storage", base)) as sweep:
            sweep.reaches(BREAK_AT)
            sweep.breaks(s3.off)
            time.sleep(seconds)
            s3.on()
            sweep.ends()
            rows_from(Storage.open(uri), work / "rows")
            return sweep.broken(work / "rows")


def checkpoint_corrupt(work: Path) -> Broken:
    """Kill the driver, and flip a byte of the newest checkpoint."""
    with WatchedSweep(work) as sweep:
        sweep.reaches(BREAK_AT)
        sweep.breaks(lambda: kill(sweep.process.pid, sweep.trial_pid))
        sweep.ends(-signal.SIGKILL)
        flip_a_byte(max(sweep.trial.glob("checkpoints/step-*")) / "algorithm_state.pkl")
        sweep.resume()
        sweep.ends()
        return sweep.broken()


class Fault(NamedTuple):
    """One entry of `FAULTS`."""

    title: str
    """Name in a table."""
    run: Callable[[Path], Broken]
    settings: Mapping[str, Any] = {}
    """Settings of the sweep, in addition to `SETTINGS`."""
    is_exact: bool = True
    """Whether the result must be bitwise that of a sweep without a fault."""


FAULTS = {
    "runner": Fault("environment runner killed", runner_killed, WITH_RUNNER, is_exact=False),
    "learner": Fault("remote learner killed", learner_killed, WITH_LEARNER, is_exact=False),
    "trial": Fault("trial killed", trial_killed),
    "driver": Fault("driver killed, resumed at once", driver_killed),
    "node": Fault("node killed, another has room", node_killed),
    "full": Fault("disk full, room made and resumed at once", storage_full),
    "away": Fault("storage (S3) away for a minute", storage_away),
    "corrupt": Fault("driver killed, newest checkpoint corrupt", checkpoint_corrupt),
    "clocks": Fault("node killed, clocks twelve hours apart", clocks_apart),
}


# Where they happen -------------------------------------------------------------------------------------


def skewed(seconds: float) -> dict[str, str]:
    """Return the environment of a node whose clock is ahead by some seconds; see skewed_clock/sitecustomize.py."""
    clock = Path(__file__).with_name("skewed_clock")
    return {"PYTHONPATH": f"{clock}{os.pathsep}{REPOSITORY}", "CLOCK_SKEW_S": str(seconds)}


@contextmanager
def two_nodes(
    work: Path, ahead_s: float = 0.0
) -> Iterator[tuple[TokenCluster, list[subprocess.Popen[bytes]]]]:
    """Run a cluster on this machine: a head without trials, and two nodes with room for one each."""
    with ExitStack() as stack:
        cluster = stack.enter_context(token_cluster(work, num_cpus=0))
        nodes = [
            started(
                stack,
                partial(joining, cluster),
                cluster,
                work / f"{name}.log",
                **{**skewed(sign * ahead_s), STEPS_FILE: str(work / "steps")},
            )
            for name, sign in (("ahead", 1), ("behind", -1))
        ]
        yield cluster, nodes


def _tree(process: subprocess.Popen[bytes]) -> list[int]:
    """Return a process and all its descendants."""
    return [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]


def _set_back(folder: Path, ahead_s: float) -> None:
    """Shift file times to a node's clock as on a shared disk: the older a checkpoint, the later its time."""
    for age, path in enumerate(sorted(folder.glob("step-*"), reverse=True)):
        for file in [path, *path.rglob("*")]:
            os.utime(file, (time.time() + ahead_s * (2 * age - 1),) * 2)


@contextmanager
def tiny_disk(mount: Path, mebibytes: int) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Mount a real file system at `mount`, in a namespace that needs no root and leaves nothing behind.

    Yields:
        Its path as seen by this process, and the words that run a command inside.
    """
    mount.mkdir()
    script = f"mount -t tmpfs -o size={mebibytes}m tmpfs '{mount}' && echo ready && exec sleep infinity"
    keeper = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert keeper.stdout is not None
        if keeper.stdout.readline() != "ready\n":
            raise PermissionError("this kernel or container does not allow mounting in a user namespace")
        enter = (
            "nsenter",
            "--preserve-credentials",
            "--user",
            "--mount",
            f"--target={keeper.pid}",
            "--wd=.",
            "--",
        )
        yield Path(f"/proc/{keeper.pid}/root{mount}"), enter
    finally:
        keeper.kill()
        keeper.communicate()


def fill(path: Path) -> None:
    """Write until the file system has no byte left."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

"""Test runs on file systems without links, locks or fsync, by failing the system calls."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rllib_hpo.experiments.storage.checkpoints import find_checkpoint
from rllib_hpo.results import read_rows, without_volatile
from tests.experiments.lives import REPOSITORY, TIMEOUT_S, evaluated, new_run, resumed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STEPS = 250

FORKING = textwrap.dedent("""
    import json, os, sys
    import matplotlib.pyplot, rllib_hpo.experiments.runs.train, rllib_hpo.analysis.curves, rllib_hpo.rllib.algorithm
    from rllib_hpo.cli import main

    for line in sys.stdin:
        arguments, environment, log = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.environ.update(environment)  # which the library reads at each call
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.argv = ["rllib-hpo", *arguments]
            code = 0
            try:
                main()
            except SystemExit as error:
                code = error.code or 0
            sys.stderr.flush()
            os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
""")
"""Run the command line in forks of one process that has imported everything, which is cheap."""

Life = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """Run a command line where calls fail with the given errors; return its exit code and its complaints."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (gcc) to make system calls fail")
    folder = tmp_path_factory.mktemp("preload")
    library, log = folder / "refusing.so", folder / "stderr"
    source = Path(__file__).with_name("refusing.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "LD_PRELOAD": str(library)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    def lived(
        arguments: list[str], refused: dict[str, int], killed_when: Callable[[], bool] | None = None
    ) -> tuple[int, str]:
        environment = {name: str(number) for name, number in refused.items()}
        print(json.dumps([arguments, environment, str(log)]), file=stdin, flush=True)
        pid, deadline = int(stdout.readline()), time.monotonic() + TIMEOUT_S
        if killed_when is not None:
            while not killed_when():
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.005)
            os.kill(pid, signal.SIGKILL)
        return int(stdout.readline()), log.read_text()

    yield lived
    process.kill()
    process.communicate()


def started(directory: Path) -> list[str]:
    """Return the arguments of a new run with short episodes."""
    return new_run(directory, "sac", "Pendulum-v1", STEPS, env_config="{max_episode_steps: 20}")


def rows(directory: Path) -> list[dict[str, Any]]:
    """Return the rows of a run, without clock times."""
    return without_volatile(read_rows(directory / "results")).to_pylist()


@pytest.fixture(scope="module")
def uninterrupted(life: Life, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run on a file system that supports everything."""
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert life(started(directory), {}) == (0, "")
    return directory


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param({"REFUSE_SYMLINK": errno.EPERM}, id="no links", marks=pytest.mark.exhaustive),
        pytest.param({"REFUSE_FLOCK": errno.ENOLCK}, id="no locks", marks=pytest.mark.exhaustive),
        pytest.param({"REFUSE_FSYNC": errno.EINVAL}, id="no fsync", marks=pytest.mark.exhaustive),
        pytest.param(
            {"REFUSE_SYMLINK": errno.EPERM, "REFUSE_FLOCK": errno.ENOLCK, "REFUSE_FSYNC": errno.EINVAL},
            id="none of them",
        ),
    ],
)
def test_a_run_is_killed_and_goes_on(
    refused: dict[str, int], life: Life, uninterrupted: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    last, holder = directory / "checkpoints" / "last", directory / ".lock.json"
    code, err = life(started(directory), refused, killed_when=last.exists)
    assert code == -signal.SIGKILL, err
    assert holder.exists() == ("REFUSE_FLOCK" in refused)
    code, err = life(resumed(directory), refused)
    assert code == 0, err
    warning = "not support file locks: do not let two processes write this run at once."
    assert " ".join(err.split()).count(warning) == ("REFUSE_FLOCK" in refused)
    assert ("WARNING" in err) == ("REFUSE_FLOCK" in refused)
    assert not holder.exists()
    assert last.is_symlink() == ("REFUSE_SYMLINK" not in refused)
    assert find_checkpoint(last).name == f"step-{STEPS:010d}"
    assert evaluated(directory) == evaluated(uninterrupted)
    assert rows(directory) == rows(uninterrupted)


def test_a_disk_that_fails_ends_the_run_in_a_sentence(life: Life, tmp_path: Path) -> None:
    code, err = life(started(tmp_path / "run"), {"REFUSE_FSYNC": errno.EIO})
    assert code == 2, err
    assert err.startswith("Error: ")
    assert "Input/output error" in err
    assert len(err.splitlines()) == 1

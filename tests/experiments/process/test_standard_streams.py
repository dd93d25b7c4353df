"""Test that no run fails because of its console: another encoding, a broken pipe, closed descriptors."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.lives import CLI, REPOSITORY, checkpoints, evaluated, new_run

PRINTS = r"""
import sys
from rllib_hpo.experiments.process.standard_streams import make_streams_safe
make_streams_safe()
for _ in range(3):
    print("12.5 \u00b1 1.0 \u2501", flush=True)
sys.stderr.write("\u00b1")
open("file", "w").write("data")
print("late")
"""


def printing(redirections: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run PRINTS in a shell with `redirections`."""
    command = f"exec {shlex.join([sys.executable, '-c', PRINTS])} {redirections}"
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=variables, capture_output=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "cp1252"},
    ],
)
def test_what_the_encoding_lacks_is_replaced(environment: dict[str, str], tmp_path: Path) -> None:
    done = printing("", tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"12.5") == 3
    assert b"?" in done.stdout


@pytest.mark.parametrize("redirections", ["| head -n 1", ">&-", "<&- >&- 2>&-", "> /dev/full"])
def test_a_console_that_is_gone_is_written_to_in_vain(redirections: str, tmp_path: Path) -> None:
    done = printing(redirections, tmp_path)
    assert (done.returncode, (tmp_path / "file").read_text()) == (0, "data"), done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_outlives_its_console(tmp_path: Path) -> None:
    """The console is ASCII, or a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*CLI, *new_run(tmp_path / "run", "sac", "Pendulum-v1", steps=200)],
        cwd=tmp_path,
        env={**os.environ, **environment},
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=300,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert evaluated(tmp_path / "run") == [0, 100, 200]
    assert checkpoints(tmp_path / "run")[-1] == 200

"""Runs on file systems without links, locks or fsync: the system's own calls fail as they do there."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from rllib_hpo.experiments.checkpoints import find_checkpoint
from rllib_hpo.results import read_rows, without_volatile
from tests.experiments.lives import ended, evaluated, life, new_run, resumed, run, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STEPS = 300


@pytest.fixture(scope="module")
def preload(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The library that makes calls fail."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (gcc) to make system calls fail")
    library = tmp_path_factory.mktemp("preload") / "refusing.so"
    source = Path(__file__).with_name("refusing.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return str(library)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on a file system that has everything."""
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(new_run(directory, "sac", steps=STEPS), directory.parent)
    return directory


@pytest.mark.parametrize(
    "refused",
    [
        {"REFUSE_SYMLINK": errno.EPERM},
        {"REFUSE_FLOCK": errno.ENOLCK},
        {"REFUSE_FSYNC": errno.EINVAL},
        {"REFUSE_SYMLINK": errno.EOPNOTSUPP, "REFUSE_FLOCK": errno.ENOSYS, "REFUSE_FSYNC": errno.ENOTSUP},
    ],
    ids=["no links", "no locks", "no fsync", "nothing"],
)
def test_a_run_is_killed_and_goes_on(
    refused: dict[str, int], preload: str, uninterrupted: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    last, lock = directory / "checkpoints" / "last", directory / ".lock.json"
    environment = {"LD_PRELOAD": preload, **{name: str(number) for name, number in refused.items()}}
    with life(new_run(directory, "sac", steps=STEPS), tmp_path, **environment) as process:
        assert wait_for(last.exists, process), ended(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert lock.exists() == ("REFUSE_FLOCK" in refused)
    with life(resumed(directory), tmp_path, **environment) as process:
        code, out, err = ended(process)
    assert code == 0, (out, err)
    warnings = [line for line in err.splitlines() if "has no file locks" in line]
    assert err.splitlines() == warnings
    assert len(warnings) == ("REFUSE_FLOCK" in refused)
    assert not lock.exists()
    assert last.is_symlink() == ("REFUSE_SYMLINK" not in refused)
    assert find_checkpoint(last).name == f"step-{STEPS:010d}"
    assert evaluated(directory) == evaluated(uninterrupted)
    rows, expected = (without_volatile(read_rows(each / "results")) for each in (directory, uninterrupted))
    assert rows.drop_columns("trial_id").equals(expected.drop_columns("trial_id"))


def test_a_disk_that_fails_ends_the_run_in_a_sentence(preload: str, tmp_path: Path) -> None:
    arguments = new_run(tmp_path / "run", "sac", steps=STEPS)
    with life(arguments, tmp_path, LD_PRELOAD=preload, REFUSE_FSYNC=str(errno.EIO)) as process:
        code, _, err = ended(process)
    assert code == 2, err
    (line,) = err.splitlines()
    assert "Input/output error" in line

"""Test that two processes never train in one run directory."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rllib_hpo.errors import StorageError, UserError
from rllib_hpo.experiments.process import lock
from rllib_hpo.experiments.process.lock import HOLDER_FILE, locked

HOLDER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from rllib_hpo.experiments.process.lock import locked
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
""")


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    """Death by SIGKILL releases the lock too."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"Another process \(pid {holder.pid}\) is training in"),
            locked(tmp_path, timeout_s=0.2),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with locked(tmp_path, timeout_s=5):
        pass


def without_locks(number: int) -> str:
    """Return the environment that makes `flock` fail with that error in other processes."""
    return textwrap.dedent(f"""
        import fcntl, os
        def flock(descriptor, operation):
            raise OSError({number}, os.strerror({number}))
        fcntl.flock = flock
    """)


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Simulate a file system without locks in this process and others (`without_locks`); return its error."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)
    return int(request.param)


def test_without_locks_a_file_says_who(
    no_locks: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A second process is refused while the first lives, and continues at once after its death by SIGKILL."""
    holder = subprocess.Popen(
        [sys.executable, "-c", without_locks(no_locks) + HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        who = rf"Another process \(pid {holder.pid} on .*\) is training in .*; if it has ended, remove .*\.json\.$"
        with pytest.raises(UserError, match=who), locked(tmp_path, timeout_s=0.2):
            pass
    finally:
        holder.kill()
        said = holder.communicate()[1]
    assert said.count("does not support file locks: do not let two processes write this run at once.") == 1
    caplog.clear()
    with locked(tmp_path, timeout_s=0):
        assert (tmp_path / HOLDER_FILE).is_file()
    assert not (tmp_path / HOLDER_FILE).exists()
    assert len(caplog.records) == 1


def test_without_locks_a_process_elsewhere_counts_as_dead_when_it_is_silent(
    no_locks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE_S", 0.3)
    other = {"host": "another", "pid": 1, "processes": "pid:[1]", "beat": 7}
    (tmp_path / HOLDER_FILE).write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"pid 1 on another"), locked(tmp_path, timeout_s=0.1):
        pass
    with locked(tmp_path, timeout_s=30):
        assert json.loads((tmp_path / HOLDER_FILE).read_text())["pid"] == os.getpid()


def test_a_disk_that_fails_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(StorageError, match=rf"^Cannot lock {tmp_path}: Input/output error\.$"),
        locked(tmp_path),
    ):
        pass


def test_it_can_be_held_again(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "run", timeout_s=0):
            assert (tmp_path / "run").is_dir()

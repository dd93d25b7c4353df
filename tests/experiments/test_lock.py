"""Two processes never train in one run directory."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rllib_hpo.errors import UserError
from rllib_hpo.experiments.lock import locked

HOLDER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from rllib_hpo.experiments.lock import locked
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
""")


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    """Even if it dies of SIGKILL."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"Another process \(pid {holder.pid}\) is training in"),
            locked(tmp_path, patience_s=0.2),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with locked(tmp_path, patience_s=5):
        pass


def test_it_can_be_held_again(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "run", patience_s=0):
            assert (tmp_path / "run").is_dir()

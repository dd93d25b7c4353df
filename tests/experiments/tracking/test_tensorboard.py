"""Test TensorBoard's files by reading them back."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

from rllib_hpo.experiments.tracking.tensorboard import TensorBoard
from tests.experiments.lives import REPOSITORY, new_run, run


def scalars(directory: Path) -> dict[str, dict[int, float]]:
    """Return values by name and step, as TensorBoard shows them; a later session replaces repeated steps."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted(
        (directory / "tensorboard").glob("events.*"), key=lambda path: path.stat().st_mtime_ns
    ):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            if place + 12 + length + 4 > len(data):
                break  # cut short by a full disk
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += 12 + length + 4
            if event.session_log.status == event.session_log.START:
                for steps in found.values():
                    for step in [step for step in steps if step >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_a_resumed_run_drops_what_it_repeats(tmp_path: Path) -> None:
    with TensorBoard(tmp_path, 0) as board:
        for step in (100, 200, 300):
            board.log({"train/return_mean": float(step)}, step)
    with TensorBoard(tmp_path, 200) as board:
        board.log({"train/return_mean": -1.0}, 250)
    assert scalars(tmp_path) == {"train/return_mean": {100: 100.0, 200: 200.0, 250: -1.0}}


def test_a_run_leaves_its_metrics(tmp_path: Path) -> None:
    run(new_run(tmp_path / "run", "sac-hpo", "Pendulum-v1", steps=200), tmp_path)
    found = scalars(tmp_path / "run")
    assert max(found["evaluation/return_mean"]) == 200
    assert {"learner/critic_loss", "learner/displacement_drift", "train/num_episodes"} <= found.keys()


LIMITED = """
    import resource, sys
    from pathlib import Path
    from rllib_hpo.experiments.tracking.tensorboard import TensorBoard

    with TensorBoard(Path(sys.argv[1]), 0) as board:
        board.log({"train/return_mean": 1.0}, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        for step in range(2, 100):
            board.log({"train/return_mean": 1.0}, step)
"""


def test_a_file_that_cannot_be_written_is_told_once_and_stops_nobody(tmp_path: Path) -> None:
    """The kernel rejects writes after 200 bytes; tensorboardX's own writer would block forever ten values later."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"Cannot write {tmp_path / 'tensorboard'}: File too large.\n"
    assert scalars(tmp_path)["train/return_mean"][1] == 1.0

"""Test a Ray that does not start: it is tried twice, then reported in a sentence."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from rllib_hpo import cli
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.cluster import nodes
from rllib_hpo.experiments.cluster.ray_session import ray_session

LATE = "The current node timed out during startup. This could happen because the GCS has become overloaded."


class Starts:
    """Replace `ray.init`, and fail the given number of times."""

    def __init__(self, failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures, self.calls = failures, list[dict[str, Any]]()
        monkeypatch.setattr(ray, "init", self)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def __call__(self, **options: Any) -> None:
        self.calls.append(options)
        if len(self.calls) <= self.failures:
            raise Exception(LATE)


def test_a_late_start_gets_a_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(1, monkeypatch)
    with ray_session(num_cpus=3):
        assert len(starts.calls) == 2
    assert starts.calls[0] == starts.calls[1]
    assert (starts.calls[1]["address"], starts.calls[1]["num_cpus"]) == ("local", 3)


def test_no_start_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(9, monkeypatch)
    with pytest.raises(UserError) as raised, ray_session():
        pass
    assert str(raised.value) == f"Ray cannot start on this machine (tried 2 times): {LATE}"
    assert len(starts.calls) == 2


def test_a_cluster_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing listens at the address, Ray is not called; if another program does, Ray has tried for minutes."""
    starts = Starts(9, monkeypatch)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(
        UserError, match=r"^Cannot reach the Ray cluster 127\.0\.0\.1:1 .*: Connection refused"
    ):
        ray_session().__enter__()
    assert not starts.calls
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(
            UserError, match=r"^Cannot reach the Ray cluster 127\.0.* names: The current node"
        ):
            ray_session().__enter__()
    assert len(starts.calls) == 1


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_command_ends_with_that_sentence_and_code_2(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Starts(9, monkeypatch)
    sweep = tmp_path / "little.yaml"
    sweep.write_text(
        "sweep: little\nalgorithms: [sac]\ntasks: [Pendulum-v1]\nseeds: 0\nsettings:\n  steps: 100\n"
    )
    words = {
        "train": [
            "--algorithm",
            "sac",
            "--task",
            "Pendulum-v1",
            "--steps",
            "100",
            "--set",
            "num_env_runners=1",
        ],
        "sweep": [str(sweep)],
    }
    monkeypatch.setattr(
        sys,
        "argv",
        ["rllib-hpo", command, *words[command], "--out", str(tmp_path / "out"), "--wandb", "disabled"],
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"Error: Ray cannot start on this machine (tried 2 times): {LATE}\n"


def test_the_job_that_asks_the_nodes_ends_with_that_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Starts(9, monkeypatch)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(sys, "argv", ["nodes", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        nodes.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Cannot reach the Ray cluster 127.0.0.1:1")


def test_a_clock_is_told_by_the_answer_that_came_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that took seconds, from a busy node, says little: its clock was read early or late in that time."""
    here = [1_000.0]
    monkeypatch.setattr(nodes.time, "time", lambda: here[0])
    ways = iter([(6.0, 0.5), (0.01, 0.01), (0.0, 3.0)])  # seconds there and back

    def tell() -> float:
        there, back = next(ways)
        told = here[0] + there + 7.0
        here[0] += there + back
        return told

    assert nodes._clock_offset_s(tell) == pytest.approx(7.0, abs=1e-6)
    assert nodes._clock_offset_s(lambda: None) is None

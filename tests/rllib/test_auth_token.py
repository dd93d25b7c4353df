"""Test that Ray's token is readable by its owner alone, both a new one and one with open permissions."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rllib_hpo.experiments.jobs.doctor import token_check
from rllib_hpo.rllib.auth_token import keep_token_private


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a fresh home, with Ray's defaults and no cluster."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_it_is_made_private_whatever_the_umask(umask: int, home: Path) -> None:
    (home / ".ray").mkdir()
    before = os.umask(umask)
    try:
        keep_token_private()
    finally:
        os.umask(before)
    token = home / ".ray" / "auth_token"
    assert mode(token) == 0o600
    assert len(token.read_text()) == 64
    assert token_check(token).state == "ok"
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


def test_one_that_is_there_is_narrowed_and_stays(home: Path) -> None:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("mine")
    token.chmod(0o644)
    keep_token_private()
    assert (mode(token), token.read_text()) == (0o600, "mine")


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "abc"), ("RAY_ADDRESS", "10.1.2.3:6379")],
)
def test_none_is_made_where_ray_makes_none(
    name: str, value: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    keep_token_private()
    assert not (home / ".ray").exists()


@pytest.mark.slow
def test_cluster_check_passes_after_a_sweep_in_a_fresh_home(home: Path, tmp_path: Path) -> None:
    """The real Ray uses the token it finds."""
    root = Path(__file__).resolve().parents[2]
    settings = "{steps: 20, hidden_units: 8, warmup_steps: 10, evaluation_every: 20, evaluation_episodes: 1}"
    sweep = tmp_path / "tiny.yaml"
    sweep.write_text(
        f"sweep: tiny\nalgorithms: [sac]\ntasks: [Pendulum-v1]\nseeds: 0\nsettings: {settings}\n"
    )
    program = (sys.executable, "-m", "rllib_hpo.cli")
    for words in (
        ("sweep", str(sweep), "--out", str(tmp_path / "out"), "--wandb", "disabled"),
        ("cluster", "check", "cluster/gpu.yaml"),
    ):
        done = subprocess.run(
            [*program, *words],
            cwd=root,  # what the cluster file mounts is named from there
            umask=0o022,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert token_check(home / ".ray" / "auth_token").state == "ok"

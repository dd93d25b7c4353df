"""Test that runs stay in one folder when the working directory changes, and need no home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rllib_hpo.cli.jobs import sweep_request
from rllib_hpo.experiments.jobs import doctor
from rllib_hpo.experiments.runs.files import RunFiles
from rllib_hpo.experiments.storage.folder import Storage
from rllib_hpo.experiments.sweeps.plan import SweepFiles
from rllib_hpo.rllib.algorithms import SACGaussianConfig

ROOT = Path(__file__).resolve().parents[3]
WANDERING = """
import os
import gymnasium
from gymnasium.envs.classic_control.pendulum import PendulumEnv


class Wandering(PendulumEnv):
    def step(self, action):
        os.chdir(os.environ["ELSEWHERE"])
        return super().step(action)


gymnasium.register("Wandering-v0", Wandering, max_episode_steps=20)
"""
TINY = (
    "hidden_units=8 train_batch_size_per_learner=8 warmup_steps=20 evaluation_every=40 evaluation_episodes=1"
)


@pytest.mark.slow
def test_a_run_is_in_one_folder_without_a_home(tmp_path: Path) -> None:
    """The environment changes the working directory, and the home is a file, where even root cannot write."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (here / "wandering.py").write_text(WANDERING)
    command = [sys.executable, "-m", "rllib_hpo.cli", "train", "--algorithm", "sac", "--task", "Wandering-v0"]
    command += ["--import", "wandering", "--steps", "80", "--out", "run"]
    command += [word for setting in TINY.split() for word in ("--set", setting)]
    environment = {**os.environ, "HOME": "/dev/null", "ELSEWHERE": str(elsewhere), "PYTHONPATH": str(ROOT)}
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "MPLCONFIGDIR"):
        environment.pop(name, None)
    done = subprocess.run(
        command, cwd=here, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not list(elsewhere.iterdir())
    made = {path.name for path in (here / "run").iterdir() if not path.name.startswith(".")}
    assert {"config.yaml", "results", "events.jsonl", "tensorboard", "wandb", "curve.png"} <= made
    assert {"checkpoints", "replay"} <= made
    assert not list((here / "run").glob(".rllib-*"))


def test_paths_in_python_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = SACGaussianConfig().results(results_dir="rows").checkpointing(replay_dir="~/replay")
    monkeypatch.chdir("/")
    assert config.results_dir == str(tmp_path / "rows")
    assert config.replay_dir == str(tmp_path / "home" / "replay")
    assert config.copy(copy_frozen=False).update_from_dict({"results_dir": "a"}).results_dir == "/a"
    assert RunFiles(Path("~/run")).config == tmp_path / "home" / "run" / "config.yaml"
    assert SweepFiles(Path("s")).results == Path("/s/results")
    assert Storage.open("~/store").path == str(tmp_path / "home" / "store")


def test_places_of_a_cluster_keep_their_own_home() -> None:
    request = sweep_request([str(ROOT / "tune_configs/smoke.yaml"), "--out", "~/runs/x"], pip=False)
    assert request.out == "~/runs/x"


def test_doctor_says_which_folders_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", "/dev/null")
    found = {check.subject: check.state for check in doctor.folder_checks(Path("/dev/null"))}
    assert found == {"temporary": "problem", "home": "note"}
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found = {check.subject: check.state for check in doctor.folder_checks(tmp_path)}
    assert found == {"temporary": "ok", "home": "ok"}

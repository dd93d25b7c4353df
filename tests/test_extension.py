"""A package that adds an algorithm and a task: installed for real, used by name, here and on remote workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rllib_hpo.results import read_rows

SOURCES = Path(__file__).parent / "external"
TINY = (
    "hidden_units=8 train_batch_size_per_learner=8 warmup_steps=20 evaluation_every=40 evaluation_episodes=1"
)


def _train(out: Path, path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`rllib-hpo train` with `path` before everything else that Python imports from."""
    command = [sys.executable, "-m", "rllib_hpo.cli", "train", "--algorithm", "sac-bold", "--steps", "40"]
    command += ["--wandb", "disabled", "--out", str(out), *words]
    command += [word for setting in TINY.split() for word in ("--set", setting)]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip installed the package into, entry points included."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, str(SOURCES)], check=True, timeout=250)
    return target


def test_installed_algorithm_and_task_are_known_by_name(installed: Path, tmp_path: Path) -> None:
    """Entry points are enough: nothing is imported by hand."""
    finished = _train(tmp_path / "run", installed, "--task", "swing-up", "--set", "boldness=2.0")
    assert finished.returncode == 0, finished.stderr
    (row, last) = read_rows(tmp_path / "run" / "results").to_pylist()
    assert (row["algorithm"], row["task"], row["env_id"]) == ("sac-bold", "swing-up", "Pendulum-v1")
    assert '"boldness":2.0' in last["config_json"]


def test_unknown_setting_of_it_is_named(installed: Path, tmp_path: Path) -> None:
    """Its settings class is validated like the built-in ones."""
    finished = _train(tmp_path / "run", installed, "--task", "swing-up", "--set", "boldnes=2.0")
    assert finished.returncode == 2
    assert "Did you mean 'boldness'?" in finished.stderr


@pytest.mark.parametrize("workers", ["local", "remote"])
def test_import_does_without_installation(workers: str, tmp_path: Path) -> None:
    """--import makes it known to the driver, and its config to remote runners."""
    config = tmp_path / "workers.yaml"
    config.write_text(f"num_env_runners: {int(workers == 'remote')}\n")
    words = ("--import", "hpo_bold", "--task", "swing-up", "--config", str(config))
    finished = _train(tmp_path / "run", SOURCES, *words)
    assert finished.returncode == 0, finished.stderr
    assert len(read_rows(tmp_path / "run" / "results")) == 2

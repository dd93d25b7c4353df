"""Test a package that adds algorithms and a task: installed for real, used by name, locally and on remote workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rllib_hpo.results import read_rows
from tests.experiments.lives import COMMANDS

SOURCES = Path(__file__).parent / "external"
TINY = (
    "hidden_units=8 train_batch_size_per_learner=8 warmup_steps=20 evaluation_every=40 evaluation_episodes=1"
)


def _train(out: Path, path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `rllib-hpo train` with `path` first on Python's path."""
    command = [sys.executable, "-m", "rllib_hpo.cli", "train", "--algorithm", "sac-bold", "--steps", "40"]
    command += ["--wandb", "disabled", "--out", str(out), *words]
    command += [word for setting in TINY.split() for word in ("--set", setting)]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package into a folder by pip, entry points included."""
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


@pytest.mark.parametrize(
    "workers",
    [pytest.param("local", marks=pytest.mark.exhaustive), pytest.param("remote", marks=pytest.mark.slow)],
)
def test_import_does_without_installation(workers: str, tmp_path: Path) -> None:
    """--import makes it known to the driver, and its config to remote runners."""
    config = tmp_path / "workers.yaml"
    config.write_text(f"num_env_runners: {int(workers == 'remote')}\n")
    words = ("--import", "hpo_bold", "--task", "swing-up", "--config", str(config))
    finished = _train(tmp_path / "run", SOURCES, *words)
    assert finished.returncode == 0, finished.stderr
    assert len(read_rows(tmp_path / "run" / "results")) == 2


def _rllib_hpo(installed: Path, folder: Path, *commands: str) -> None:
    """Run each `rllib-hpo COMMAND` in one process that finds the package by its entry points."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, *commands],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_algorithm_with_an_update_of_its_own(installed: Path, tmp_path: Path) -> None:
    """An ensemble is trained, resumed, evaluated, exported and reported like the built-in algorithms."""
    settings = " ".join(
        f"--set {setting}" for setting in [*TINY.split(), "update_to_data=2", "policy_delay=3"]
    )
    _rllib_hpo(
        installed,
        tmp_path,
        f"train --algorithm redq --task swing-up --steps 40 --out run --wandb disabled {settings}",
        "train --resume run --steps 80 --wandb disabled",
        "evaluate run --episodes 1",
        "export run --format safetensors --out policy",
        "report run --out report",
    )
    rows = read_rows(tmp_path / "run").to_pylist()
    assert [(row["algorithm"], row["env_steps"], row["updates"]) for row in rows] == [
        ("redq", 0, 0),
        ("redq", 40, 40),
        ("redq", 80, 120),
    ]
    assert "REDQ" in (tmp_path / "report" / "index.html").read_text()
    assert '"num_critics": 10' in (tmp_path / "policy.json").read_text()


@pytest.mark.slow
def test_a_sweep_of_it(installed: Path, tmp_path: Path) -> None:
    settings = ", ".join(setting.replace("=", ": ") for setting in TINY.split())
    (tmp_path / "sweep.yaml").write_text(
        "sweep: ensembles\ndescription: Two sizes.\nalgorithms: [redq]\ntasks: [swing-up]\nseeds: '0'\n"
        f"settings: {{steps: 80, {settings}}}\n"
        "variants:\n  default: {}\n  five: {settings: {num_critics: 5}}\n"
    )
    _rllib_hpo(installed, tmp_path, "sweep sweep.yaml --out out --wandb disabled")
    assert {row["variant"] for row in read_rows(tmp_path / "out").to_pylist()} == {"default", "five"}

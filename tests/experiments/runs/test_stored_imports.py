"""Test that runs store modules of --import, so that later commands find the environment without the option."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rllib_hpo.errors import SettingsError, UnknownNameError, UserError
from rllib_hpo.experiments.config.run_config import resolve, resolve_saved
from rllib_hpo.experiments.config.sweep_config import read_sweep
from rllib_hpo.experiments.sweeps.plan import SweepFiles
from rllib_hpo.experiments.sweeps.sweep import start_sweep
from rllib_hpo.results import config_hash, read_rows
from rllib_hpo.rllib.checkpointing import read_manifest
from rllib_hpo.tasks import find_task, import_modules, make_env
from tests.experiments.lives import COMMANDS

ROOT = Path(__file__).resolve().parents[3]
MODULE = """
import gymnasium as gym
gym.register("Swing-v0", "gymnasium.envs.classic_control.pendulum:PendulumEnv", max_episode_steps=30)
"""
SETTINGS = """
hidden_units: 8
train_batch_size_per_learner: 16
warmup_steps: 20
evaluation_every: 40
evaluation_episodes: 1
checkpoint_every: 40
env_config: {wrappers: [{action-repeat: {num_repeats: 2}}]}
"""


def python(folder: Path, *words: str, code: int = 0) -> str:
    """Return stdout and stderr of a process in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stderr
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a working directory with a module of environments, and a run that was given --import once."""
    folder = tmp_path_factory.mktemp("imports")
    (folder / "swings.py").write_text(MODULE)
    (folder / "tiny.yaml").write_text(SETTINGS)
    options = "--task Swing-v0 --import swings --config tiny.yaml --steps 40 --wandb disabled"
    python(folder, "-c", COMMANDS, f"train --algorithm sac-hpo {options} --out run")
    return folder


def test_a_run_and_its_checkpoint_hold_them(folder: Path) -> None:
    assert 'imports: ["swings"]' in (folder / "run" / "config.yaml").read_text()
    assert read_manifest(folder / "run" / "checkpoints" / "last")["imports"] == ["swings"]
    (row, *_) = read_rows(folder / "run").to_pylist()
    config = json.loads(row["config_json"])
    assert "imports" not in config  # what decides no number is not in its hash
    assert config_hash(config) == row["config_hash"]


@pytest.mark.slow
def test_every_command_finds_the_environment_again(folder: Path) -> None:
    said = python(
        folder,
        "-c",
        COMMANDS,
        "evaluate run --episodes 1",
        "convert run --out converted",
        "evaluate converted --episodes 1",
        "export run --format safetensors --out policy.safetensors",
        "train --resume run --steps 80 --wandb disabled",
    )
    assert said.count("sac-hpo on Swing-v0 after 40 steps") == 2
    assert read_manifest(folder / "run" / "checkpoints" / "last")["env_steps"] == 80
    assert read_manifest(folder / "converted")["imports"] == ["swings"]
    python(folder, "-c", COMMANDS, "policy-shape policy.safetensors --dims 0,0 --out shape.png")


@pytest.mark.slow
def test_a_served_policy_finds_it_with_its_wrappers(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    python(folder, "-c", COMMANDS, "export run --format onnx --out policy.onnx")
    script = str(ROOT / "notebooks" / "serve_policy.py")
    assert "sac-hpo on Swing-v0" in python(folder, script, "policy.onnx")
    said = python(tmp_path, script, str(folder / "policy.onnx"), code=1)
    assert "error: Swing-v0 of this policy needs a module that is not here: No module named 'swings'" in said


@pytest.mark.slow
def test_a_module_that_is_gone_is_named(folder: Path, tmp_path: Path) -> None:
    for command in (f"evaluate {folder / 'run'}", f"train --resume {folder / 'run'}"):
        said = python(tmp_path, "-c", COMMANDS, command, code=2)
        assert "needs the module 'swings' (--import), which cannot be imported: " in said
        assert "to PYTHONPATH" in said


def test_trials_of_a_sweep_hold_them(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    file = tmp_path / "sweep.yaml"
    import_modules(["swings"])
    file.write_text("sweep: s\nalgorithms: [sac]\ntasks: [Swing-v0]\nseeds: 0\n")
    grid, files = read_sweep(file), SweepFiles(tmp_path / "out")
    start_sweep(grid, file, files, ["swings"])
    assert resolve_saved(files.trial(grid.trials[0].name).config, {}).imports == ("swings",)


def test_a_configuration_file_may_name_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    file = folder / "with-imports.yaml"
    file.write_text("imports: [swings]\ntask: Swing-v0\n")
    assert resolve({"imports": ["json"]}, file).imports == ("swings", "json")
    file.write_text("imports: swings\n")
    with pytest.raises(SettingsError, match="imports='swings' must be a list of module names"):
        resolve({}, file)


def test_an_unknown_id_names_the_remedy() -> None:
    for function in (find_task, make_env):
        with pytest.raises(UnknownNameError, match=r"--import PACKAGE.*PACKAGE:ID"):
            function("NoSuch-v0")


def test_a_module_that_breaks_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_swings.py").write_text("1 / 0\n")
    with pytest.raises(
        UserError, match="--import broken_swings: it raised ZeroDivisionError: division by zero"
    ):
        import_modules(["broken_swings"])


@pytest.mark.exhaustive
@pytest.mark.slow
def test_remote_runners_import_them(folder: Path) -> None:
    (folder / "remote.yaml").write_text(f"{SETTINGS}num_env_runners: 1\n")
    options = "--task Swing-v0 --import swings --config remote.yaml --steps 40 --wandb disabled"
    python(folder, "-c", COMMANDS, f"train --algorithm sac {options} --out remote")
    python(folder, "-c", COMMANDS, "train --resume remote --steps 80 --wandb disabled")
    assert read_manifest(folder / "remote" / "checkpoints" / "last")["env_steps"] == 80

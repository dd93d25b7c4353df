"""Test that files of each release can be read: checkpoints, runs, sweeps, rows and exported policies.

Every command reads them twice: as this version, and as one with an additional setting.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rllib_hpo.algorithms.registry import complete_config
from rllib_hpo.deployment import FORMATS, load_policy_file
from rllib_hpo.experiments.sweeps.plan import SweepFiles, read_plan
from rllib_hpo.results import check, read_rows
from rllib_hpo.rllib.checkpointing import read_manifest
from rllib_hpo.rllib.trained_policy import load_policy
from rllib_hpo.settings import SACHPOSettings, complete_settings
from tests.experiments.lives import COMMANDS
from tests.test_cli import run

DATA = Path(__file__).resolve().parents[2] / "data"
RELEASES = sorted(path.name for path in DATA.iterdir() if (path / "release.tar.xz").is_file())
RUNS = ("sac", "sac-nf", "sac-hpo", "sac-hpo-old", "wrapped")
OBSERVATIONS = np.array([[1, 0, 0], [0, 1, 2], [-1, 0, -3], [0.6, -0.8, 0.5]], np.float32)
LATER = '''
"""rllib_hpo as a later version would be: every algorithm has one setting more."""
from typing import Annotated
from pydantic import Field
import sys
from rllib_hpo.algorithms.registry import algorithm_names, find_settings, register_algorithm

for name in algorithm_names():
    model = find_settings(name)
    new = {"__module__": model.__module__, "__doc__": model.__doc__, "novelty": 3}
    new["__annotations__"] = {"novelty": Annotated[int, Field(ge=1, description="New.")]}
    later = type(model.__name__, (model,), new)
    register_algorithm(name, later)
    setattr(sys.modules[model.__module__], model.__name__, later)
'''


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Copy the files of a release."""
    with tarfile.open(DATA / request.param / "release.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.copy(DATA / request.param / "expected.json", tmp_path)
    return tmp_path


def expected(release: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((release / "expected.json").read_text())
    return content


def later(release: Path, *commands: str) -> str:
    """Run each `rllib-hpo COMMAND` of the later version in one process; all must succeed. Return their output."""
    (release / "later.py").write_text(LATER)
    code = "import later\n" + COMMANDS
    done = subprocess.run(
        [sys.executable, "-c", code, *commands],
        cwd=release,
        env={**os.environ, "PYTHONPATH": str(release), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_one() -> None:
    assert RELEASES


def test_policies_act_as_they_did(release: Path) -> None:
    for name, known in expected(release)["runs"].items():
        policy = load_policy(release / "runs" / name / "checkpoints" / "last")
        actions = policy.actor.act(torch.from_numpy(OBSERVATIONS)).numpy()
        np.testing.assert_allclose(actions, known["actions"], atol=1e-6)
        assert policy.manifest["env_steps"] == expected(release)["env_steps"]


def test_rows_are_all_there(release: Path, tmp_path: Path) -> None:
    for name, known in expected(release)["runs"].items():
        table = read_rows(release / "runs" / name)
        assert table.num_rows == known["rows"]
        assert check(table) == []
    assert read_rows(release / "sweep").num_rows == expected(release)["sweep"]["rows"]
    roots = [str(release / "runs" / name) for name in RUNS[:3]]
    assert run("results", "add", str(tmp_path / "all"), *roots) == 0
    assert run("results", "compact", str(tmp_path / "all")) == 0
    assert run("results", "show", str(tmp_path / "all")) == 0
    assert read_rows(tmp_path / "all").num_rows == 9


def test_exported_policies_act_as_they_did(release: Path) -> None:
    policy = load_policy_file(release / "exported" / "policy.safetensors")
    program = torch.export.load(release / "exported" / "policy.pt2").module()
    obs = torch.from_numpy(OBSERVATIONS)
    unit = np.array(expected(release)["runs"]["sac-hpo"]["actions"])
    for actions in (policy(obs), program(obs)):  # Pendulum's actions are within [-2, 2]
        np.testing.assert_allclose(actions.numpy(), 2 * unit, atol=1e-5)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(release / "exported" / "policy.onnx")
    np.testing.assert_allclose(session.run(None, {"obs": OBSERVATIONS})[0], 2 * unit, atol=1e-5)


@pytest.mark.parametrize("name", ["sac", "sac-hpo-old", "wrapped"])
def test_a_run_goes_on(name: str, release: Path) -> None:
    directory = release / "runs" / name
    assert run("train", "--resume", str(directory), "--steps", "180", "--wandb", "disabled") == 0
    assert read_manifest(directory / "checkpoints" / "last")["env_steps"] == 180
    rows = read_rows(directory).to_pylist()
    assert [row["env_steps"] for row in rows] == [0, 60, 120, 180]


def test_a_sweep_directory_is_read(release: Path) -> None:
    plan = read_plan(SweepFiles(release / "sweep"))
    assert len(plan["trials"]) == 2
    assert run("sweep", "--resume", str(release / "sweep"), "--wandb", "disabled") == 0  # all is done
    assert run("report", str(release / "sweep"), "--out", str(release / "report")) == 0
    assert (release / "report" / "index.html").is_file()


def test_a_setting_that_came_later_has_its_default(release: Path) -> None:
    """The example is `export` of a checkpoint from before `cuda_graph`."""
    manifest = release / "runs" / "sac-hpo" / "checkpoints" / "last" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["config"]["cuda_graph"]
    manifest.write_text(json.dumps(content))
    for file_format in FORMATS:
        out = release / f"policy.{file_format}"
        assert run("export", str(manifest.parent), "--format", file_format, "--out", str(out)) == 0
    assert load_policy_file(release / "policy.safetensors").metadata.settings["cuda_graph"] is True
    assert complete_settings(SACHPOSettings, {"lr": 0.1})["lr"] == 0.1
    assert complete_config({"algorithm": "of another package", "x": 1})["x"] == 1


def test_a_later_version_exports(release: Path) -> None:
    """Settings are unpickled on both API stacks."""
    names = ("sac-hpo", "sac-hpo-old")
    later(release, *(f"export runs/{name} --format safetensors --out {name}.safetensors" for name in names))
    for name in names:
        assert '"novelty": 3' in (release / f"{name}.safetensors.json").read_text()


@pytest.mark.slow
def test_a_later_version_does_the_rest(release: Path) -> None:
    commands: list[str] = []
    for name in ("sac-hpo", "sac-hpo-old"):
        commands += [
            f"convert runs/{name} --out converted-{name}",
            f"evaluate converted-{name} --episodes 1",
            f"policy-shape runs/{name} --dims 0,0 --out {name}.png",
            f"train --resume runs/{name} --steps 180 --wandb disabled",
        ]
    said = later(release, *commands, "policy-shape exported/policy.safetensors --dims 0,0 --out p.png")
    assert said.count("sac-hpo on Pendulum-v1 after 120 steps") == 2
    for name in ("sac-hpo", "sac-hpo-old"):
        stored = read_manifest(release / "runs" / name / "checkpoints" / "last")
        assert (stored["env_steps"], stored["config"]["novelty"]) == (180, 3)
    # Rows of both versions are of one configuration to the later one.
    code = "import later; from rllib_hpo.results import *; print(check(read_rows('runs/sac-hpo')))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=release, capture_output=True, text=True, check=True, timeout=60
    )
    assert "configurations" not in done.stdout


@pytest.mark.slow
def test_a_sweep_goes_on(release: Path) -> None:
    words = ("sweep", "--resume", str(release / "sweep"), "--steps", "180", "--wandb", "disabled")
    assert run(*words) == 0
    assert read_rows(release / "sweep").num_rows == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recording", "case"),
    [
        ("bitwise.json", "sac-auto/new"),
        ("bitwise.json", "sac-hpo-tempering-penalty/new"),
        ("bitwise-tasks.json", "sac-nf/old/Hopper-v4"),
        ("bitwise-tasks.json", "sac-hpo/new/Hopper-v4"),
    ],
)
def test_training_gives_the_numbers_of_the_release(recording: str, case: str) -> None:
    """They are bitwise equal on the recorded CPU with the recorded libraries."""
    spec = importlib.util.spec_from_file_location("bitwise", DATA / "bitwise.py")
    assert spec is not None
    assert spec.loader is not None
    bitwise = importlib.util.module_from_spec(spec)
    sys.modules["bitwise"] = bitwise  # where the types of its named tuples are looked up
    spec.loader.exec_module(bitwise)
    if not (DATA / RELEASES[-1] / recording).is_file():
        pytest.skip("no numbers were recorded at that release")
    recorded = bitwise.load(RELEASES[-1], recording)
    if recorded["machine"] != bitwise.machine():
        pytest.skip("the numbers were recorded on another machine or with other libraries")
    assert bitwise.differences(recorded["cases"][case], bitwise.train(case)) == []

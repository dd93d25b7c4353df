"""Test the basis of a newcomer's first commands: dependencies, the constraints file and the make targets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
TARGETS = [
    "help",
    "setup",
    "demo",
    "lint",
    "format",
    "test",
    "test-slow",
    "test-all",
    "support-page",
    "zoo",
    "evidence-report",
    "pictures",
    "docs",
    "docs-serve",
    "bench",
    "gpu-check",
    "constraints",
    "clean",
]


def make(*arguments: str, folder: Path = ROOT) -> str:
    """Return make's output, without the flags of a make that runs these tests."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def pins() -> dict[str, Version]:
    """Return the version of each package in constraints.txt, by canonical name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


@pytest.mark.parametrize("line", DIRECT)
def test_direct_dependency_is_pinned_within_its_range(line: str) -> None:
    requirement = Requirement(line)
    pinned = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned)


def test_constraints_install_anywhere() -> None:
    """It has only plain, sorted `name==version` lines: no paths, no addresses, no builds of one index."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == sorted(lines)
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", line), line


def test_make_targets_exist() -> None:
    make("--dry-run", *TARGETS)


def test_make_without_a_target_lists_them() -> None:
    assert [line.split()[1] for line in make().splitlines()] == TARGETS


def test_second_demo_does_not_touch_the_first(tmp_path: Path) -> None:
    """The demo's folder is the first free one of runs/demo, runs/demo-2, ..."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def folder() -> str:
        return re.findall(r"--out (\S+)", make("--dry-run", "demo", folder=tmp_path))[0]

    assert folder() == "runs/demo"
    (tmp_path / "runs/demo").mkdir(parents=True)
    assert folder() == "runs/demo-2"
    (tmp_path / "runs/demo-2").mkdir()
    assert folder() == "runs/demo-3"


def test_readme_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text


# --- the wheel ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it, as `python -m build` does."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    assert len(list(out.glob("*.tar.gz"))) == 1
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an empty environment, and return its folder of programs.

    Only the dependencies come from the environment of the tests, whose editable installation stays out: Python does not
    process the .pth files of a folder that a .pth file names.
    """
    import ray

    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    python = folder / "bin" / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        str(wheel),
    ]
    subprocess.run(pip, check=True, timeout=120)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{Path(ray.__file__).parents[1]}\n")
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wheel_works_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("dummy")
    (tmp_path / ".ray" / "auth_token").chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # The shell is named, not found out from the processes above, of which a job in the background has none.
    environment |= {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    rllib_hpo = str(installed / "rllib-hpo")
    where = "import rllib_hpo; print(rllib_hpo.__file__, rllib_hpo.__version__)"
    file, version = run(str(installed / "python"), "-c", where).split()
    assert Path(file).is_relative_to(installed.parent)
    assert run(rllib_hpo, "--version").split() == ["rllib-hpo", version] == ["rllib-hpo", PROJECT["version"]]
    assert "complete" in run(rllib_hpo, "--show-completion", "bash")
    tiny = "hidden_units=8 train_batch_size_per_learner=8 warmup_steps=100 evaluation_every=100 evaluation_episodes=1"
    options = [word for setting in tiny.split() for word in ("--set", setting)]
    run(
        rllib_hpo,
        "train",
        "--algorithm",
        "sac-hpo",
        "--task",
        "Pendulum-v1",
        "--steps",
        "200",
        "--out",
        "run",
        *options,
    )
    run(rllib_hpo, "results", "check", "run")
    run(rllib_hpo, "report", "run", "--out", "report")
    assert "SAC-HPO" in (tmp_path / "report" / "index.html").read_text()
    assert "eight-tasks" in run(rllib_hpo, "sweeps")
    assert "sac-hpo-hopper" in run(rllib_hpo, "zoo")
    run(rllib_hpo, "enjoy", "sac-hpo-pendulum", "--video", "film.gif")
    run(rllib_hpo, "cluster", "init", "--provider", "aws", "--out", "cluster")
    assert "shipped/tune_configs/smoke.yaml" in run(
        rllib_hpo, "cluster", "check", "cluster/gpu.yaml", "--sweep", "smoke"
    )
    assert (tmp_path / "cluster" / "package" / "constraints.txt").read_text() == (
        ROOT / "constraints.txt"
    ).read_text()

"""Test the recorded origin of rows: git and package metadata, without heavy imports."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from rllib_hpo.results.provenance import git_commit, provenance, versions


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Make a package folder with one committed module, in a repository of its own."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path / "repository" / "package"
    folder.mkdir(parents=True)
    (folder / "module.py").write_text("x = 1\n")
    git(tmp_path, "init", "-q", "repository")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def test_commit_of_a_clean_checkout(package: Path) -> None:
    (package.parent / "notes.txt").write_text("outside the package, so of no consequence")
    assert git_commit(package) == git(package, "rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["module.py", "new.py"])
def test_changed_or_new_modules_are_dirty(package: Path, name: str) -> None:
    (package / name).write_text("x = 2\n")
    assert git_commit(package) == git(package, "rev-parse", "HEAD") + "-dirty"


def test_a_repository_around_an_installed_package_is_not_its_checkout(package: Path) -> None:
    installed = package.parent / ".venv" / "site-packages" / "package"
    installed.mkdir(parents=True)
    (installed / "module.py").write_text("x = 1\n")
    assert git_commit(installed) == ""


def test_git_variables_of_a_hook_do_not_mislead(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert len(git_commit(package)) == 40


def test_without_git_there_is_no_commit(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_commit(package) == ""


def test_versions_are_those_installed() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == version("numpy")
    assert found["ray"] == version("ray")
    columns = provenance("cpu")
    assert columns.keys() == {"device", "git_commit", "versions"}
    assert json.loads(columns["versions"]) == found


def test_nothing_is_imported_to_learn_its_version() -> None:
    script = (
        "import sys; from rllib_hpo.results.provenance import provenance; before = set(sys.modules); "
        "provenance('cpu'); "
        "print({'ray', 'torch', 'numpy', 'gymnasium', 'mujoco', 'pybullet'} & (set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"

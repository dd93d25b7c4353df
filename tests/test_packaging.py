"""Test the basis of a newcomer's first commands: dependencies, the constraints file and the make targets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
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
    "docs",
    "docs-serve",
    "bench",
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


@pytest.mark.parametrize("target", TARGETS)
def test_make_target_exists(target: str) -> None:
    make("--dry-run", target)


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


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="no README yet")
def test_readme_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text

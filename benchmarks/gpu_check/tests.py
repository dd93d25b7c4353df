"""Run every test that has a GPU form (`pytest -m gpu`), or those of `tests/learning/test_bulk.py` on a CPU."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.rows import Row
from benchmarks.machine import ROOT

FOLDERS = ("samplers", "networks", "kernels", "optim", "replay", "algorithms", "learning", "test_streams.py")
"""Tests that need neither ray nor environments."""
PROCESSES = 6
"""Test processes that share the GPU."""


class Recorder:
    """Report the outcome of every test that ran, as soon as it has ended."""

    def __init__(self, emit: Callable[[Row], None]) -> None:
        self._emit = emit

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Report a call, or a failed setup."""
        name = report.nodeid.removeprefix("tests/")
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            said = crash.message if crash is not None else str(report.longrepr)
            self._emit(Row(name, "FAILED", detail=said.split("\n")[0][:300]))
        elif report.when == "call":
            self._emit(Row(name, "skipped" if report.skipped else "passed"))


def files_with_gpu_forms() -> list[str]:
    """Return the test files that mark tests for a GPU; others may import what is not installed there."""
    found = []
    for folder in FOLDERS:
        path = ROOT / "tests" / folder
        files = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
        found += [str(file.relative_to(ROOT)) for file in files if "tests.devices" in file.read_text()]
    return found


def run(device: str, emit: Callable[[Row], None], names: list[str]) -> None:
    """Run the tests."""
    if importlib.util.find_spec("pytest") is None:
        emit(Row("tests", "skipped", detail="pytest is not installed"))
        return
    import pytest

    os.chdir(ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # whatever else is installed there
    sys.path.insert(0, str(Path.cwd()))
    # `--noconftest`, since tests/conftest.py needs hypothesis; no plugin of the project's configuration is required.
    options = ["--noconftest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "--tb=short"]
    if device == "cpu":
        options += ["-k", "sac-hpo-cpu", "tests/learning/test_bulk.py"]
    else:
        options += ["-m", "gpu", *files_with_gpu_forms()]
        if importlib.util.find_spec("xdist") is not None:
            options += ["-p", "xdist.plugin", "-n", str(PROCESSES)]
    code = pytest.main(options, plugins=[Recorder(emit)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        emit(Row("tests", "FAILED", detail=f"pytest ended with {code!r}"))

"""Set the environment of every test before torch, Ray or Weights & Biases are imported."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

DEFAULTS = {
    "OMP_NUM_THREADS": "1",  # equal numbers of threads give equal numbers
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's own 15 starves workers wherever anything else runs
    "WANDB_MODE": "offline",
}
for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)

os.fsync = lambda fd: None
"""Tests kill processes and not machines, so nothing they see depends on a flush, and a checkpoint takes twenty."""

settings.register_profile("suite", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="module")
def no_ray_left_behind() -> Iterator[None]:
    """Fail the file that leaves Ray running in this process, instead of the next one."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
        pytest.fail("this file left Ray running")


REAL_RUNS = "tests/cluster/"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report how long the tests that bring clusters up took; cluster/README.md has the figure of one day."""
    reports = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.nodeid.startswith(REAL_RUNS)
    ]
    ran = sum(report.when == "call" and not report.skipped for report in reports)
    if ran:
        summed = sum(report.duration for report in reports)
        passed = max(report.stop for report in reports) - min(report.start for report in reports)
        line = f"{REAL_RUNS}: {ran} tests took {summed:.0f} s, {passed:.0f} s from the first's start to the last's end"
        terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Report last which tests of several machines were skipped, and why, since that is easily overlooked."""
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(
        session.config, "workerinput"
    ):  # a worker of pytest-xdist has nobody to tell
        return
    reasons = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in reporter.stats.get("skipped", [])
        if "cluster" in report.keywords and isinstance(report.longrepr, tuple)
    )
    for reason, number in reasons.items():
        reporter.write_line(f"{number} tests of several machines were skipped: {reason}")

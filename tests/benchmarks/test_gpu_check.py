from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import machine, train_speed
from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import rows, tests, with_ray
from benchmarks.gpu_check.__main__ import Part
from benchmarks.gpu_check.rows import Row

NOT_NEEDED = [
    "ray",
    "gymnasium",
    "mujoco",
    "scipy",
    "pyarrow",
    "pandas",
    "wandb",
    "yaml",
    "typer",
    "hypothesis",
]


def run_without_packages(tmp_path, *arguments):
    """Run Python in a process where packages are missing, as they are in all processes that it starts."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({NOT_NEEDED!r}))\n"
    )
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=machine.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_needs_neither_ray_nor_environments(tmp_path):
    """A dry run lists every registered algorithm, the parts and what is aimed at."""
    done = run_without_packages(tmp_path, "-m", "benchmarks.gpu_check", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "sac-hpo-lagrangian" in done.stdout
    assert "UPDATES_PER_S = {'sac': 8000, 'sac-hpo, K = 3': 4000}" in done.stdout
    assert "compiled: compiled updates in a graph" in done.stdout


def test_test_files_with_gpu_forms_need_neither(tmp_path):
    """They are collected where ray, gymnasium and hypothesis are missing, and hold every kind of check."""
    options = ["--noconftest", "-q", "--collect-only", "-o", "addopts=", "-m", "gpu"]
    done = run_without_packages(tmp_path, "-m", "pytest", *options, *tests.files_with_gpu_forms())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    for name in (
        "test_a_graph_that_draws_from_the_replay_equals_eager_updates[sac-hpo-lagrangian]",
        "test_gradients_are_those_of_finite_differences[gated_leapfrog-cuda]",
        "test_updates_are_those_of_a_cpu[td3-cuda]",
        "test_a_replay_moves_to_the_host_when_it_cannot_grow",
        "test_what_does_not_fit_says_what_to_do",
        "test_streams_cross_between_devices[cpu-cuda]",
    ):
        assert name in done.stdout


def test_parts_end_at_their_limit_and_the_next_runs(tmp_path, monkeypatch):
    """What a part found before it hung or died counts, and its own processes end with it."""
    code = """
import subprocess, sys, time
from pathlib import Path
from benchmarks.gpu_check.rows import Row, append
name = sys.argv[sys.argv.index("--part") + 1]
rows = Path(sys.argv[sys.argv.index("--rows") + 1])
append(rows, Row("first", "passed"))
if name == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    append(rows, Row("child", "measured", child.pid))
    time.sleep(600)
sys.exit(3 if name == "dies" else 0)
"""
    script = tmp_path / "part.py"
    script.write_text(code)
    launch = subprocess.Popen
    monkeypatch.setenv("PYTHONPATH", str(machine.ROOT))
    monkeypatch.setattr(
        gpu_check.subprocess,
        "Popen",
        lambda command, **options: launch([sys.executable, str(script), *command[3:]], **options),
    )
    parts = {
        name: Part(lambda job: None, limit, name)
        for name, limit in (("hangs", 8), ("dies", 60), ("ends", 60))
    }
    out = tmp_path / "check.json"
    content = gpu_check.check(parts, 60, "cpu", ["sac"], out)
    assert {name: part["status"] for name, part in content["parts"].items()} == {
        "hangs": "FAILED: stopped at its time limit",
        "dies": "FAILED: its process ended with 3",
        "ends": "passed",
    }
    assert json.loads(out.read_text()) == content
    first, child = content["parts"]["hangs"]["rows"]
    assert first["outcome"] == "passed"
    assert not is_running(int(child["value"]))


def is_running(pid):
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state in "ZX":
            return False
        time.sleep(0.1)
    return True


def test_the_whole_ends_in_time(tmp_path, monkeypatch):
    """A part gets what is left of the whole's seconds, and so none that begins too late any."""
    limits = []

    def run_part(name, limit_s, *_):
        limits.append(limit_s)
        time.sleep(0.2)
        return {"status": "passed", "seconds": 0.2, "limit_s": limit_s, "rows": []}

    monkeypatch.setattr(gpu_check, "run_part", run_part)
    parts = {name: Part(lambda job: None, 1.0, name) for name in "abc"}
    gpu_check.check(parts, gpu_check.ENDING_S + 0.3, "cpu", [], tmp_path / "check.json")
    assert limits[0] <= 0.3
    assert limits[1] <= 0.1
    assert limits[2] == 0


def test_all_parts_together_keep_to_the_limits():
    for parts, limit in ((gpu_check.PARTS, gpu_check.LIMIT_S), (gpu_check.RAY_PARTS, gpu_check.RAY_LIMIT_S)):
        assert sum(part.limit_s for part in parts.values()) + gpu_check.ENDING_S <= limit
    assert gpu_check.LIMIT_S < 360
    assert gpu_check.RAY_LIMIT_S < 240


def test_rows_are_told_from_their_targets():
    assert Row.at_least("speed", 5.0, 4.0).outcome == "reached"
    assert Row.at_least("speed", 3.0, 4.0).outcome == "MISSED"
    assert Row.at_least("speed", 3.0, None).outcome == "measured"
    assert Row.at_most("kernels", 61, 60).outcome == "MISSED"
    assert Row.agreement("distance", float("nan"), 1e-4).outcome == "FAILED"
    assert Row.agreement("distance", 2e-4, 1e-4).outcome == "FAILED"
    assert rows.are_good([Row.at_least("speed", 3.0, 4.0)])
    assert not rows.are_good([Row.agreement("distance", 2e-4, 1e-4)])


def test_the_table_counts_tests_and_shows_what_failed(tmp_path):
    file = tmp_path / "rows.jsonl"
    for row in (
        Row("one", "passed"),
        Row("two", "passed"),
        Row("bad", "FAILED", detail="a | b"),
        Row.at_least("sac", 9e3, 8e3),
    ):
        rows.append(file, row)
    with file.open("a") as cut_off:
        cut_off.write('{"name": "th')
    found = [row.__dict__ for row in rows.read(file)]
    part = {"rows": found, "seconds": 61.2, "limit_s": 90, "status": "FAILED"}
    assert rows.table({"tests": part}).splitlines()[2:] == [
        "| tests | 2 tests |  |  | passed |",
        "| tests | bad |  |  | FAILED: a / b |",
        "| tests | sac | 9,000 | >= 8000 | reached |",
        "| tests | in all | 61 s | <= 90 s | FAILED |",
    ]


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no CUDA device here"):
        gpu_check.main(["--out", str(tmp_path / "check.json")])
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="There is no algorithm 'sacc'; known are sac, "):
        gpu_check.main(["--algorithms", "sacc", "--device", "cpu"])


def test_whole_runs_are_compared_with_their_targets(monkeypatch, tmp_path):
    """The example is what `train_speed --runners` and `grid` write."""

    def write(content):
        def main(arguments):
            Path(arguments[arguments.index("--out") + 1]).write_text(json.dumps(content))

        return main

    speeds = {"one process": {"steps_per_s": 900.0}, "4 runners": {"steps_per_s": 1_600.0}}
    monkeypatch.setattr(train_speed, "main", write({"updates_per_step": {"1": speeds}}))
    trials = {"1": {"steps_per_s": 1.0}, "5": {"steps_per_s": 2.5}}
    for row in trials.values():
        row["times_fewest"] = {"value": row["steps_per_s"]}
    monkeypatch.setattr("benchmarks.grid.main", write({"trials": trials}))
    found = []
    with_ray.hopper("cuda", found.append, tmp_path)
    with_ray.trials("cuda", found.append, tmp_path)
    assert [(row.value, row.outcome) for row in found if row.target] == [
        (1_600.0, "reached"),
        (2.5, "MISSED"),
    ]


@pytest.mark.slow
def test_it_passes_on_a_cpu(tmp_path):
    """Tests, speeds and compiled updates of two algorithms, without ray or environments."""
    out = tmp_path / "check.json"
    options = ("--device", "cpu", "--algorithms", "td3", "sac", "--limit", "900", "--out", str(out))
    done = run_without_packages(tmp_path, "-m", "benchmarks.gpu_check", *options)
    assert done.returncode == 0, done.stdout
    parts = json.loads(out.read_text())["parts"]
    assert [part["status"] for part in parts.values()] == ["passed"] * 3
    names = {row["name"] for part in parts.values() for row in part["rows"]}
    assert {
        "td3, eager, updates/s",
        "sac, floor, updates/s",
        "td3, compiled, largest distance from eager",
    } <= names

"""Try the package with the oldest and newest versions it admits, and beside packages of environments.

    python -m benchmarks.versions [CASE ...]

needs `uv` on the PATH, which also finds or fetches the Pythons. Each case gets a virtual environment of its own below
--folder (about 6 GB each, most of it torch, shared by hard links through uv's cache), into which uv installs this
checkout as a user would. There a run is trained, resumed, evaluated, exported and reported; cases that are not about an
environment also run a sweep on Tune. It writes benchmarks/results/versions.json, in which cases that are run again
replace their earlier results, and docs/benchmarks/versions.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "versions.json"
PAGE = ROOT / "docs" / "benchmarks" / "versions.md"
SHOWN = ("ray", "torch", "gymnasium", "numpy", "pandas", "mujoco", "pyarrow", "wandb", "scipy", "pydantic")
EXTRAS = "export,search"
TIMEOUT_S = 1_800
TINY = {
    "hidden_units": 16,
    "train_batch_size_per_learner": 16,
    "replay_capacity": 10_000,
    "warmup_steps": 40,
    "evaluation_every": 100,
    "evaluation_episodes": 1,
    "evaluation_max_episode_steps": 100,
    "checkpoint_every": 100,
    "steps_per_iteration": 50,
}
SWEEP = f"""\
sweep: versions
algorithms: [sac, sac-hpo]
tasks: [Pendulum-v1]
seeds: 0
settings: {json.dumps({**TINY, "steps": 200})}
"""


COMMANDS = """
import json, sys
from rllib_hpo.cli import main
for name, *words in json.load(sys.stdin):
    print("begin:", name, flush=True)
    sys.argv = ["rllib-hpo", *words]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""
"""Program that runs commands of `rllib-hpo` in one process; the first that fails ends it."""


@dataclass(frozen=True)
class Case:
    """One environment to install into, and what to run there.

    Attributes:
        name: Its name on the command line and in the table.
        python: Version of Python.
        packages: What is installed beside this package.
        resolution: How uv chooses versions: `highest`, or `lowest-direct` for the oldest that are admitted.
        task: Environment to train in; "" runs a sweep on Tune, too.
        module: Module that registers it, if any.
    """

    name: str
    python: str = "3.11"
    packages: tuple[str, ...] = ()
    resolution: str = "highest"
    task: str = ""
    module: str = ""


def _env(package: str, task: str, module: str = "") -> Case:
    return Case(package, packages=(package,), task=task, module=module)


CASES = (
    Case("newest, Python 3.11"),
    Case("oldest, Python 3.11", resolution="lowest-direct"),
    Case("newest, Python 3.12", "3.12"),
    Case("newest, Python 3.13", "3.13"),
    Case("oldest, Python 3.13", "3.13", resolution="lowest-direct"),
    Case("newest with numpy 1.26 and pandas 2", packages=("numpy<2", "pandas<3")),
    Case("oldest pandas", packages=("pandas==1.5.3", "numpy<2")),
    _env("gymnasium-robotics", "FetchReachDense-v4", "gymnasium_robotics"),
    _env("mo-gymnasium", "mo-halfcheetah-v5", "mo_gymnasium"),
    _env("shimmy[dm-control]", "dm_control/cartpole-swingup-v0", "shimmy"),
    _env("panda-gym", "PandaReachDense-v3", "panda_gym"),
    _env("gymnasium[box2d]", "LunarLanderContinuous-v3"),
    _env("highway-env", "racetrack-v0", "highway_env"),
)


def steps(case: Case, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Commands of `rllib-hpo` by the name of what they show."""
    run = str(folder / "run")
    settings = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    modules = ["--import", case.module] if case.module else []
    task = ["--algorithm", "sac-hpo", "--task", case.task or "HalfCheetah-v5", *modules]
    yield "train", ["train", *task, "--steps", "200", "--out", run, "--wandb", "offline", *settings]
    yield "resume", ["train", "--resume", run, "--steps", "300", "--wandb", "offline"]
    yield "evaluate", ["evaluate", run, "--episodes", "1"]
    yield "export", ["export", run, "--format", "onnx", "--out", str(folder / "policy.onnx")]
    yield "report", ["report", run, "--out", str(folder / "report")]
    if not case.task:
        (folder / "sweep.yaml").write_text(SWEEP)
        sweep = [str(folder / "sweep.yaml"), "--out", str(folder / "sweep"), "--wandb", "disabled"]
        yield "sweep", ["sweep", *sweep]


def try_case(case: Case, folder: Path) -> dict[str, Any]:
    """Install a case and run its commands; the first that fails ends it."""
    environment = folder / "".join(c if c.isalnum() else "-" for c in case.name)
    python = environment / "bin" / "python"
    shutil.rmtree(environment, ignore_errors=True)
    print(f"{case.name}: installing", flush=True)
    made = _run(["uv", "venv", "-q", "--python", case.python, str(environment)])
    if made.returncode == 0:
        wanted = [f"{ROOT}[{EXTRAS}]", *case.packages]
        install = ["uv", "pip", "install", "-q", "--python", str(python), "--resolution", case.resolution]
        made = _run([*install, *wanted])
    if made.returncode:
        return {
            "python": case.python,
            "packages": list(case.packages),
            "passed": [],
            "failed": f"install: {_reason(made)}",
        }
    about = {"python": case.python, "packages": list(case.packages), "versions": _versions(python)}
    with tempfile.TemporaryDirectory() as work:
        commands = [[name, *words] for name, words in steps(case, Path(work))]
        print(f"{case.name}: running {', '.join(name for name, *_ in commands)}", flush=True)
        done = _run([str(python), "-c", COMMANDS], cwd=work, text=json.dumps(commands))
    begun = [line.removeprefix("begin: ") for line in done.stdout.splitlines() if line.startswith("begin: ")]
    if done.returncode == 0:
        return {**about, "passed": begun, "failed": ""}
    return {**about, "passed": begun[:-1], "failed": f"{begun[-1] if begun else 'import'}: {_reason(done)}"}


def _run(words: Sequence[str], cwd: str | None = None, text: str = "") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    return subprocess.run(
        words,
        cwd=cwd,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The sentence that a command ended with, or its last line."""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    sentence = next((line for line in lines if line.startswith("Error: ")), lines[-1] if lines else "")
    return f"{sentence.removeprefix('Error: ')} (exit code {done.returncode})"


def _versions(python: Path) -> dict[str, str]:
    program = (
        "import importlib.metadata as m, json, platform\n"
        f"names = {SHOWN!r}\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({'python': platform.python_version(), **{n: found.get(n, '') for n in names}}))"
    )
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def page(results: dict[str, Any]) -> str:
    """The page of the documentation."""
    versions = [
        [name, *(one["versions"].get(key, "") for key in ("python", *SHOWN)), _outcome(one)]
        for case in CASES
        if not case.task and "versions" in (one := results.get(name := case.name, {}))
    ]
    packages = [
        [case.name, f"`{case.task}`", _outcome(results[case.name])]
        for case in CASES
        if case.task and case.name in results
    ]
    return (
        "# Versions and neighbours\n\nWhat was tried by `python -m benchmarks.versions` "
        "(`benchmarks/results/versions.json`), each in a virtual environment of its own into which `uv` installed this "
        "package as a user would: 200 steps trained, resumed to 300, evaluated, exported to ONNX and reported, and a "
        "sweep of two trials on Tune.\n\n"
        + _table(["", "Python", *SHOWN, "result"], versions)
        + "\nThe versions that all tests pass with are those of `constraints.txt`.\n\n## Packages of environments\n\n"
        "Installed beside this package, without constraints. Where a run cannot begin, it ends in the sentence that is "
        "shown, exit code 2.\n\n" + _table(["package", "environment", "result"], packages)
    )


def _outcome(one: dict[str, Any]) -> str:
    return one["failed"] or f"works: {', '.join(one['passed'])}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def main() -> None:
    """Try the cases that are named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"of {', '.join(case.name for case in CASES)}"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rllib-hpo-versions")
    given = parser.parse_args()
    by_name = {case.name: case for case in CASES}
    chosen = [by_name[name] for name in given.cases or by_name]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for case in chosen:
        results[case.name] = try_case(case, given.folder)
        print(f"{case.name}: {_outcome(results[case.name])}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()

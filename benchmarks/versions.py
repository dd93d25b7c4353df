"""Try the package with the oldest and newest versions it admits, and beside packages of environments.

    python -m benchmarks.versions [CASE ...]

needs `uv` on the PATH, which also finds or fetches the Pythons. Each case gets a virtual environment of its own below
--folder (about 6 GB each, most of it torch, shared by hard links through uv's cache), into which uv installs this
checkout as a user would. There a run is trained, resumed, evaluated, exported and reported, and a sweep and a
search are run on Tune.
The last cases have packages of environments beside each other, and train in one of each. Results stand in
benchmarks/results/versions.json, in which cases that are run again replace their earlier ones, and in
docs/benchmarks/versions.md.
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
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "versions.json"
PAGE = ROOT / "docs" / "benchmarks" / "versions.md"
SHOWN = ("ray", "torch", "gymnasium", "numpy", "pandas", "mujoco", "pyarrow", "wandb", "scipy", "pydantic")
EXTRAS = "export,search"
TIMEOUT_S = 7_200
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
SEARCH = f"""\
search: versions
algorithm: sac-hpo
task: Pendulum-v1
steps: 200
trials: 2
settings: {json.dumps({**TINY, "cost": {"kind": "torque"}, "cost_limit": 200.0})}
space: {{step_size: {{low: 0.02, high: 0.5, log: true}}}}
"""
"""A search under a limit, which Optuna 5 is told otherwise than Optuna 4."""


COMMANDS = """
import json, sys, traceback
from rllib_hpo.cli import main
for subject, commands in json.load(sys.stdin):
    for name, *words in commands:
        print(f"begin: {subject}: {name}", flush=True)
        sys.argv = ["rllib-hpo", *words]
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                print(f"failed: {subject}: {name}: exit code {ended.code}", flush=True)
                break
        except BaseException:
            traceback.print_exc()
            print(f"failed: {subject}: {name}: {traceback.format_exc().splitlines()[-1]}", flush=True)
            break
        print(f"passed: {subject}: {name}", flush=True)
"""
"""Program that runs commands of `rllib-hpo` in one process; the first of a subject that fails ends that subject."""


class Subject(NamedTuple):
    """An environment to train in."""

    name: str
    """Its package, or "" for an environment of gymnasium."""
    task: str = "HalfCheetah-v5"
    module: str = ""
    """What registers it, if anything must be imported."""


@dataclass(frozen=True)
class Case:
    """What to install into one virtual environment, and what to run there.

    Attributes:
        name: Its name on the command line and in the table.
        python: Version of Python.
        packages: What is installed beside this package.
        resolution: How uv chooses versions: `highest`, or `lowest-direct` for the oldest that are admitted.
        subjects: Environments to train in.
    """

    name: str
    python: str = "3.11"
    packages: tuple[str, ...] = ()
    resolution: str = "highest"
    subjects: tuple[Subject, ...] = (Subject(""),)


NEIGHBOURS = (
    Subject("gymnasium-robotics", "FetchReachDense-v4", "gymnasium_robotics"),
    Subject("mo-gymnasium", "mo-halfcheetah-v5", "mo_gymnasium"),
    Subject("shimmy[dm-control]", "dm_control/cartpole-swingup-v0", "shimmy"),
    Subject("panda-gym", "PandaReachDense-v3", "panda_gym"),
    Subject("box2d", "LunarLanderContinuous-v3"),  # which has wheels, unlike the box2d-py of gymnasium[box2d]
    Subject("highway-env", "racetrack-v0", "highway_env"),
)
CASES = (
    Case("newest, Python 3.11"),
    Case("oldest, Python 3.11", resolution="lowest-direct"),
    Case("newest, Python 3.12", "3.12"),
    Case("newest, Python 3.13", "3.13"),
    Case("oldest, Python 3.13", "3.13", resolution="lowest-direct"),
    Case("newest with numpy 1.26 and pandas 2", packages=("numpy<2", "pandas<3", "pyarrow<22")),
    Case("neighbours", packages=tuple(one.name for one in NEIGHBOURS), subjects=NEIGHBOURS),
    Case(
        "neighbours with MuJoCo 3.4",  # which their releases of today were made for
        packages=("mujoco<3.5", *(one.name for one in NEIGHBOURS)),
        subjects=NEIGHBOURS,
    ),
)


def steps(subject: Subject, folder: Path) -> Iterator[list[str]]:
    """Commands of `rllib-hpo`, each after the name of what it shows; without a package a sweep and a search, too."""
    folder.mkdir()
    run = str(folder / "run")
    settings = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    modules = ["--import", subject.module] if subject.module else []
    task = ["--algorithm", "sac-hpo", "--task", subject.task, *modules]
    wandb = ["--wandb", "disabled" if subject.name else "offline"]
    yield ["train", "train", *task, "--steps", "200", "--out", run, *wandb, *settings]
    yield ["resume", "train", "--resume", run, "--steps", "300", *wandb]
    yield ["evaluate", "evaluate", run, "--episodes", "1"]
    yield ["export", "export", run, "--format", "onnx", "--out", str(folder / "policy.onnx")]
    yield ["report", "report", run, "--out", str(folder / "report")]
    if not subject.name:
        (folder / "sweep.yaml").write_text(SWEEP)
        sweep = [str(folder / "sweep.yaml"), "--out", str(folder / "sweep"), "--wandb", "disabled"]
        yield ["sweep", "sweep", *sweep]
        (folder / "search.yaml").write_text(SEARCH)
        search = [str(folder / "search.yaml"), "--out", str(folder / "search"), "--wandb", "disabled"]
        yield ["search", "tune", *search]


def try_case(case: Case, folder: Path) -> dict[str, Any]:
    """Install a case and run its commands; returns what passed and failed, by subject."""
    environment = folder / "".join(c if c.isalnum() else "-" for c in case.name)
    python = environment / "bin" / "python"
    about = {"python": case.python, "packages": list(case.packages), "versions": {}, "results": {}}
    print(f"{case.name}: installing", flush=True)
    shutil.rmtree(environment, ignore_errors=True)
    made = _run(["uv", "venv", "-q", "--python", case.python, str(environment)])
    if made.returncode == 0:
        wanted = [f"{ROOT}[{EXTRAS}]", *case.packages]
        install = ["uv", "pip", "install", "-q", "--python", str(python), "--resolution", case.resolution]
        made = _run([*install, *wanted])
    if made.returncode:
        said = next(iter(made.stdout.strip().splitlines()), "")
        return {**about, "results": {one.name: f"cannot be installed: {said}" for one in case.subjects}}
    with tempfile.TemporaryDirectory() as work:
        commands = [
            (one.name, list(steps(one, Path(work) / str(number)))) for number, one in enumerate(case.subjects)
        ]
        print(f"{case.name}: running", flush=True)
        done = _run([str(python), "-c", COMMANDS], cwd=work, text=json.dumps(commands))
    results = {one.name: _result(one.name, done) for one in case.subjects}
    return {**about, "versions": _versions(python), "results": results}


def _result(name: str, done: subprocess.CompletedProcess[str]) -> str:
    """What a subject's commands ended with: the names of those that passed, or the sentence of the one that failed."""
    lines = done.stdout.splitlines()
    passed = [line.rpartition(": ")[2] for line in lines if line.startswith(f"passed: {name}: ")]
    failed = [
        line.removeprefix(f"failed: {name}: ") for line in lines if line.startswith(f"failed: {name}: ")
    ]
    if not failed:
        return f"works: {', '.join(passed)}" if passed else f"exit code {done.returncode}"
    at = lines.index(f"failed: {name}: {failed[0]}")
    said = next(
        (line for line in reversed(lines[:at]) if line.startswith(("Error: ", "Internal error: "))), ""
    )
    return f"{failed[0]}: {said.removeprefix('Error: ')}".rstrip(": ")


def _run(words: Sequence[str], cwd: str | None = None, text: str = "") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    with tempfile.TemporaryFile("w+") as output:
        try:
            code = subprocess.run(
                words,
                cwd=cwd,
                env=environment,
                input=text,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:  # what came before it still counts
            code = 124
        output.seek(0)
        return subprocess.CompletedProcess(words, code, output.read())


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
    tried = [(case, results[case.name]) for case in CASES if case.name in results]
    versions = [
        [
            case.name,
            *(one["versions"].get(key, "") for key in ("python", *SHOWN)),
            "; ".join(one["results"].values()),
        ]
        for case, one in tried
    ]
    for line, (case, _) in zip(versions, tried, strict=True):
        line[-1] = "see below" if len(case.subjects) > 1 else line[-1]
    neighbours = [
        [
            f"`{subject.name}`",
            f"`{subject.task}`",
            one["versions"].get("mujoco", ""),
            one["results"][subject.name],
        ]
        for subject in NEIGHBOURS
        for case, one in tried
        if subject in case.subjects
    ]
    return (
        "# Versions and neighbours\n\nWhat was tried by `python -m benchmarks.versions` "
        "(`benchmarks/results/versions.json`), each line in a virtual environment of its own into which `uv` installed "
        "this package as a user would: 200 steps trained, resumed to 300, evaluated, exported to ONNX and reported, "
        "and a sweep and a search of two trials each on Tune.\n\n"
        + _table(["", "Python", *SHOWN, "result"], versions)
        + "\nAll tests pass with the versions of `constraints.txt`. Ray's RLlib pins gymnasium to one version.\n\n"
        "## Packages of environments\n\nAll of them installed beside this package and beside each other, without "
        "constraints, and once more with the MuJoCo that the papers' tasks want. Where a run cannot begin, it ends in "
        "the sentence that is shown, exit code 2.\n\n"
        + _table(["package", "environment", "MuJoCo installed", "result"], neighbours)
    )


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
        print(f"{case.name}: {results[case.name]['results']}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()

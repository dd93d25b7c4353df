"""Check all of this package that runs on a GPU, within six minutes, and compare its speed with what is aimed at.

    python -m benchmarks.gpu_check                  # one GPU, 16 cores; torch, numpy, pydantic and, for tests, pytest
    python -m benchmarks.gpu_check --ray            # whole runs, within four minutes; the package and all it needs
    python -m benchmarks.gpu_check --device cpu     # the same on a CPU: does the check itself work?
    python -m benchmarks.gpu_check --dry-run        # parts, limits and targets

Every part has a process of its own and a time limit. What it found by then counts, the JSON is written after every
part, and a part that fails or hangs does not keep the next from running. The exit status is 1 if a check failed or a
part did not end; speeds that are missed are reported, and change nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.gpu_check import targets
from benchmarks.gpu_check.rows import Row, append, are_good, read, table

LIMIT_S, RAY_LIMIT_S = 355.0, 235.0
"""Seconds of the whole check, and of its second part."""
ENDING_S = 3.0
"""Seconds kept for writing what was found."""
TAIL = 3_000
"""Characters of a part's output that are kept."""


@dataclass(frozen=True)
class Job:
    """What a part gets."""

    device: str
    names: list[str]
    """Algorithms."""
    rows: Path
    """File of the rows found."""

    @property
    def results(self) -> Path:
        """Folder of what a GPU's figures are derived from later; of a CPU nothing is kept."""
        return machine.RESULTS if self.device == "cuda" else self.rows.parent

    def emit(self, row: Row) -> None:
        """Add a row."""
        append(self.rows, row)


def _tests(job: Job) -> None:
    from benchmarks.gpu_check import tests

    tests.run(job.device, job.emit, job.names)


def _updates(job: Job) -> None:
    from benchmarks.gpu_check import updates

    updates.run(job.device, job.emit, job.names)


def _compiled(job: Job) -> None:
    from benchmarks.gpu_check import compiled

    compiled.run(job.device, job.emit, job.names, job.rows)


def _hopper(job: Job) -> None:
    from benchmarks.gpu_check import with_ray

    with_ray.hopper(job.device, job.emit, job.results)


def _trials(job: Job) -> None:
    from benchmarks.gpu_check import with_ray

    with_ray.trials(job.device, job.emit, job.results)


@dataclass(frozen=True)
class Part:
    """A part of the check: what it does, and within how many seconds."""

    run: Callable[[Job], None]
    limit_s: float
    about: str


PARTS: Mapping[str, Part] = {
    "tests": Part(_tests, 90, "every test with a GPU form: kernels, updates, graphs, replay, memory"),
    "updates": Part(_updates, 85, "updates/s, eager and as a graph, beside the floor; kernels of an update"),
    "compiled": Part(_compiled, 170, "compiled updates in a graph: equal to eager ones, updates/s, kernels"),
}
RAY_PARTS: Mapping[str, Part] = {
    "hopper": Part(_hopper, 110, "Hopper from end to end, with a learner on the GPU"),
    "trials": Part(_trials, 120, "five trials that share the GPU, relative to one"),
}
ALL_PARTS = {**PARTS, **RAY_PARTS}


def run_part(name: str, limit_s: float, device: str, names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a part in a process group of its own, end it after `limit_s` seconds, and return what it found."""
    rows, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    given = ["--part", name, "--device", device, "--rows", str(rows), "--algorithms", *names]
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_check", *given],
            cwd=machine.ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = read(rows)
    status = _status(code, found)
    return {
        "status": status,
        "seconds": round(time.monotonic() - began, 1),
        "limit_s": limit_s,
        "rows": [asdict(row) for row in found],
        "output": "" if status == "passed" else log.read_text(errors="replace")[-TAIL:],
    }


def _status(code: int | None, found: Sequence[Row]) -> str:
    if code is None:
        return "FAILED: stopped at its time limit"
    if code:
        return f"FAILED: its process ended with {code}"
    return "passed" if found and are_good(found) else "FAILED"


def check(
    parts: Mapping[str, Part], limit_s: float, device: str, names: Sequence[str], out: Path
) -> dict[str, Any]:
    """Run parts in order within `limit_s` seconds; writes and returns what they found.

    Where that is more than the sum of the parts' limits, each gets more in proportion.
    """
    more = max(limit_s / sum(part.limit_s for part in parts.values()), 1.0)
    ends = time.monotonic() + limit_s
    content: dict[str, Any] = {"benchmark": "gpu_check", "machine": machine.facts(), "device": device}
    content["parts"] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        for name, part in parts.items():
            limit = max(min(more * part.limit_s, ends - time.monotonic() - ENDING_S), 0.0)
            print(f"{name} (at most {limit:.0f} s): {part.about}", flush=True)
            content["parts"][name] = run_part(name, limit, device, names, Path(folder))
            content["seconds"] = round(time.monotonic() - ends + limit_s, 1)
            out.write_text(json.dumps(content, indent=2) + "\n")
    return content


def run_here(name: str, device: str, names: list[str], rows: Path) -> None:
    """Run one part in this process."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    if device == "cuda":
        append(rows, Row(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", "measured"))
    ALL_PARTS[name].run(Job(device, names, rows))


def describe(parts: Mapping[str, Part], names: Sequence[str]) -> str:
    """Format parts, limits, algorithms and targets."""
    lines = [f"{name}: {part.about} (at most {part.limit_s:.0f} s)" for name, part in parts.items()]
    lines.append(f"algorithms: {', '.join(names)}")
    aims = {name: value for name, value in vars(targets).items() if name.isupper()}
    return "\n".join([*lines, *(f"{name} = {value}" for name, value in aims.items())])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=(__doc__ or "").split("\n")[0],
        epilog="The exit status is 1 if a check failed or a part did not end.",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--ray", action="store_true", help="the second part, which trains with Ray")
    parser.add_argument("--dry-run", action="store_true", help="list parts, limits and targets, and stop")
    parser.add_argument(
        "--parts", nargs="+", choices=list(ALL_PARTS), help="default: all of the first or second part"
    )
    parser.add_argument("--algorithms", nargs="+", metavar="NAME", help="default: all registered")
    parser.add_argument("--limit", type=float, metavar="S", help="seconds that the whole check may take")
    parser.add_argument("--out", type=Path, help="JSON file (default benchmarks/results/gpu_check.json)")
    parser.add_argument("--part", choices=list(ALL_PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check, print a table, and return the exit status.

    Raises:
        SystemExit: If the device or an algorithm is not there.
    """
    options = parse(arguments)
    if options.part:
        run_here(options.part, options.device, options.algorithms, options.rows)
        return 0
    names = _algorithms(options.algorithms)
    chosen = RAY_PARTS if options.ray else PARTS
    if options.parts:
        chosen = {name: ALL_PARTS[name] for name in options.parts}
    if options.dry_run:
        print(describe(chosen, names))
        return 0
    _require(options.device, ray=any(name in RAY_PARTS for name in chosen))
    name = f"gpu_check{'_ray' if options.ray else ''}{'' if options.device == 'cuda' else '_cpu'}.json"
    out = options.out or machine.RESULTS / name
    limit_s = options.limit or (RAY_LIMIT_S if options.ray else LIMIT_S)
    content = check(chosen, limit_s, options.device, names, out)
    print("\n" + table(content["parts"]))
    print(f"\n{content['seconds']:.0f} s in all; written to {out}")
    return int(any(part["status"] != "passed" for part in content["parts"].values()))


def _algorithms(given: Sequence[str] | None) -> list[str]:
    from benchmarks.update_speed import every_algorithm

    known = list(every_algorithm())
    if unknown := [name for name in given or () if name not in known]:
        raise SystemExit(f"There is no algorithm {unknown[0]!r}; known are {', '.join(known)}.")
    return list(given or known)


def _require(device: str, *, ray: bool) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "torch finds no CUDA device here; run this on a machine with one, or give --device cpu."
        )
    if ray and importlib.util.find_spec("ray") is None:
        raise SystemExit("ray is not installed here: --ray needs the package with all its dependencies.")


if __name__ == "__main__":
    sys.exit(main())

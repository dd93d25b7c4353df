"""Kill a real sweep with SIGKILL halfway, resume it, and publish its rows and report.

    python -m benchmarks.killed_sweep

runs benchmarks/results/hopper-halfcheetah-30k/sweep.yaml in runs/hopper-halfcheetah-30k (about an hour on four
cores). It kills the driver after half of the evaluations, resumes, and finally checks that every evaluation exists
exactly once. It writes rows.parquet, tables.md, the figures and sweep.json beside the sweep file; sweep.json records
the time of the kill and the machine.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import machine
from rllib_hpo.analysis.report import write_report
from rllib_hpo.experiments.config.sweep_config import read_sweep
from rllib_hpo.results import check, read_rows

FOLDER = machine.RESULTS / "hopper-halfcheetah-30k"
SWEEP = FOLDER / "sweep.yaml"
FIGURES = ("curves", "intervals", "displacement")


def rllib_hpo(*words: str) -> subprocess.Popen[bytes]:
    """Run `rllib-hpo sweep WORDS`."""
    return subprocess.Popen([sys.executable, "-m", "rllib_hpo.cli", "sweep", *words, "--wandb", "disabled"])


def kill_halfway(driver: subprocess.Popen[bytes], results: Path, num_rows: int) -> int:
    """Kill the driver when half of the rows exist; return their number."""
    while driver.poll() is None:
        there = read_rows(results).num_rows if results.exists() else 0
        if there >= num_rows // 2:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            return there
        time.sleep(5)
    raise SystemExit("the sweep ended before half of its rows were there")


def publish(rows: pa.Table, report: Path, folder: Path) -> None:
    """Make the report, and copy its small files and the rows into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / "rows.parquet", compression="zstd")
    written = write_report(rows, report)
    for path in (written["tables"], *(written["figures"] / f"{name}.png" for name in FIGURES)):
        (folder / path.name).write_bytes(path.read_bytes())


def main() -> None:
    """Run, kill, resume, check and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/hopper-halfcheetah-30k"))
    parser.add_argument("--max-concurrent", default="3")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the small files go")
    arguments = parser.parse_args()
    trials = read_sweep(SWEEP).trials
    due = sum(trial.config.run.steps // trial.config.settings.evaluation_every + 1 for trial in trials)
    options = ("--max-concurrent", arguments.max_concurrent)
    began, results = time.time(), arguments.out / "results"
    there = kill_halfway(rllib_hpo(str(SWEEP), "--out", str(arguments.out), *options), results, due)
    killed_after = time.time() - began
    if code := rllib_hpo("--resume", str(arguments.out), *options).wait():
        raise SystemExit(code)
    rows = read_rows(results)
    if rows.num_rows != due or (problems := check(rows)):
        raise SystemExit(f"{rows.num_rows} rows instead of {due}: {problems}")
    publish(rows, arguments.out / "report", arguments.folder)
    facts = {
        **machine.facts(),
        "trials": len(trials),
        "rows": rows.num_rows,
        "rows_when_killed": there,
        "killed_after_s": round(killed_after),
        "total_s": round(time.time() - began),
    }
    (arguments.folder / "sweep.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()

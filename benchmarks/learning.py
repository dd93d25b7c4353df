"""What SAC and SAC-HPO learn in 30,000 steps of Hopper-v4: `python -m benchmarks.learning`.

Trains two seeds of each with the command line a user has, keeps the rows of all evaluations in one Parquet
file, and draws their learning curves. A short run to look at, with a shorter warm-up than the papers'; it
says nothing about final performance.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rllib_hpo.analysis.curves import learning_curve
from rllib_hpo.results import read_rows, rows_from_arrow

RESULTS = Path(__file__).parent / "results"
ALGORITHMS = ("sac", "sac-hpo")
SEEDS = (0, 1)
SETTINGS = ("warmup_steps=1000", "evaluation_every=1000", "checkpoint_every=10000")


def train(algorithm: str, seed: int, steps: int, runs: Path) -> Path:
    """One run in its directory below `runs`, resumed if it is there already."""
    out = runs / f"{algorithm}-{seed}"
    command = [sys.executable, "-m", "rllib_hpo.cli", "train", "--wandb", "disabled"]
    if (out / "config.yaml").exists():
        command += ["--resume", str(out)]
    else:
        command += ["--algorithm", algorithm, "--task", "hopper", "--seed", str(seed)]
        command += ["--steps", str(steps), "--out", str(out)]
        command += [word for setting in SETTINGS for word in ("--set", setting)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def summary(table: object) -> str:
    """Markdown: per algorithm, mean and standard deviation over seeds of the best and the last five evaluations."""
    rows = rows_from_arrow(table)
    lines = ["| algorithm | seeds | best | mean of the last 5 |", "| --- | ---: | ---: | ---: |"]
    for algorithm in ALGORITHMS:
        curves = [
            [row.return_mean for row in rows if (row.algorithm, row.seed) == (algorithm, seed)]
            for seed in SEEDS
        ]
        best = np.array([max(curve) for curve in curves])
        final = np.array([np.mean(curve[-5:]) for curve in curves])
        lines.append(
            f"| {algorithm} | {len(curves)} | {best.mean():.0f} ± {best.std():.0f} "
            f"| {final.mean():.0f} ± {final.std():.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Trains, gathers, draws and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where the runs go")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, default=RESULTS / "hopper-30k", help="of .parquet and .png")
    arguments = parser.parse_args()
    pairs = [(algorithm, seed) for algorithm in ALGORITHMS for seed in SEEDS]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        directories = list(pool.map(lambda pair: train(*pair, arguments.steps, arguments.runs), pairs))
    table = read_rows([directory / "results" for directory in directories])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, arguments.out.with_suffix(".parquet"), compression="zstd")
    learning_curve(table, arguments.out.with_suffix(".png"))
    print(summary(table))


if __name__ == "__main__":
    main()

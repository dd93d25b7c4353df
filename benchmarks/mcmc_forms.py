"""Compare MCMC policy optimization as printed with the default form, for the table of docs/mcmc-po.md.

python -m benchmarks.mcmc_forms              # trains three short runs, a few minutes on one core; writes the rows and
prints the table python -m benchmarks.mcmc_forms --show       # prints the table of the rows in
benchmarks/results/mcmc_forms.parquet
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import machine
from rllib_hpo.results import read_rows

ROWS = machine.RESULTS / "mcmc_forms.parquet"
COMMON = "--seed 0 --set lr=1e-3 --set hidden_units=64 --set warmup_steps=1000"
RUNS = (
    "--algorithm mcmc-po --task Pendulum-v1 --steps 5000 --set form=paper --set evaluation_every=1000",
    "--algorithm mcmc-po --task Pendulum-v1 --steps 8000 --set evaluation_every=1000",
    (
        "--algorithm langevin-po --task Reacher-v4 --steps 10000 --set form=paper --set initial_kappa=1.0 "
        "--set evaluation_every=2000"
    ),
)


def trained(options: str, directory: Path) -> pa.Table:
    """Return the rows of one run with `options`."""
    command = [sys.executable, "-m", "rllib_hpo.cli", "train", *options.split(), *COMMON.split()]
    subprocess.run([*command, "--wandb", "disabled", "--out", str(directory)], check=True)
    return labelled(read_rows(directory / "results"), options)


def labelled(rows: pa.Table, options: str) -> pa.Table:
    """Return what the table needs from a run's rows."""
    rows = rows.select(["env_steps", "return_mean", "diagnostics", "git_commit"])
    return rows.append_column("options", pa.array([options] * len(rows)))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the table in Markdown: per run a line with its returns in order, and the last row's diagnostics."""
    lines = [
        "| `rllib-hpo train` with | returns | `prior_distance` at the end | `beta` | `step_size_mean` |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for options in RUNS:
        own = sorted(
            (row for row in rows if row["options"] == options), key=lambda row: int(row["env_steps"])
        )
        last = dict(own[-1]["diagnostics"])
        returns = ", ".join(f"{row['return_mean']:.0f}" for row in own)
        numbers = (f"{last[name]:.2g}" for name in ("prior_distance", "beta", "step_size_mean"))
        lines.append(f"| `{options}` | {returns} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, unless called with --show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--show", action="store_true", help="print the table of the stored rows")
    if not parser.parse_args(arguments).show:
        with tempfile.TemporaryDirectory() as directory:
            runs = [trained(options, Path(directory) / str(k)) for k, options in enumerate(RUNS)]
        pq.write_table(pa.concat_tables(runs), ROWS)
    print(table(pq.read_table(ROWS).to_pylist()))


if __name__ == "__main__":
    main()

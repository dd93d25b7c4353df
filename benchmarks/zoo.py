"""Collect the zoo: trained policies, their rows, and the commands that trained them.

    make zoo                                                            # rllib-hpo sweep zoo, then collect it
    python -m benchmarks.zoo runs/zoo                                   # a sweep that kept its policies
    python -m benchmarks.zoo benchmarks/results/evidence --task hopper  # rows and policies that a study has kept
    python -m benchmarks.zoo benchmarks/results/multi-goal-10k --algorithm soft-q

It writes zoo/: NAME.safetensors, results/ and index.json, from which `rllib-hpo zoo` and `rllib-hpo enjoy` work. A
policy of the same name is replaced. The policies of a sweep are its runs' last ones; all have seed 0.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks import machine
from rllib_hpo.deployment import load_policy_file
from rllib_hpo.experiments.config.shipped import sweep_files
from rllib_hpo.experiments.config.sweep_config import read_sweep
from rllib_hpo.experiments.runs.zoo import INDEX, ROWS, name_of
from rllib_hpo.results import EvaluationRow, compact, read_rows, rows_from_arrow, write_row

ZOO = machine.ROOT / "zoo"
STUDIES = machine.ROOT / "benchmarks" / "studies"
MAX_BYTES = 8_000_000
SEED = 0


def kept_policies(source: Path) -> list[Path]:
    """Return policy files of seed 0: the last one of each run of a sweep, or those in a study's folder `policies`."""
    if (source / "policies").is_dir():
        return sorted((source / "policies").glob(f"*-seed{SEED}.safetensors"))
    runs = sorted((source / "trials").glob(f"*-seed{SEED}"))
    return [max((run / "policies").glob("step-*.safetensors")) for run in runs]


def collect(source: Path, task: str | None, algorithm: str | None, zoo: Path = ZOO) -> dict[str, Any]:
    """Copy policies and their rows to the zoo, and return their entries of its index.

    Args:
        source: A sweep's directory, or the folder of a study's rows and policies.
        task: Only of this task; None for all.
        algorithm: Only of this algorithm; None for all.
        zoo: Where they go.
    """
    rows = rows_from_arrow(read_rows(source))
    entries = {}
    for path in kept_policies(source):
        policy = load_policy_file(path).metadata
        if task not in (None, policy.task) or algorithm not in (None, policy.algorithm):
            continue
        keys = {
            "algorithm": policy.algorithm,
            "task": policy.task,
            "seed": SEED,
            "env_steps": policy.env_steps,
        }
        (last,) = (row for row in rows if all(getattr(row, key) == value for key, value in keys.items()))
        name = name_of(policy.algorithm, policy.task)
        shutil.copyfile(path, zoo / f"{name}.safetensors")
        entries[name] = {"sweep": last.sweep, **keys, "command": command(last)}
    chosen = {(entry["algorithm"], entry["task"]) for entry in entries.values()}
    known = rows_from_arrow(read_rows(zoo / ROWS)) if (zoo / ROWS).exists() else []
    kept = [
        row for row in known if (row.algorithm, row.task) not in chosen
    ]  # others are of policies replaced
    shutil.rmtree(zoo / ROWS, ignore_errors=True)
    for row in [*kept, *(row for row in rows if (row.algorithm, row.task) in chosen)]:
        write_row(zoo / ROWS, row)
    compact(zoo / ROWS)
    return entries


def command(row: EvaluationRow) -> str:
    """Return the command that trains the policy of a row again, in a checkout if its sweep is one of the studies."""
    sweep = row.sweep
    if sweep not in sweep_files():
        (path,) = (path for path in STUDIES.glob("*.yaml") if read_sweep(path).name == sweep)
        sweep = str(path.relative_to(machine.ROOT))
    return f"rllib-hpo sweep {sweep} --only task={row.task},algorithm={row.algorithm} --seeds {row.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--task", help="policies of this task only")
    parser.add_argument("--algorithm", help="policies of this algorithm only")
    arguments = parser.parse_args()
    ZOO.mkdir(exist_ok=True)
    index = ZOO / INDEX
    known = json.loads(index.read_text()) if index.exists() else {}
    known |= collect(arguments.source, arguments.task, arguments.algorithm)
    index.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
    size = sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file())
    assert size <= MAX_BYTES, f"the zoo has {size:,} bytes, more than {MAX_BYTES:,}"
    print(f"{len(known)} policies, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

"""Measure how long rows, statistics and a report of a whole grid take, with synthetic rows.

    python -m benchmarks.report_speed

writes benchmarks/results/report_speed.json: milliseconds to write one evaluation row on local disk; seconds for all
statistics (2,000 replications, 8 tasks x 5 seeds x 3 algorithms); seconds for a report of 120 runs x 300 evaluations,
reading included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import machine
from rllib_hpo.algorithms.registry import find_settings
from rllib_hpo.analysis.report import write_report
from rllib_hpo.analysis.runs import runs_of
from rllib_hpo.analysis.tables import all_tables
from rllib_hpo.results import (
    EvaluationRow,
    canonical_json,
    config_hash,
    episode_statistics,
    provenance,
    read_rows,
    write_row,
)
from rllib_hpo.results.writer import PARTITIONS, file_table, trial_path
from rllib_hpo.settings import parse_settings
from rllib_hpo.tasks import TABLE_ONE

RESULT = machine.RESULTS / "report_speed.json"
ALGORITHMS = ("sac", "sac-nf", "sac-hpo")


def synthetic_rows(num_seeds: int = 5, num_evaluations: int = 300) -> list[EvaluationRow]:
    """Make rows of the eight-task grid, with saturating curves and noise; they are not measurements."""
    rng, rows = np.random.default_rng(0), []
    columns: dict[str, Any] = provenance("cpu")
    for place, task in enumerate(TABLE_ONE):
        for algorithm in ALGORITHMS:
            model = find_settings(algorithm)
            settings = parse_settings(model, task.settings_for(algorithm)).model_dump()
            for seed in range(num_seeds):
                config = {
                    "algorithm": algorithm,
                    "task": task.name,
                    "env": task.env_id,
                    "seed": seed,
                    **settings,
                }
                text, hash_ = canonical_json(config), config_hash(config)
                height = 1_000 * (place + 1) * (1 + 0.1 * ALGORITHMS.index(algorithm)) * rng.uniform(0.8, 1.2)
                for number in range(num_evaluations):
                    mean = height * (1 - np.exp(-4 * number / num_evaluations))
                    returns = rng.normal(mean, 0.1 * height, 10).tolist()
                    rows.append(
                        EvaluationRow(
                            sweep="synthetic",
                            algorithm=algorithm,
                            variant="default",
                            task=task.name,
                            env_id=task.env_id,
                            seed=seed,
                            env_steps=10_000 * number,
                            weights_env_steps=10_000 * number,
                            updates=max(0, 10_000 * (number - 1)),
                            diagnostics={"drift": 0.1, "noise": 0.3} if algorithm == "sac-hpo" else {},
                            eval_sampler=algorithm,
                            config_json=text,
                            config_hash=hash_,
                            wall_time_s=150.0 * number,
                            trial_id=f"{task.name}-{algorithm}-{seed}",
                            **episode_statistics(returns, [1_000] * 10),
                            **columns,
                        )
                    )
    return rows


def timed_rows(rows: list[EvaluationRow], root: Path) -> list[float]:
    """Return milliseconds to write each of `rows`."""
    durations = []
    for row in rows:
        began = time.perf_counter()
        write_row(root, row)
        durations.append(1e3 * (time.perf_counter() - began))
    return durations


def store(table: pa.Table, root: Path) -> None:
    """Write the rows to disk as a finished sweep stores them, one file per trial."""
    for trial in pc.unique(table["trial_id"]).to_pylist():
        own = table.filter(pc.equal(table["trial_id"], trial))
        sweep, algorithm, task = (own[name][0].as_py() for name in PARTITIONS)
        path = trial_path(root, sweep, algorithm, task, trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(file_table(own), path, compression="zstd")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluations", type=int, default=300)
    arguments = parser.parse_args()
    rows = synthetic_rows(num_evaluations=arguments.evaluations)
    table = pa.concat_tables([row.to_arrow() for row in rows]).combine_chunks()
    with tempfile.TemporaryDirectory() as folder:
        durations = timed_rows(rows[:300], Path(folder) / "rows")
        store(table, Path(folder) / "grid")
        runs = runs_of(table)
        began = time.perf_counter()
        all_tables(runs, np.random.default_rng(0))
        statistics_s = time.perf_counter() - began
        began = time.perf_counter()
        page = write_report(read_rows(Path(folder) / "grid"), Path(folder) / "report")["page"]
        report_s, megabytes = time.perf_counter() - began, page.stat().st_size / 1e6
    measured = {
        "machine": machine.facts(),
        "rows": table.num_rows,
        "row_ms_median": round(float(np.median(durations)), 3),
        "row_ms_p99": round(float(np.quantile(durations, 0.99)), 3),
        "statistics_s": round(statistics_s, 3),
        "report_s": round(report_s, 2),
        "page_megabytes": round(megabytes, 1),
    }
    print(json.dumps(measured, indent=1))
    RESULT.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()

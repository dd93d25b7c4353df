"""Measure how long a replay takes to save and to load, by its size: `python -m benchmarks.checkpoint_speed`.

Rows of Hopper (108 bytes) and of Humanoid (3,084 bytes), with each replay as one cold segment: the file is new,
synchronised to disk after writing, and dropped from the page cache before reading, where the system allows it. Saving
and loading both compute the checksum. It also measures a segment of 10,000 new rows, which a run writes in practice.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import machine

if TYPE_CHECKING:
    from rllib_hpo.replay.ring import Replay

ENVIRONMENTS = {"Hopper-v4": (11, 3), "Humanoid-v4": (376, 17)}
"""Observation and action dimension, by environment."""

ROWS, NEW_ROWS, BLOCK = (10_000, 100_000, 1_000_000), 10_000, 10_000
LIMIT_S = 2.0
"""Time limit in seconds for saving, and for loading, Hopper's full replay."""


def full_replay(obs_dim: int, action_dim: int, rows: int) -> Replay:
    """Make a replay full of `rows` random rows."""
    from rllib_hpo.replay.layout import RowLayout
    from rllib_hpo.replay.ring import Replay

    replay, rng = Replay(RowLayout(obs_dim, action_dim), rows), np.random.default_rng(0)
    for start in range(0, rows, BLOCK):
        replay.add(rng.random((min(BLOCK, rows - start), replay.layout.width), np.float32))
    return replay


def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    began = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - began, result


def forget(path: Path) -> None:
    """Drop a file from the page cache, so that reading it reaches the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def measure_once(replay: Replay, directory: Path) -> dict[str, float]:
    """Return the seconds to save all rows, to load them into a new replay, and to save some more."""
    from rllib_hpo.replay.ring import Replay
    from rllib_hpo.replay.segments import load_segments, save_new_segment

    save, segments = timed(save_new_segment, replay, [], directory)
    forget(directory / segments[0]["file"])
    other = Replay(replay.layout, replay.capacity)
    load, _ = timed(load_segments, other, segments, replay.total_rows, directory)
    last = replay.total_rows - 1
    if not np.array_equal(replay.read(last, last + 1)[0], other.read(last, last + 1)[0]):
        raise RuntimeError("what was loaded is not what was saved")
    replay.add(np.zeros((min(NEW_ROWS, replay.capacity), replay.layout.width), np.float32))
    new, _ = timed(save_new_segment, replay, segments, directory)
    return {"save_s": save, "load_s": load, "save_new_rows_s": new}


def measure(env: str, rows: int, repetitions: int, root: Path) -> dict[str, Any]:
    """Return medians over the repetitions, and all of them."""
    replay, runs = full_replay(*ENVIRONMENTS[env], rows), []
    for _ in range(repetitions):
        directory = Path(tempfile.mkdtemp(dir=root, prefix="checkpoint-speed-"))
        try:
            runs.append(measure_once(replay, directory))
        finally:
            shutil.rmtree(directory)
    median = {name: float(np.median([run[name] for run in runs])) for name in runs[0]}
    size = rows * replay.layout.width * 4
    return {
        "env": env,
        "rows": rows,
        "bytes": size,
        **{name: round(seconds, 4) for name, seconds in median.items()},
        "save_gb_per_s": round(size / median["save_s"] / 1e9, 3),
        "load_gb_per_s": round(size / median["load_s"] / 1e9, 3),
        "repetitions": runs,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Format the medians in Markdown."""
    lines = [
        "| replay | GB | save s | load s | save GB/s | load GB/s | new rows s |",
        "| --- " + "| ---: " * 6 + "|",
    ]
    lines += [
        f"| {r['env']}, {r['rows']:,} rows | {r['bytes'] / 1e9:.3f} | {r['save_s']:.3f} | {r['load_s']:.3f} | "
        f"{r['save_gb_per_s']:.2f} | {r['load_gb_per_s']:.2f} | {r['save_new_rows_s']:.3f} |"
        for r in results
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoint_speed", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="which disk to measure")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "checkpoint_speed.json")
    options = parser.parse_args(arguments)
    facts = machine.facts()
    sizes = [(env, rows) for env in ENVIRONMENTS for rows in options.rows]
    results = [measure(*size, options.repetitions, options.directory) for size in sizes]
    print(table(results))
    content = {"benchmark": "checkpoint_speed", "machine": facts, "limit_s": LIMIT_S, "replays": results}
    machine.write_json(options.out, content)


if __name__ == "__main__":
    main()

"""Measure what a fault costs: break each part of a small sweep, and measure the lost work.

    python -m benchmarks.faults

takes a few minutes, writes benchmarks/results/faults.json, prints the table, and writes it into cluster/README.md. The
faults are those of tests/experiments/faults.py: one trial of SAC-HPO on Pendulum-v1, 2,000 steps, an evaluation every
100 and a checkpoint every 500, broken after 1,250.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from benchmarks import machine
from rllib_hpo.errors import UserError
from tests.experiments import faults
from tests.experiments.faults import FAULTS, Broken, Fault

RESULT = machine.RESULTS / "faults.json"
README = machine.ROOT / "cluster" / "README.md"
HEAD = "| what happens | seconds lost | steps repeated | evaluations lost | doubled | same result |"
_T = TypeVar("_T")
BEGIN, END = "<!-- faults: by python -m benchmarks.faults -->", "<!-- /faults -->"


def measured(fault: Fault, broken: Broken, reference: pa.Table) -> dict[str, Any]:
    """Return the cost of a fault, ready for JSON.

    Raises:
        UserError: If the result breaks a promise.
    """
    is_equal = broken.rows.equals(reference)
    if fault.is_exact and not is_equal:
        raise UserError(f"{fault.title}: the rows differ from those of a sweep that nothing happened to.")
    return {
        "title": fault.title,
        **broken.cost()._asdict(),
        "equal": is_equal,
        "equality_promised": fault.is_exact,
    }


def measure_all(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Inject each named fault in turn; yield its name in `FAULTS`, and its cost."""
    references: dict[str, pa.Table] = {}
    for name in names:
        fault, began = FAULTS[name], time.monotonic()
        kind = str(fault.settings)
        if kind not in references:
            references[kind] = in_a_folder(partial(faults.undisturbed, settings=fault.settings))
        load = os.getloadavg()[0]
        found = measured(fault, in_a_folder(fault.run), references[kind])
        print(f"{fault.title}: {time.monotonic() - began:.0f} s", flush=True)
        yield name, {**found, "load_average_1min": round(load, 2)}


def in_a_folder(work: Callable[[Path], _T]) -> _T:
    """Call `work` with a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="faults", ignore_cleanup_errors=True) as folder:
        return work(Path(folder))


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the measurements as a Markdown table, in the order of `FAULTS`."""
    lines = [HEAD, "| --- | ---: | ---: | ---: | ---: | --- |"]
    for each in (found[name] for name in FAULTS if name in found):
        promise = "" if each["equality_promised"] else ", not promised"
        numbers = (
            f"{each['seconds_lost']:.1f}",
            each["steps_repeated"],
            each["rows_lost"],
            each["rows_doubled"],
        )
        cells = [each["title"], *map(str, numbers), f"{'yes' if each['equal'] else 'no'}{promise}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def published(text: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the README's `text` with the measured table between its marks."""
    return re.sub(f"{BEGIN}.*{END}", f"{BEGIN}\n\n{table(found)}\n\n{END}", text, flags=re.DOTALL)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", choices=list(FAULTS), help="measured anew, again for more; others stay"
    )
    options = parser.parse_args(arguments)
    facts = machine.facts()
    found = json.loads(RESULT.read_text())["faults"] if options.only and RESULT.exists() else {}
    for name, cost in measure_all(options.only or list(FAULTS)):
        found[name] = cost
        ordered = {name: found[name] for name in FAULTS if name in found}
        machine.write_json(RESULT, {"machine": facts, "settings": faults.SETTINGS, "faults": ordered})
    print(table(found))
    README.write_text(published(README.read_text(), found))


if __name__ == "__main__":
    main()

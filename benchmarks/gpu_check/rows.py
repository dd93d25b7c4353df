"""Define what a part of the check finds: rows of a name, a value and, where there is one, a target."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["passed", "FAILED", "reached", "MISSED", "measured", "skipped"]
BAD: tuple[Outcome, ...] = ("FAILED",)
"""Outcomes that make the whole check fail; a missed speed does not."""


@dataclass(frozen=True)
class Row:
    """One finding."""

    name: str
    outcome: Outcome
    value: float | None = None
    target: str = ""
    """The bound that `value` is held to, as text."""
    detail: str = ""

    @classmethod
    def at_least(cls, name: str, value: float, bound: float | None) -> Row:
        """Make the row of a speed, compared with its lower bound if there is one."""
        if bound is None:
            return cls(name, "measured", value)
        return cls(name, "reached" if value >= bound else "MISSED", value, f">= {bound:g}")

    @classmethod
    def at_most(cls, name: str, value: float, bound: float | None) -> Row:
        """Make the row of a cost, compared with its upper bound if there is one."""
        if bound is None:
            return cls(name, "measured", value)
        return cls(name, "reached" if value <= bound else "MISSED", value, f"<= {bound:g}")

    @classmethod
    def agreement(cls, name: str, value: float, bound: float) -> Row:
        """Make the row of a difference that is an error above its bound, or where it is NaN."""
        return cls(name, "passed" if value <= bound else "FAILED", value, f"<= {bound:g}")


def append(path: Path, row: Row) -> None:
    """Add a row to a file of JSON lines; several processes may do so at a time."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def read(path: Path) -> list[Row]:
    """Read rows from a file of JSON lines; one that was cut off is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(Row(**json.loads(line)))
        except json.JSONDecodeError:
            continue
    return found


def table(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Format all rows in Markdown; passed tests are counted, since there are hundreds."""
    lines = ["| part | what | value | aimed at | outcome |", "| --- | --- | ---: | ---: | --- |"]
    for name, part in parts.items():
        rows = [Row(**row) for row in part["rows"]]
        tests = [row for row in rows if row.value is None and row.outcome == "passed"]
        if tests:
            lines.append(f"| {name} | {len(tests)} tests |  |  | passed |")
        lines += [_line(name, row) for row in rows if row not in tests]
        lines.append(
            f"| {name} | in all | {part['seconds']:.0f} s | <= {part['limit_s']:.0f} s | {part['status']} |"
        )
    return "\n".join(lines)


def _line(part: str, row: Row) -> str:
    value = "" if row.value is None else f"{row.value:,.4g}"
    outcome = f"{row.outcome}: {row.detail}" if row.detail else row.outcome
    return f"| {part} | {row.name} | {value} | {row.target} | {outcome.replace('|', '/')} |"


def are_good(rows: Iterable[Row]) -> bool:
    """Return whether none of the rows is an error."""
    return not any(row.outcome in BAD for row in rows)

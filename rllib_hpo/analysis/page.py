"""The interactive report: one HTML file with its data, its styles and plotly.js in it, read without a network.

Tables and figures are written here and can be read without JavaScript; the curves are drawn by `page/page.js`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from plotly.offline import get_plotlyjs

from rllib_hpo.results.atomic import write_atomically

_TEMPLATE = Path(__file__).with_name("page")
_NUMBER = re.compile(r"[-+\u2212]?(\d|inf|nan)", re.IGNORECASE)
_MISSING = "\N{EN DASH}"
_NUMBER_CLASS = ' class="number"'


def write_page(data: Mapping[str, Any], path: Path) -> Path:
    """Write the report of `data` as a single HTML file at `path`, atomically, making its folder.

    Args:
        data: `title` and `subtitle`; `clock`, what steps count; `tasks` (name, env_id); `series` (label, algorithm,
            variant, sweep, color, dash); `runs` (task and series as places in those lists, seed, trial_id, config,
            and an evaluation's steps, updates, wall_time_s, return_mean, return_std and diagnostics as lists of equal
            length); `tables` (title, note, columns, rows, sources: files beside the page, by what they are);
            `figures` (title, note, svg, which must be trusted); `differences` (columns, rows, sources); `sources` of
            the trials; `configs`, each trial's configuration by the runs' `config`.
        path: The file, say index.html.

    Raises:
        TypeError: `data` holds something that JSON cannot.
        StorageError: The file cannot be written.
    """
    plain = _plain(data)
    plotly, script, style = _inline(get_plotlyjs()), _inline(_read("page.js")), _read("page.css")
    parts = {
        "title": escape(plain["title"]),
        "subtitle": escape(plain.get("subtitle") or ""),
        "policy": _policy(plotly, script),
        "style": style,
        "tables": "".join(map(_table_section, plain.get("tables") or [])),
        "figures": "".join(map(_figure, plain.get("figures") or [])),
        "differences": _differences(plain.get("differences") or {}),
        "trials": _trials(plain),
        "data": _json(plain),
        "plotly": plotly,
        "script": script,
    }
    # In one pass: what is put in may itself contain braces.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read("index.html"))
    return write_atomically(path, page.encode())


def _read(name: str) -> str:
    return (_TEMPLATE / name).read_text(encoding="utf-8")


def _plain(value: Any) -> Any:
    """`value` for JSON: without NumPy types, and None for numbers that are not finite."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _json(plain: Any) -> str:
    """JSON for a script element, with `<` escaped, which could end it or open a comment."""
    return json.dumps(plain, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")


def _inline(script: str) -> str:
    """JavaScript for a script element, with `</script` escaped in its strings."""
    return re.sub(r"</(script)", r"<\\/\1", script, flags=re.IGNORECASE)


def _policy(*scripts: str) -> str:
    """A content security policy: only these scripts run, and nothing is fetched from anywhere."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _table_section(table: Mapping[str, Any]) -> str:
    title = escape(table["title"])
    content = f"{_note(table)}{_table(table['title'], table)}{_links(table)}"
    return f'<section class="card"><h3>{title}</h3>{content}</section>'


def _links(item: Mapping[str, Any]) -> str:
    """Links to the files that a table came from and to those that have it."""
    sources = item.get("sources") or {}
    links = ", ".join(f'<a href="{escape(quote(href))}">{escape(name)}</a>' for name, href in sources.items())
    return f'<p class="note">Files: {links}</p>' if links else ""


def _note(item: Mapping[str, Any]) -> str:
    note = item.get("note")
    return f'<p class="note">{escape(note)}</p>' if note else ""


def _table(name: str, table: Mapping[str, Any]) -> str:
    """The `columns` and `rows` of text; a column of numbers is set to the right."""
    numbers = [all(map(_is_number, column)) for column in zip(*table["rows"], strict=True)]
    rows = [
        "".join(_cell(_text(cell), number) for cell, number in zip(row, numbers, strict=True))
        for row in table["rows"]
    ]
    return _scrolling_table(name, table["columns"], numbers or [False] * len(table["columns"]), rows)


def _is_number(value: Any) -> bool:
    return value in (None, "", "-", _MISSING) or _NUMBER.match(str(value)) is not None


def _scrolling_table(name: str, columns: Sequence[str], numbers: Sequence[bool], rows: Sequence[str]) -> str:
    """A table that scrolls horizontally if the page is too narrow; `rows` are HTML."""
    head = "".join(
        f'<th scope="col"{_NUMBER_CLASS if number else ""}>{_text(column)}</th>'
        for column, number in zip(columns, numbers, strict=True)
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(html: str, number: bool) -> str:
    return f"<td{_NUMBER_CLASS if number else ''}>{html}</td>"


def _text(value: Any) -> str:
    return _MISSING if value is None else escape(str(value))


def _figure(figure: Mapping[str, Any]) -> str:
    """An SVG as an image, so that its ids and styles do not clash with the page's."""
    title, image = escape(figure["title"]), base64.b64encode(figure["svg"].encode()).decode()
    return (
        f'<figure class="card"><h3>{title}</h3>{_note(figure)}'
        f'<img alt="{title}" src="data:image/svg+xml;base64,{image}"></figure>'
    )


def _differences(differences: Mapping[str, Any]) -> str:
    if not differences.get("rows"):
        what = "The configurations that are compared" if differences.get("searches") else "All configurations"
        return f'<p class="note">{what} are the same but for task and seed.</p>'
    return _table("What differs", differences) + _links(differences)


def _trials(data: Mapping[str, Any]) -> str:
    """A table row per run, in order; page.js opens the run's configuration on a click."""
    columns = ["trial", "task", "series", "seed", "steps reached", "last return", "wall time (h)"]
    numbers = [name not in ("trial", "task", "series") for name in columns]
    rows = [_trial(data, run) for run in data["runs"]]
    return _scrolling_table("Trials", columns, numbers, rows) + _links(data)


def _trial(data: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    task, series = data["tasks"][run["task"]]["name"], data["series"][run["series"]]["label"]
    steps, returned, seconds = (_last(run[name]) for name in ("steps", "return_mean", "wall_time_s"))
    hours = None if seconds is None else seconds / 3600
    texts = [_cell(_text(value), False) for value in (run["trial_id"], task, series)]
    numbers = [(run["seed"], "d"), (steps, ",d"), (returned, ".2f"), (hours, ".2f")]
    return "".join([*texts, *(_rounded(value, form) for value, form in numbers)])


def _last(values: Sequence[Any]) -> Any:
    return values[-1] if values else None


def _rounded(value: float | None, form: str) -> str:
    """A cell that shows a rounded number and keeps the exact one for copies."""
    if value is None:
        return _cell(_MISSING, True)
    return f'<td{_NUMBER_CLASS} data-value="{value!r}">{value:{form}}</td>'

"""Damage files and values, equally for equal seeds."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TOKENS = (
    *("2024-13-45", "2024-01-01", "0x", "0b", "0o", "1:99", "9" * 5_000, "1e999", ".nan", "-.inf", "1_", "0644"),
    *("!!int abc", "!!python/object:os.system x", "!x", "&a [*a]", "*b", "<<: *b", "<<: 3", "? [a]", "1: 2", "~: 1"),
    *("[" * 300, "{a: " * 300, "- " * 300, "- - -", "---\n", "...\n", "%YAML 9.9\n---\n", "\t", '"\\uD800"'),
    *('"\\UFFFFFFFF"', "'", '"', "|\n", ">-\n x", "#", "yes", "null", "true", "''", "[]", "{}"),
    *("\x00", "\x7f", "\ufeff", "é", "\U0001f600", "%s %d {}", "[bold]", "../../etc"),
    *("/", ".x", "a..b", ":x", ".x:Hopper-v4", "x" * 300, BOMB),
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        10**40,
        0.5,
        -0.0,
        float("inf"),
        float("nan"),
        1e308,
        "",
        "a",
        "0",
    ),
    *(
        "x" * 300,
        "../x",
        "/etc/passwd",
        ".x",
        "a\nb",
        "\x00",
        "\u2028",
        [],
        {},
        [[]],
        [None],
        {"": None},
        {"a": 1},
    ),
    *([1, "a"], [0.1] * 50, {"file": "/x"}, "2024-13-45", "auto", "yes"),
)


def damaged_text(text: str, rng: random.Random) -> bytes:
    """Damage a text in one to three places."""
    data = text.encode()
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(data) + 1)
        kind = rng.choice(("insert", "value", "cut", "flip", "repeat", "end"))
        token = rng.choice(TOKENS).encode(errors="surrogatepass")
        if kind == "insert":
            data = data[:place] + token + data[place:]
        elif kind == "value":  # what stands behind a colon
            colons = [i for i, byte in enumerate(data) if byte == ord(":")]
            at = rng.choice(colons or [0])
            end = data.find(b"\n", at)
            data = data[: at + 1] + b" " + token + (data[end:] if end >= 0 else b"")
        elif kind == "cut":
            data = data[:place] + data[place + rng.randint(1, 40) :]
        elif kind == "flip":
            data = data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        elif kind == "repeat":
            data = data[:place] + data[place : place + 30] * rng.randint(1, 20) + data[place:]
        else:
            data = data[:place]
    return data


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change, drop or add a few bytes of a binary file, often near its ends."""
    for _ in range(rng.randint(1, 4)):
        near = rng.choice((len(data), min(len(data), 200)))
        place = rng.choice((rng.randrange(near + 1), max(0, len(data) - 1 - rng.randrange(near + 1))))
        kind = rng.choice(("flip", "flip", "cut", "insert", "end"))
        if kind == "flip":
            data = data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        elif kind == "cut":
            data = data[:place] + data[place + rng.randint(1, 20) :]
        elif kind == "insert":
            data = data[:place] + rng.randbytes(rng.randint(1, 20)) + data[place:]
        else:
            data = data[:place]
    return data


def damaged_values(values: Any, rng: random.Random) -> Any:
    """Replace or remove one or two items in nested dicts and lists."""
    values = copy.deepcopy(values)
    for _ in range(rng.randint(1, 2)):
        places = list(_places(values))
        if not places:
            break
        holder, key = rng.choice(places)
        if rng.random() < 0.2:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return values


def damaged_json(values: Any, rng: random.Random) -> bytes:
    """Return the JSON of values, damaged as values or as text."""
    if rng.random() < 0.7:
        return json.dumps(damaged_values(values, rng), indent=1).encode()
    return damaged_text(json.dumps(values, indent=1), rng)


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(values) if isinstance(values, dict) else range(len(values)):
        yield values, key
        if isinstance(values[key], dict | list):
            yield from _places(values[key])

"""Resolve plain scalars in YAML.

Files of this package follow YAML 1.2's core schema, with underscores in numbers: `null`, `true`, `5_000`, `3e-4` and
`.inf` have a meaning, and everything else is a string, including dates, `yes`, `010`, `0x10` and `1:30`. Files that
other programs also read (those of `ray up` and Kubernetes) follow YAML 1.1 as those programs do, except for dates.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import yaml

Dialect = Literal["core", "1.1"]

_MAX_DIGITS = 100
_INTEGER = re.compile(r"[-+]?(?:0|[1-9](?:_?[0-9])*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9](?:_?[0-9])*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{sign + word: float(f"{sign}inf") for word in (".inf", ".Inf", ".INF") for sign in ("", "+", "-")},
}


def plain_value(text: str, dialect: Dialect) -> Any:
    """Return the value of a scalar without quotes.

    Raises:
        ValueError: If it is a number that Python cannot represent.
    """
    if dialect == "1.1":
        return _value_1_1(text)
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        _refuse_long(text)
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _refuse_long(text: str) -> None:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(text):,} digits; at most {_MAX_DIGITS} are allowed")


_LOADER = yaml.SafeLoader("")
_TAG = "tag:yaml.org,2002:"


def _value_1_1(text: str) -> Any:
    tag: str = _LOADER.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    kind = tag.removeprefix(_TAG)
    if kind not in {"null", "bool", "int", "float"}:
        return text
    if kind == "int":
        _refuse_long(text)
    node = yaml.ScalarNode(f"{_TAG}{kind}", text)
    try:
        return _LOADER.construct_object(node)
    except (ValueError, IndexError):  # PyYAML takes a bare "0x" or "0b" for a number
        raise ValueError(f"{text!r} is not a number; put it in quotes if it is text") from None

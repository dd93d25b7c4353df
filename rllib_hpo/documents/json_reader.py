"""Read JSON files, which users may have written or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rllib_hpo.documents.text import read_bytes
from rllib_hpo.errors import UserError

MAX_JSON_BYTES = 2**28
"""Size limit; the manifest of a long run lists a few thousand segments of its replay."""
_MAX_DIGITS = 100


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        UserError: If it cannot be read, is not JSON, or is not an object.
    """
    return parse_json(read_bytes(path, kind, MAX_JSON_BYTES), f"The {kind} {path}")


def parse_json(text: str | bytes, what: str) -> dict[str, Any]:
    """Parse the object in a JSON text.

    Args:
        text: The text, or its UTF-8 bytes.
        what: Its name in messages, such as "The file a.json".

    Raises:
        UserError: If it is not JSON, is nested too deeply, or is not an object.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        value = json.loads(text, parse_int=_integer)
        json.dumps(
            value, ensure_ascii=False
        ).encode()  # half of a surrogate pair can be neither printed nor stored
    except RecursionError as error:
        raise UserError(f"{what} cannot be read as JSON: it is nested too deeply.") from error
    except ValueError as error:
        raise UserError(f"{what} is invalid JSON: {' '.join(str(error).split())}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{what} must hold a JSON object, not {type(value).__name__}.")
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits; at most {_MAX_DIGITS} are allowed")
    return int(digits)

"""Returns of a uniformly random policy, the zero of normalised scores.

`python -m benchmarks.random_policy` measures it and writes `random_returns.json`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("random_returns.json")


def random_return(env_id: str) -> float | None:
    """Mean return of a random policy in an environment, or None if it was not measured."""
    measured = _measured().get(env_id)
    return None if measured is None else float(measured["return_mean"])


@cache
def _measured() -> dict[str, dict[str, float]]:
    measured: dict[str, dict[str, float]] = json.loads(FILE.read_text())["environments"]
    return measured

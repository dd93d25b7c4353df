"""List what a schema of KubeRay allows at each place, as lines by which to compare two schemas.

    python -m tests.experiments.kuberay_places DIRECTORY

prints the number of lines of the operator's own definitions in a directory, and their fingerprint; and for each line
in which this package's schema differs, which of the two has it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rllib_hpo.experiments.cluster.check.kuberay import KINDS, operators_schema, schema


def places(whole: dict[str, Any]) -> list[str]:
    """Return every place in a specification, with its type and required keys, without what Kubernetes writes."""
    return sorted(_places(whole["properties"]["spec"], whole.get("$defs", {}), ""))


def _places(node: dict[str, Any], defined: dict[str, Any], place: str) -> Iterator[str]:
    while "$ref" in node:
        node = defined[node["$ref"].removeprefix("#/$defs/")]
    kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
    yield f"{place}: {' '.join(sorted(kinds))}; {' '.join(sorted(node.get('required', [])))}"
    for key, value in node.get("properties", {}).items():
        if key != "status":
            yield from _places(value, defined, f"{place}.{key}")
    if isinstance(more := node.get("additionalProperties"), dict):
        yield from _places(more, defined, f"{place}.*")
    elif kinds == ["object"]:
        assert more is False, place
    if "items" in node:
        yield from _places(node["items"], defined, f"{place}[]")


def fingerprint(lines: list[str]) -> str:
    """Return the SHA-256 of the lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


if __name__ == "__main__":
    for kind in KINDS:
        own, theirs = places(schema(kind)), places(operators_schema(kind, Path(sys.argv[1])))
        print(kind, len(theirs), fingerprint(theirs))
        for line in sorted({*own} ^ {*theirs}):
            print("only in this package:" if line in own else "only in the operator's:", line)

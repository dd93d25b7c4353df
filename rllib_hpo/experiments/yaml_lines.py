"""YAML files that remember on which line everything stands, so that a mistake can be named with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from rllib_hpo.errors import SettingsError, UserError

Place = tuple[Any, ...]
"""Keys and indices that lead from the top of a document to something in it."""
_MERGE = "<<"


class YamlLines:
    """A document, a mapping at its top, and the line of everything in it."""

    def __init__(self, path: Path, root: MappingNode, values: dict[Any, Any]) -> None:
        self.path, self.root, self.values = path, root, values
        self._refuse_repeated_keys(root, ())

    def line(self, place: Place) -> int:
        """The line (from 1) of a place, or of what is nearest above it where it does not exist."""
        node: Node
        node, line = self.root, self.root.start_mark.line + 1
        for part in place:
            found = _child(node, part)
            if found is None:
                break
            node, line = found
        return line

    def error(self, place: Place, message: str) -> SettingsError:
        """An error that begins with the file and the line of `place`."""
        message = message if message.endswith((".", "?")) else f"{message}."
        return SettingsError(f"{self.path}, line {self.line(place)}: {message}")

    def _refuse_repeated_keys(self, node: Node | None, place: Place) -> None:
        if isinstance(node, MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if key.value in seen:
                    raise SettingsError(
                        f"{self.path}, line {key.start_mark.line + 1}: '{key.value}' stands here twice."
                    )
                seen.add(key.value)
                self._refuse_repeated_keys(value, (*place, key.value))
        elif isinstance(node, SequenceNode):
            for i, value in enumerate(node.value):
                self._refuse_repeated_keys(value, (*place, i))


def read_documents(path: Path, kind: str, many: bool = True) -> list[YamlLines]:
    """The documents of a file.

    Args:
        path: YAML.
        kind: What messages call the file, as "sweep file".
        many: Whether it may hold more than one document, or none.

    Raises:
        UserError: If it cannot be read, is not YAML, or something other than a mapping is at the top of a document.
    """
    try:
        text = path.read_text()
        values = list(yaml.safe_load_all(text)) if many else [yaml.safe_load(text)]
        roots = list(yaml.compose_all(text, yaml.SafeLoader))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The {kind} {path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"The {kind} {path} is not YAML: {' '.join(str(error).split())}.") from error
    documents = []
    # An empty file has no root; an empty document among several has one that holds null.
    for root, value in zip([*roots, None][: len(values)], values, strict=True):
        if value is None and many:
            continue
        if not (isinstance(value, dict) and isinstance(root, MappingNode)):
            raise UserError(f"The {kind} {path} must hold 'name: value' lines.")
        documents.append(YamlLines(path, root, value))
    return documents


def _child(node: Node, part: Any) -> tuple[Node, int] | None:
    """The node under a key or an index, and its line (from 1)."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if isinstance(key, ScalarNode) and key.value == str(part):
                return value, key.start_mark.line + 1
        for key, value in node.value:
            if key.value == _MERGE:
                merged = value.value if isinstance(value, SequenceNode) else [value]
                for one in merged:
                    if (found := _child(one, part)) is not None:
                        return found
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part].start_mark.line + 1
    return None

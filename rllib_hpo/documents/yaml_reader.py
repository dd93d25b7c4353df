"""Read YAML strictly: bounded, without tags, with unique string keys; errors name the line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from rllib_hpo.documents.scalars import Dialect, plain_value
from rllib_hpo.documents.text import MAX_BYTES, read_text
from rllib_hpo.errors import SettingsError, UserError

Place = tuple[Any, ...]
"""Keys and indices that lead from the top of a document to an element."""

MAX_DEPTH = 50
MAX_NODES = 20_000
"""Limit on nodes of a file; repetitions by aliases count each time."""
_MERGE = "<<"


@dataclass(eq=False)
class _Node:
    """A value, with the lines of its elements."""

    value: Any
    line: int
    children: dict[Any, tuple[int, _Node]] = field(default_factory=dict)
    """Line and node by key or index."""
    size: int = 1
    depth: int = 1
    is_open: bool = False
    """Whether its end was not read yet; an alias to it would then contain itself."""


class YamlLines:
    """A document with a mapping at its top, and the line of every element."""

    def __init__(self, path: Path, root: _Node) -> None:
        self.path, self.root = path, root
        self.values: dict[str, Any] = root.value

    def line(self, place: Place) -> int:
        """Return the line (from 1) of a place, or of its nearest ancestor that exists."""
        node, line = self.root, self.root.line
        for part in place:
            found = node.children.get(part)
            if found is None:
                break
            line, node = found
        return line

    def error(self, place: Place, message: str) -> SettingsError:
        """Make an error that begins with the file and the line of `place`."""
        message = message if message.endswith((".", "?")) else f"{message}."
        return SettingsError(f"{self.path}, line {self.line(place)}: {message}")


def read_documents(
    path: Path, kind: str, many: bool = True, dialect: Dialect = "core", max_bytes: int = MAX_BYTES
) -> list[YamlLines]:
    """Read the documents of a file.

    Args:
        path: A YAML file, which may be JSON.
        kind: The file's kind in messages, such as "sweep file".
        many: Whether it may hold several documents, or none.
        dialect: Rules of plain scalars.
        max_bytes: Size limit of the file.

    Raises:
        SettingsError: If part of it is invalid or unsupported YAML; names the line.
        UserError: If the file cannot be read, or the top of a document is not a mapping.
    """
    documents = []
    builder = _Builder(read_text(path, kind, max_bytes), f"{path}, line ", dialect)
    for root in builder.documents():
        if root.value is None and many:
            continue
        if not isinstance(root.value, dict):
            raise UserError(f"The {kind} {path} must hold 'name: value' lines.")
        documents.append(YamlLines(path, root))
    if not many and len(documents) != 1:
        what = "'name: value' lines" if not documents else "one document, without a '---' line between"
        raise UserError(f"The {kind} {path} must hold {what}.")
    return documents


def read_mapping(path: Path, kind: str) -> dict[str, Any]:
    """Read the values of a file with one document of `name: value` lines.

    Raises:
        UserError: As `read_documents`.
    """
    return read_documents(path, kind, many=False)[0].values


def parse_value(text: str) -> Any:
    """Parse `text` as a value, as after the colon of a YAML line.

    Raises:
        SettingsError: If it is not a value.
    """
    roots = list(_Builder(text, "line ", "core").documents())
    if len(roots) > 1:
        raise SettingsError("it holds more than one document.")
    return roots[0].value if roots else None


class _Builder:
    """Build nodes from the events of PyYAML's parser, which neither recurses nor reads past a rejected event.

    Args:
        text: YAML text.
        where: Text before the line number in messages.
        dialect: Rules of plain scalars.
    """

    def __init__(self, text: str, where: str, dialect: Dialect) -> None:
        self._text, self._where, self._dialect = text, where, dialect
        self._anchors: dict[str, _Node] = {}
        self._num_nodes, self._line = 0, 1

    def documents(self) -> Iterable[_Node]:
        """Return the top node of each document.

        Raises:
            SettingsError: If the YAML is invalid; names line and mistake.
        """
        try:
            self._events = yaml.parse(self._text, yaml.SafeLoader)
            while not isinstance(event := self._next(), StreamEndEvent):
                if isinstance(event, DocumentStartEvent):
                    self._anchors = {}
                    yield self._node(self._next(), 1)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else self._line
            said = ", ".join(part for part in (error.context, error.problem) if part)
            raise self._error(line, f"invalid YAML: {said}") from None
        except yaml.reader.ReaderError as error:
            line = self._text[: error.position].count("\n") + 1
            raise self._error(line, f"the character {chr(error.character)!r} is not allowed") from None
        except (ValueError, OverflowError) as error:
            if isinstance(error, SettingsError):
                raise
            # PyYAML converts escapes and versions to numbers without checking them.
            raise self._error(self._line, f"invalid YAML: {error}") from None

    def _error(self, line: int, message: str) -> SettingsError:
        return SettingsError(f"{self._where}{line}: {' '.join(message.split())}.")

    def _next(self) -> Event:
        event: Event = next(self._events)
        self._line = event.start_mark.line + 1  # type: ignore[union-attr]
        return event

    def _node(self, event: Event, depth: int) -> _Node:
        """Return the node that begins with `event`."""
        self._count(1)
        if depth > MAX_DEPTH:
            raise self._error(self._line, f"this is nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, AliasEvent):
            return self._alias(event, depth)
        assert isinstance(event, NodeEvent)
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise self._error(self._line, f"the tag '{tag}' is not supported; leave it out")
        node = _Node(None, self._line, is_open=True)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        if isinstance(event, ScalarEvent):
            node.value = self._scalar(event)
        elif isinstance(event, SequenceStartEvent):
            self._fill_sequence(node, depth)
        else:
            assert isinstance(event, MappingStartEvent)
            self._fill_mapping(node, depth)
        node.is_open = False
        return node

    def _count(self, size: int) -> None:
        self._num_nodes += size
        if self._num_nodes > MAX_NODES:
            raise self._error(
                self._line, f"there are more than {MAX_NODES:,} values, counting those that aliases repeat"
            )

    def _alias(self, event: AliasEvent, depth: int) -> _Node:
        node = self._anchors.get(event.anchor or "")
        if node is None:
            raise self._error(self._line, f"no anchor '&{event.anchor}' is defined above")
        if node.is_open:
            raise self._error(self._line, f"'*{event.anchor}' refers to itself")
        if depth + node.depth > MAX_DEPTH:
            raise self._error(self._line, f"this is nested more than {MAX_DEPTH} levels deep")
        self._count(node.size)
        return node

    def _scalar(self, event: ScalarEvent) -> Any:
        text: str = event.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            try:  # JSON escapes a character beyond 16 bits as a surrogate pair
                text = text.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                raise self._error(self._line, "a lone surrogate is not a character") from None
        if not event.implicit[0]:  # quoted, or a block
            return text
        try:
            return plain_value(text, self._dialect)
        except (ValueError, OverflowError) as error:
            raise self._error(self._line, str(error)) from None

    def _add(self, parent: _Node, key: Any, line: int, child: _Node) -> None:
        parent.children[key] = line, child
        parent.size += child.size
        parent.depth = max(parent.depth, child.depth + 1)

    def _fill_sequence(self, node: _Node, depth: int) -> None:
        node.value = []
        while not isinstance(event := self._next(), SequenceEndEvent):
            line = self._line
            child = self._node(event, depth + 1)
            self._add(node, len(node.value), line, child)
            node.value.append(child.value)

    def _fill_mapping(self, node: _Node, depth: int) -> None:
        node.value = {}
        merged: list[tuple[int, _Node]] = []
        seen: set[str] = set()
        while not isinstance(event := self._next(), MappingEndEvent):
            key, line = self._key(event)
            if key in seen:
                raise self._error(line, f"the key '{key}' is repeated")
            seen.add(key)
            child = self._node(self._next(), depth + 1)
            if key == _MERGE and event.implicit[0]:  # type: ignore[attr-defined]
                merged.append((line, child))
            else:
                self._add(node, key, line, child)
                node.value[key] = child.value
        for line, child in merged:
            self._merge(node, line, child)

    def _key(self, event: Event) -> tuple[str, int]:
        line = self._line
        if not isinstance(event, ScalarEvent):
            raise self._error(line, "a key must be a word, not a list, a mapping or an alias")
        key = event.value if event.implicit[0] and event.value == _MERGE else self._node(event, 1).value
        if not isinstance(key, str):
            raise self._error(
                line, f"the key {event.value or 'null'} is not a string; if it is one, put it in quotes"
            )
        return key, line

    def _merge(self, node: _Node, line: int, child: _Node) -> None:
        """Add the missing keys of `<<: *other`, or of a list of other mappings."""
        others = [one for _, one in child.children.values()] if isinstance(child.value, list) else [child]
        for other in others:
            if not isinstance(other.value, dict):
                raise self._error(line, "'<<' must be followed by a mapping, or a list of them")
            for key, (own_line, value) in other.children.items():
                if key not in node.value:
                    self._add(node, key, own_line, value)
                    node.value[key] = value.value

"""Test the strict YAML reader: what it reads, and what it rejects at which line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from rllib_hpo.documents import parse_value, read_documents, read_mapping
from rllib_hpo.errors import SettingsError, UserError
from tests.fuzz.damage import BOMB

ROOT = Path(__file__).resolve().parents[2]


def with_numbers(value: Any) -> Any:
    """Convert 3e-4, which YAML 1.1 reads as a string, to a number."""
    if isinstance(value, dict):
        return {key: with_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_numbers(inner) for inner in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


@pytest.mark.parametrize("path", sorted((ROOT / "tune_configs").rglob("*.yaml")), ids=lambda path: path.name)
def test_sweep_files_read_as_by_pyyaml(path: Path) -> None:
    assert read_mapping(path, "sweep file") == with_numbers(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", sorted((ROOT / "cluster").rglob("*.yaml")), ids=lambda path: path.name)
def test_cluster_files_read_as_by_ray(path: Path) -> None:
    read = [document.values for document in read_documents(path, "cluster file", dialect="1.1")]
    assert read == [values for values in yaml.safe_load_all(path.read_text()) if values is not None]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("3e-4", 3e-4), ("1e5", 1e5), ("-.5", -0.5), ("5_000", 5000), ("-0", 0), (".inf", float("inf"))),
        *(("true", True), ("null", None), ("~", None), ("", None), ("'3'", "3"), ("[1, a]", [1, "a"])),
        *(
            (text, text)
            for text in ("2024-13-45", "2024-01-01", "0x", "0x1F", "0b", "010", "1:30", "yes", "off", "1__0")
        ),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_values(text: str, value: Any) -> None:
    read = parse_value(text)
    assert read == value
    assert type(read) is type(value)


def test_cluster_files_keep_the_numbers_and_words_of_yaml_1_1(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: yes\nb: 0400\nc: 0x1F\nd: 2024-01-01\ne: &e {f: 1}\ng: {<<: *e, h: 2}\n")
    (document,) = read_documents(path, "cluster file", dialect="1.1")
    assert document.values == {
        "a": True, "b": 0o400, "c": 31, "d": "2024-01-01", "e": {"f": 1}, "g": {"f": 1, "h": 2},
    }  # fmt: skip
    assert document.line(("g", "h")) == 6
    assert document.line(("g", "f")) == 5


MISTAKES = {
    "alias bomb": (BOMB, 5, "more than 20,000 values"),
    "lists within lists": ("a: " + "[" * 100_000, 1, "more than 50 levels"),
    "mappings within mappings": ("{a: " * 100_000, 1, "more than 50 levels"),
    "blocks within blocks": ("- " * 100_000, 1, "more than 50 levels"),
    "depth by aliases": (
        "a: &a " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 20 + "*a" + "]" * 20,
        2,
        "50 levels",
    ),
    "a list within itself": ("a: 1\nb: &b [*b]", 2, "'*b' refers to itself"),
    "a mapping within itself": ("b: &b {c: *b}", 1, "'*b' refers to itself"),
    "no such anchor": ("a: *b", 1, "no anchor '&b' is defined above"),
    "5,000 digits": ("a: 1\nb: " + "9" * 5_000, 2, "5,000 digits"),
    "a tag": ("a: !!int abc", 1, "the tag 'tag:yaml.org,2002:int' is not supported"),
    "a tag of Python's": ("a: !!python/object:os.system x", 1, "is not supported"),
    "a number as key": ("a: 1\n1: 2", 2, "the key 1 is not a string"),
    "null as key": ("~: 2", 1, "the key ~ is not a string"),
    "a list as key": ("? [a]\n: 2", 1, "a key must be a word"),
    "a key twice": ("a: 1\nb: {c: 1,\n c: 2}", 3, "the key 'c' is repeated"),
    "a null byte": ("a: 1\nb: \x00", 2, "is not allowed"),
    "half of a pair": ('a: "\\ud800"', 1, "not a character"),
    "an escape beyond Unicode": ('a: "\\UFFFFFFFF"', 1, "invalid YAML"),
    "a version of 5,000 digits": (f"%YAML 1.{'9' * 5_000}\n---\na: 1", 1, "invalid YAML"),
    "a merge with a number": ("a: 1\n<<: 3", 2, "must be followed by a mapping"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_their_line(mistake: str, tmp_path: Path) -> None:
    text, line, message = MISTAKES[mistake]
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_mapping(path, "sweep file")
    assert str(caught.value).startswith(f"{path}, line {line}: "), str(caught.value)[:200]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(SettingsError, match="line 2: the sweep file is not UTF-8"):
        read_mapping(path, "sweep file")
    path.write_bytes(b"a: x\n" * 300_000)
    with pytest.raises(UserError, match="is larger than"):
        read_mapping(path, "sweep file")
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(UserError, match="cannot be read: "):
        read_mapping(path, "sweep file")
    with pytest.raises(UserError, match="cannot be read: "):
        read_mapping(tmp_path, "sweep file")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a regular file"):
        read_mapping(tmp_path / "pipe", "sweep file")
    with pytest.raises(UserError, match="is larger than"):
        read_mapping(Path("/dev/zero"), "sweep file")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_mapping(tmp_path / "x.yaml", "sweep file") == {"a": 1, "b": 2}

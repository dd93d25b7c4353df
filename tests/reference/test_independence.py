"""Test that the references share no code with the package they check."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_references_import_nothing_from_the_package(file: Path) -> None:
    """They import only the standard library, NumPy, torch (pytest here) and each other."""
    imported = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert not [
        name for name in imported if name.startswith(("rllib_hpo", "tests.")) and "reference" not in name
    ]

"""Test the structure of the package: no circular imports, and no package that is too large."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rllib_hpo"
MOST_LINES = 1_700
"""Limit for one package of experiments, without its subpackages."""


def read_package(root: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of every module below `root`, by its dotted name."""
    trees = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        trees[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text())
    return trees


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Return all nodes below `tree` except those that only type checkers see."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        waiting += node.orelse if is_for_types else ast.iter_child_nodes(node)
        yield node


def imported(module: str, is_package: bool, tree: ast.Module) -> Iterator[str]:
    """Return every name that a module imports anywhere: "a.b" for `import a.b`, "a.b.c" for `from a.b import c`."""
    for node in statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


@functools.cache
def import_graph(root: Path) -> dict[str, set[str]]:
    """Return the modules that each module below `root` imports; the import of a parent package does not count."""
    trees = read_package(root)
    graph = {}
    for module, tree in trees.items():
        is_package = (root.parent / module.replace(".", "/")).is_dir()
        found = {
            name if name in trees else name.rpartition(".")[0] for name in imported(module, is_package, tree)
        }
        graph[module] = found & trees.keys() - {module}
    return graph


def find_circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return modules each of which imports the one before it, the first equal to the last; empty without a circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_circle() -> None:
    graph = import_graph(PACKAGE)
    assert len(graph) > 150
    assert "rllib_hpo.rllib.config" in graph["rllib_hpo.rllib.algorithm"]
    assert find_circle(graph) == []


@pytest.mark.parametrize(
    "planted",
    [
        "from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm",
        "from rllib_hpo.rllib import algorithm",
        "import rllib_hpo.rllib.algorithm",
        "from .algorithm import ActorCriticAlgorithm",
        "def build():\n    from rllib_hpo.rllib import algorithm",
        "class Config:\n    def build(self):\n        import rllib_hpo.rllib.algorithms as _",
    ],
)
def test_planted_circle_is_found(planted: str) -> None:
    graph, module = import_graph(PACKAGE), "rllib_hpo.rllib.config"
    names = set(imported(module, False, ast.parse(planted)))
    new = {name if name in graph else name.rpartition(".")[0] for name in names}
    circle = find_circle({**graph, module: graph[module] | new})
    assert circle[0] == circle[-1]
    assert {module, "rllib_hpo.rllib.algorithm"} <= set(circle)


def test_imports_for_type_checkers_are_none() -> None:
    tree = ast.parse("if TYPE_CHECKING:\n    import rllib_hpo.cli\nelse:\n    import rllib_hpo.errors")
    assert list(imported("rllib_hpo.settings", False, tree)) == ["rllib_hpo.errors"]


def test_packages_of_experiments_are_small() -> None:
    lines = {
        str(package.relative_to(PACKAGE)): sum(
            len(path.read_text().splitlines()) for path in package.glob("*.py")
        )
        for package in (PACKAGE / "experiments").rglob("*")
        if package.is_dir() and package.name != "__pycache__"
    }
    assert len(lines) >= 8
    assert {name: number for name, number in lines.items() if number > MOST_LINES} == {}
    alone = {path.name for path in (PACKAGE / "experiments").glob("*.py")}
    assert alone == {"__init__.py"}

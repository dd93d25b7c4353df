"""Test that only `rllib_hpo/rllib/_private.py` uses what Ray does not promise."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

import rllib_hpo
from rllib_hpo.rllib._private import CHECKED_ON

PACKAGE = Path(rllib_hpo.__file__).parent
HOME = PACKAGE / "rllib" / "_private.py"
PRIVATE = re.compile(r"_[a-zA-Z]\w*$")
"""Matches `_name`, but not `__name__`."""
PROMISED = {"_forward_exploration", "_forward_inference"}
"""Methods of RLModule that its documentation tells users to override."""
OTHERS = {
    "_asdict", "_fields", "_replace",  # of named tuples
    "_client",  # pybullet's
    "_np_random",  # gymnasium's
    "_to_model",  # wandb_workspaces'
}  # fmt: skip
"""Private attributes of other libraries than Ray."""


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def own_names() -> frozenset[str]:
    """Return the private names of this package's own functions, classes and attributes, outside of `_private`."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(tree_of(path)) if path != HOME else ():
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                found.add(node.attr)
    return frozenset(found)


def is_self(node: ast.expr) -> bool:
    """Return whether it is the object of a method itself: `self`, `cls` or `super()`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def imports(tree: ast.Module) -> Iterator[str]:
    """Return imports of Ray's private modules, and of private names from any of its modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first == "ray" and any(map(PRIVATE.match, rest)):
                yield name


def accesses(tree: ast.Module) -> Iterator[str]:
    """Return private attributes of objects of other packages, as in `group._worker_manager`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and PRIVATE.match(node.attr) and not is_self(node.value):
            is_torchs = ast.unparse(node).startswith("torch.")
            if node.attr not in own_names() | OTHERS and not is_torchs:
                yield ast.unparse(node)


def replacements(tree: ast.Module) -> Iterator[str]:
    """Return assignments to attributes of Ray's modules, as in `ray.put = ...`."""
    modules = {"ray": "ray"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ray":
            modules |= {
                alias.asname or alias.name: alias.name for alias in node.names if alias.name.islower()
            }
    for node in ast.walk(tree):
        is_set = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if is_set and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield ast.unparse(node)


@functools.cache
def names_of_ray(base: type) -> frozenset[str]:
    """Return private names that a class of Ray defines or sets."""
    return frozenset(re.findall(r"\bself\.(_[a-zA-Z]\w*)", inspect.getsource(base))) | {
        name for name in vars(base) if PRIVATE.match(name)
    }


def inherited(cls: type) -> Iterator[str]:
    """Return private names of Ray's bases that a class overrides or uses."""
    theirs = (
        frozenset[str]()
        .union(*(names_of_ray(base) for base in cls.__mro__ if base.__module__.startswith("ray.")))
        .difference(PROMISED)
    )
    bodies = [
        node
        for node in ast.walk(tree_of(Path(inspect.getfile(cls))))
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    ]  # none of a class that a call has made
    for node in [node for body in bodies for node in ast.walk(body)]:
        if isinstance(node, ast.FunctionDef) and node.name in theirs:
            yield f"def {node.name}"
        elif isinstance(node, ast.Attribute) and is_self(node.value) and node.attr in theirs:
            yield ast.unparse(node)


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != HOME)


def test_each_use_names_what_it_was_checked_on() -> None:
    assert ray.__version__.startswith(f"{CHECKED_ON}.")
    uses = [node for node in tree_of(HOME).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert len(uses) > 20
    for use in uses:
        assert f"Ray {CHECKED_ON}." in (ast.get_docstring(use) or ""), use.name


def test_no_other_file_imports_it() -> None:
    found = {str(path.relative_to(PACKAGE)): list(imports(tree_of(path))) for path in modules()}
    assert {path: names for path, names in found.items() if names} == {}


def test_no_other_file_uses_it() -> None:
    for finder in (accesses, replacements):
        found = {str(path.relative_to(PACKAGE)): list(finder(tree_of(path))) for path in modules()}
        assert {path: names for path, names in found.items() if names} == {}


def test_no_class_overrides_it() -> None:
    found = {}
    for path in modules():
        if path.name.startswith("__"):
            continue
        module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__ and (names := sorted(set(inherited(cls)))):
                found[f"{module.__name__}.{name}"] = names
    assert found == {}


@pytest.mark.parametrize(
    ("planted", "finder"),
    [
        ("import ray._private.utils", imports),
        ("from ray.autoscaler._private import util", imports),
        ("from ray.tune.registry import _global_registry", imports),
        ("def f(group):\n    return group._worker_manager.actors()", accesses),
        ("import ray\nray.put = None", replacements),
        (
            "from ray.rllib.core.learner.torch import torch_learner\ntorch_learner.get_device = None",
            replacements,
        ),
    ],
)
def test_what_is_planted_is_found(planted: str, finder: object) -> None:
    assert callable(finder)
    assert len(list(finder(ast.parse(planted)))) == 1

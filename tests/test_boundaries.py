"""Test that the linters of the package's boundaries find each planted violation, and nothing else.

They check imports of the whole package, and types and style of one small module, since `make lint` does the rest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sys.executable).parent
MODULE = "rllib_hpo/errors.py"
"""Module in which type and style errors are planted."""

IMPORT_VIOLATIONS = {
    # planted line: (module it is planted in, contract that must break)
    "import ray": ("samplers/leapfrog.py", "know nothing of Ray"),
    "import wandb": ("networks/critics.py", "know nothing of Ray"),
    "import pandas": ("results/schema.py", "know nothing of Ray"),
    "import torch": ("results/schema.py", "written and read without torch"),
    "from ray import tune": ("analysis/__init__.py", "only the result rows"),
    "import rllib_hpo.algorithms.sac": ("samplers/leapfrog.py", "only those below it"),
    "import rllib_hpo.samplers.gaussian": ("networks/critics.py", "only those below it"),
    "import rllib_hpo.learning.trainer": ("algorithms/sac.py", "only those below it"),
    "import rllib_hpo.algorithms.sac as _": ("learning/trainer.py", "Learning knows no algorithm"),
    "import rllib_hpo.rllib": ("tasks/__init__.py", "only those below it"),
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy the package and the linters' configuration, to plant violations in."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "rllib_hpo", tmp_path / "rllib_hpo", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def plant(path: Path, code: str) -> None:
    path.write_text(f"{path.read_text()}\n\n{code}\n")


def run(checkout: Path, tool: str, *arguments: str) -> tuple[int, str]:
    """Return exit code and output of a tool in the copy, which precedes the installed package on the path."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "NO_COLOR": "1", "COLUMNS": "200"}
    command = [str(SCRIPTS / tool), *arguments]
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr


def lint_imports(checkout: Path) -> tuple[int, str]:
    return run(checkout, "lint-imports", "--no-cache")


def check_types(checkout: Path) -> tuple[int, str]:
    return run(checkout, "mypy", "--follow-imports=skip", "--no-incremental", MODULE)


def lint(checkout: Path) -> tuple[int, str]:
    return run(checkout, "ruff", "check", "--no-cache", "--output-format=concise", MODULE)


def check_format(checkout: Path) -> tuple[int, str]:
    return run(checkout, "ruff", "format", "--no-cache", "--check", MODULE)


def test_imports_are_clean(checkout: Path) -> None:
    code, output = lint_imports(checkout)
    assert code == 0, output
    assert "0 broken" in output


@pytest.mark.parametrize("line", IMPORT_VIOLATIONS)
def test_forbidden_import_is_found(checkout: Path, line: str) -> None:
    module, contract = IMPORT_VIOLATIONS[line]
    plant(checkout / "rllib_hpo" / module, line)
    code, output = lint_imports(checkout)
    assert code != 0
    broken = [found for found in output.splitlines() if found.endswith("BROKEN")]
    assert any(contract in found for found in broken), output


def test_module_without_a_layer_is_found(checkout: Path) -> None:
    (checkout / "rllib_hpo" / "utils.py").write_text('"""Everything else."""\n')
    code, output = lint_imports(checkout)
    assert code != 0
    assert "rllib_hpo.utils" in output


def test_types_are_clean(checkout: Path) -> None:
    code, output = check_types(checkout)
    assert code == 0, output


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ('def planted() -> int:\n    return "a word"', "[return-value]"),
        ("def planted(value):\n    return value", "[no-untyped-def]"),
    ],
)
def test_type_error_is_found(checkout: Path, planted: str, message: str) -> None:
    plant(checkout / MODULE, planted)
    code, output = check_types(checkout)
    assert code == 1, output
    assert message in output


def test_style_is_clean(checkout: Path) -> None:
    code, output = lint(checkout)
    assert code == 0, output
    code, output = check_format(checkout)
    assert code == 0, output


@pytest.mark.parametrize(
    ("planted", "rule"),
    [
        ("import os", "F401"),
        ("def planted() -> None:\n    pass", "D103"),
        ("def planted(numbers: list[int] = []) -> None:\n    '''Shares its default.'''", "B006"),
    ],
)
def test_lint_error_is_found(checkout: Path, planted: str, rule: str) -> None:
    plant(checkout / MODULE, planted)
    code, output = lint(checkout)
    assert code == 1, output
    assert f"{rule} " in output


def test_unformatted_code_is_found(checkout: Path) -> None:
    plant(checkout / MODULE, "x = { 'a':1 }")
    code, output = check_format(checkout)
    assert code == 1
    assert MODULE in output


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("rllib_hpo.learning.trainer rllib_hpo.samplers.hamiltonian", "ray wandb pandas"),
        ("rllib_hpo.results rllib_hpo.errors", "ray wandb torch"),
        ("rllib_hpo.analysis", "ray wandb"),
    ],
)
def test_import_loads_nothing_it_must_not(modules: str, absent: str) -> None:
    """The contracts cannot see the package's own __init__, and imports of third parties."""
    program = f"import sys, {', '.join(modules.split())}; print(*set({absent.split()!r}) & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []

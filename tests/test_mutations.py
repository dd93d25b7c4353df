"""Test that the suite fails for planted mistakes; `python -m tests.mutations` shows by which test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import mutations
from tests.mutations import MUTATIONS, ROOT, Mutation, MutationError, plant

EXAMPLE = Mutation("example", "module.py", "a + b", "a - b", ("test_module.py",))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_text_of_every_mutation_is_in_the_package(mutation: Mutation) -> None:
    """Update a mutation together with its line: its text must occur exactly once."""
    assert (ROOT / "rllib_hpo" / mutation.path).read_text().count(mutation.old) == 1
    assert mutation.old != mutation.new
    assert all((ROOT / "tests" / test).exists() for test in mutation.tests)


@pytest.mark.parametrize("source", ["return a * b\n", "return (a + b) * (a + b)\n"])
def test_a_text_that_is_not_there_once_is_an_error(tmp_path: Path, source: str) -> None:
    """Otherwise a mutation that is no longer planted would look like one that was."""
    (tmp_path / "module.py").write_text(source)
    with pytest.raises(MutationError, match="example"):
        plant(EXAMPLE, tmp_path)


@pytest.mark.parametrize(("killed_by", "code"), [("test_module.py::test_sum", 0), (None, 1)])
def test_exit_code(
    killed_by: str | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is 1 if a mutation survives."""
    monkeypatch.setattr(sys, "argv", ["mutations"])
    monkeypatch.setattr(mutations, "MUTATIONS", (EXAMPLE,))
    monkeypatch.setattr(mutations, "copy_package", lambda root: root)
    monkeypatch.setattr(mutations, "run_tests", lambda root, tests: (0, ""))
    monkeypatch.setattr(mutations, "killer", lambda mutation, package: killed_by)
    assert mutations.main() == code
    assert (killed_by or "SURVIVED") in capsys.readouterr().out


@pytest.mark.exhaustive
@pytest.mark.timeout(2400)
def test_every_mutation_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each planted mistake makes at least one fast test fail."""
    monkeypatch.setattr(sys, "argv", ["mutations"])
    assert mutations.main() == 0

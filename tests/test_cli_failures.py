"""Test that unexpected errors of the command line end in one line and a file with the traceback."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from rllib_hpo.cli import failures


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(failures, "_directory", [])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001
        return caught


def test_the_traceback_goes_into_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    failures.keep_log_in(run)
    assert failures.report(raised(ZeroDivisionError("by\nzero"))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line
        == f"Internal error: ZeroDivisionError: by zero; please report it and attach {run / 'error.log'}."
    )
    assert "Traceback" in (run / "error.log").read_text()


def test_without_a_run_it_goes_into_the_temporary_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures.keep_log_in(tmp_path / "was-never-made")
    assert failures.report(raised(KeyError("x"))) == 1
    path = Path(capsys.readouterr().err.split("and attach ")[1].strip()[:-1])
    assert path.is_relative_to(tmp_path)
    assert "KeyError" in path.read_text()
    assert not (tmp_path / "was-never-made").exists()


def test_where_nothing_can_be_written_it_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no" / "such"))
    assert failures.report(raised(KeyError("x"))) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1] == "Internal error: KeyError: 'x'."


def test_a_file_that_is_in_the_way_and_too_little_memory_are_the_users(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert failures.report(raised(PermissionError(13, "Permission denied", "/x"))) == 2
    assert failures.report(raised(MemoryError())) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Error: /x: Permission denied.",
        "Error: Out of memory; reduce the size of the request.",
    ]

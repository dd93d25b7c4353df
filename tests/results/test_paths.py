"""Test paths as users give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rllib_hpo.results.paths import absolute, absolute_or_uri, is_writable


def test_a_path_is_absolute_and_its_home_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert absolute("~/x") == tmp_path / "home" / "x"
    assert absolute(Path("runs/../a")) == tmp_path / "runs/../a"
    assert absolute_or_uri("s3://bucket/a") == "s3://bucket/a"
    assert absolute_or_uri("~/a") == str(tmp_path / "home" / "a")


def test_what_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert is_writable(tmp_path / "new" / "deeper")
    for below in ("file", "file/x", "file/x/y"):
        assert not is_writable(tmp_path / below)
    assert not is_writable(Path("/dev/null/x"))

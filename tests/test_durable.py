"""Test that unsupported flushes are tolerated, and lost data is not."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from rllib_hpo.durable import sync_path
from rllib_hpo.errors import StorageError
from rllib_hpo.results import write_atomically


def refusing(number: int) -> Any:
    """Make an fsync that fails with that error."""

    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    return fsync


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_without_fsync_files_are_written(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sync_path(tmp_path)
    monkeypatch.setattr(os, "fsync", refusing(number))
    assert not sync_path(tmp_path)
    assert write_atomically(tmp_path / "file", b"data").read_bytes() == b"data"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_what_a_disk_loses_is_an_error(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", b"before")
    monkeypatch.setattr(os, "fsync", refusing(number))
    with pytest.raises(StorageError, match=rf"^Cannot write {tmp_path}/file: {os.strerror(number)}\.$"):
        write_atomically(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

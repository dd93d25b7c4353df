"""The benchmark runs, on a replay of a few rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import checkpoint_speed


def test_it_measures_both_replays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    checkpoint_speed.main(
        ["--rows", "50", "--repetitions", "2", "--directory", str(tmp_path), "--out", str(out)]
    )
    content = json.loads(out.read_text())
    assert [replay["bytes"] for replay in content["replays"]] == [50 * 27 * 4, 50 * 771 * 4]
    assert all(len(replay["repetitions"]) == 2 for replay in content["replays"])
    assert content["machine"]["cores"]
    assert "| Hopper-v4, 50 rows |" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]

"""The latency benchmark runs, and makes the stated number of calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import serving_latency

pytest.importorskip("onnxruntime")


@pytest.mark.slow
def test_it_measures_every_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_latency, "ENVIRONMENTS", ("Hopper-v4",))
    serving_latency.main(["--rounds", "1", "--out", str(tmp_path / "latency.json")])
    measured = json.loads((tmp_path / "latency.json").read_text())["ms"]
    assert len(measured) == 4
    for ways in measured.values():
        assert ways.keys() == serving_latency.WAYS.keys()
        assert all(0 < way["median_ms"] <= way["p99_ms"] for way in ways.values())
    assert capsys.readouterr().out.count("\n| sac") == 4


def test_quantiles() -> None:
    assert serving_latency.quantile(range(101), 0.5) == 50
    assert serving_latency.quantile(range(101), 0.99) == 99

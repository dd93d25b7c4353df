from __future__ import annotations

import json

from benchmarks import acting_speed, machine


def test_checkouts_take_turns_and_their_actions_are_compared(tmp_path, capsys, monkeypatch):
    """The other checkout is this one, so actions are the same."""
    monkeypatch.setattr(acting_speed, "POLICIES", {"sac-hpo, K = 1": ("sac-hpo", {"leapfrog_steps": 1})})
    out = tmp_path / "acting.json"
    acting_speed.main(["--against", str(machine.ROOT), "--rounds", "3", "--number", "2", "--out", str(out)])
    rows = json.loads(out.read_text())["acting"]
    assert list(rows) == ["sac-hpo, K = 1, explores", "sac-hpo, K = 1, evaluates"]
    for row in rows.values():
        assert row["same_actions"]
        assert len(row["rounds_us"]) == len(row["other_rounds_us"]) == 3
        assert min(row["rounds_us"]) > 0
    assert "| sac-hpo, K = 1, explores |" in capsys.readouterr().out


def test_different_actions_are_told():
    measured = {"rounds_us": {"here": [2.0, 3.0], "other": [4.0, 6.0]}, "sums": {"here": 1.0, "other": 2.0}}
    summary = acting_speed.summarise({"sac, explores": measured})
    assert summary["sac, explores"]["times_other"]["value"] == 0.5
    assert acting_speed.table(summary).endswith("| 0.50 (0.50 - 0.50) | NO |")

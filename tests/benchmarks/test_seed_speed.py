"""Test the benchmark of seeds that make their updates together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import seed_speed


def test_updates_of_a_group_count_for_each_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks once a chunk shows what is counted: a group of three makes three times the updates."""
    monkeypatch.setattr(seed_speed, "timed", lambda run, chunk, device: 2.0)
    one, three = seed_speed.measure("sac", "Hopper", "cpu", seeds=(3,), rounds=2, chunk=1)
    assert (one["updates_per_second"], three["updates_per_second"]) == (500.0, 1500.0)
    assert three["times_one_seed"] == {"value": 3.0, "low": 3.0, "high": 3.0, "rounds": 2}


def test_every_seed_of_a_group_is_trained() -> None:
    group: Any = seed_speed.make_updates("sac", "Hopper", "cpu", 2).__self__  # type: ignore[attr-defined]
    group.update_from_replay(2)
    assert [learner.trainer.num_updates for learner in group.learners] == [2, 2]
    assert len({float(learner.trainer.model.alpha) for learner in group.learners}) == 1
    first, second = (next(learner.trainer.model.sampler.parameters()) for learner in group.learners)
    assert not first.equal(second)


def test_the_command_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seed_speed, "timed", lambda run, chunk, device: 1.0)
    monkeypatch.setattr(seed_speed, "ALGORITHMS", ("sac",))
    out = tmp_path / "speed.json"
    seed_speed.main(["--devices", "cpu", "--seeds", "2", "--rounds", "1", "--chunk", "1", "--out", str(out)])
    assert [row["seeds"] for row in json.loads(out.read_text())["updates"]] == [1, 2]
    assert "| sac, Hopper, cpu | 2 | 2000 | 2.00 (2.00 - 2.00) |" in capsys.readouterr().out

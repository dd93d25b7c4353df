from __future__ import annotations

import json

import pytest
import torch

from benchmarks import update_changes, update_speed
from benchmarks.update_changes import CHANGES
from benchmarks.update_speed import Contestant

ON_SOME_CPUS = "large products go to oneDNN"
"""Rounds otherwise where MKL and oneDNN add in another order: on AMD's CPUs, not on all of Intel's."""
ROUNDED_OTHERWISE = {name for name in CHANGES if "oneDNN" in name or "turns" in name or "written" in name}


def parameters_after_updates(undone=None):
    run = update_speed.make_updates(Contestant("sac-hpo, K = 2", "Hopper", "cpu", "eager"))
    if undone is None:
        run(3)
    else:
        with undone():
            run(3)
    model = run.__self__.trainer.model
    return torch.cat([value.flatten() for value in model.state_dict().values()])


@pytest.mark.parametrize("name", CHANGES)
def test_an_update_with_a_change_undone_is_the_same_update(name):
    """Updates agree up to rounding, which differs where sums have another order."""
    found, expected = parameters_after_updates(CHANGES[name]), parameters_after_updates()
    assert (found - expected).norm() < 1e-4 * expected.norm()
    if name != ON_SOME_CPUS:
        assert torch.equal(found, expected) == (name not in ROUNDED_OTHERWISE)
    assert torch.equal(parameters_after_updates(), expected)


def test_it_measures_and_writes_the_rounds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(update_speed, "SIZES", {"small": (4, 2)})
    monkeypatch.setattr(update_changes, "UPDATES", (("sac", "small"), ("sac-hpo, K = 3", "small")))
    out = tmp_path / "changes.json"
    update_changes.main(["--rounds", "2", "--chunk", "1", "--warm-up", "3", "--out", str(out)])
    updates = json.loads(out.read_text())["updates"]
    assert list(updates["sac-hpo, K = 3, small"]["undone"]) == list(CHANGES)
    assert len(updates["sac, small"]["undone"]) == len(CHANGES) - 1
    assert "| critics take turns | " in capsys.readouterr().out

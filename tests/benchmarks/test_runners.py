from __future__ import annotations

import json

import pytest

from benchmarks import runners, train_speed


def measured(num_runners: int, speeds: list[float], **counted: float) -> dict:
    """Make invented turns in which the busiest process needs half of the time."""
    turns = [
        {"steps_per_s": speed, "steps_per_cpu_s": 2 * speed, "wall_s": 1.0, **counted} for speed in speeds
    ]
    return {
        "num_runners": num_runners,
        "row_bytes": 100,
        "memory_mb": {"driver": 800.0, "runner": 300.0},
        "turns": turns,
    }


def test_efficiency_is_to_one_runner_and_the_gain_to_one_process():
    summary = runners.summarise(
        {
            "one process": measured(0, [50.0, 50.0, 10.0]),
            "1 runner": measured(1, [40.0, 40.0, 40.0], wire_bytes_per_transition=110.0, policy_lag_mean=7.0),
            "4 runners": measured(4, [120.0, 120.0, 10.0]),
        }
    )
    assert summary["4 runners"]["times_steps_per_s"]["value"] == 120 / 50
    assert summary["4 runners"]["efficiency_steps_per_s"] == 120 / 40 / 4
    assert summary["1 runner"]["efficiency_steps_per_cpu_s"] == 1
    assert "efficiency_steps_per_s" not in summary["one process"]
    assert summary["1 runner"]["wire_rows"] == 1.1
    lines = runners.table(summary).splitlines()
    assert lines[2] == "| one process | 50 | 1 |  | 100 | 1 |  |  |  | 800, 300 |"
    assert lines[3].endswith("| 7 | 1.10 | 800, 300 |")
    json.dumps(summary)


def test_a_row_has_both_observations():
    assert runners.row_bytes("hopper") == 4 * (2 * 11 + 3 + 2)


def test_memory_is_that_of_this_process():
    before = runners.own_memory_mb()
    taken = bytearray(200_000_000)
    for place in range(0, len(taken), 1024):
        taken[place] = 1
    assert 150 < runners.own_memory_mb() - before < 300


@pytest.mark.exhaustive
@pytest.mark.slow
def test_real_runners_are_measured(tmp_path, capsys):
    out = tmp_path / "speed.json"
    options = ["--runners", "1", "2", "--task", "hopper", "--update-to-data", "0.5"]
    train_speed.main([*options, "--rounds", "2", "--steps", "60", "--out", str(out)])
    (found,) = json.loads(out.read_text())["updates_per_step"].values()
    assert list(found) == ["one process", "2 runners, in turns", "1 runner", "2 runners"]
    for name, row in found.items():
        assert len(row["turns"]) == 2
        assert row["steps_per_cpu_s"] > 0
        assert row["memory_mb"].keys() == (
            {"driver"} if name == "one process" else {"driver", "runner", "learner"}
        )
    assert 1 < found["2 runners"]["wire_rows"] < 1.2
    assert "0.5 updates a step" in capsys.readouterr().out

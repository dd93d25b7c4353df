import json

import pytest

from benchmarks import train_speed
from benchmarks.contestants import CONTESTANTS, TITLES
from benchmarks.train_speed import Slice


def fabricated(steps_per_s: float) -> list[Slice]:
    """Make three rounds, of which the second is disturbed."""
    return [
        Slice(100, 100, cpu_s=100 / steps_per_s * slow, wall_s=101 / steps_per_s * slow) for slow in (1, 3, 1)
    ]


def test_the_table_is_made_of_medians_and_names_missed_targets():
    speeds = {"hand-written": 100.0, "sac": 90.0, "rllib-sac": 10.0, "stable-baselines3": 75.0}
    summary = train_speed.summarise({name: fabricated(speed) for name, speed in speeds.items()})

    table = train_speed.table(summary).splitlines()
    assert "hand-written" in table[2]  # the quickest first
    assert "RLlib's own" in table[-1]
    assert "| 89.1 | 90.0 | 0.90 (0.90 - 0.90) | 9.00 (9.00 - 9.00) |" in table[3]
    verdicts = train_speed.targets(summary)
    assert [line.rsplit(" ", 1)[1] for line in verdicts] == ["MISSED", "reached", "reached"]
    json.dumps(summary)


def test_a_contestant_that_updates_less_than_it_steps_is_refused():
    with pytest.raises(SystemExit, match="sac did 50 updates in 100"):
        train_speed.check_work({"sac": [Slice(100, 50, 1.0, 1.0)]})


def test_every_contestant_has_a_title():
    assert CONTESTANTS.keys() == TITLES.keys()


def test_an_unknown_contestant_is_refused(capsys):
    with pytest.raises(SystemExit):
        train_speed.parse(["--only", "nobody"])
    assert "nobody" in capsys.readouterr().err


@pytest.mark.exhaustive
@pytest.mark.slow
def test_every_contestant_that_is_installed_runs(tmp_path, capsys):
    out = tmp_path / "speed.json"
    names = [name for name in CONTESTANTS if train_speed.is_there(name)]

    train_speed.main(["--quick", "--out", str(out), *(f"--only={name}" for name in names)])

    content = json.loads(out.read_text())
    assert list(content["contestants"]) == names
    for row in content["contestants"].values():
        assert row["steps_per_cpu_s"] > 0
        assert len(row["slices"]) == 2
    assert content["machine"]["cpu"]
    assert "target >= 0.95" in capsys.readouterr().out

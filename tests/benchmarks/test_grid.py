import json

import pytest

from benchmarks import grid


def test_the_speed_counts_what_all_trials_did_while_all_learned():
    early = ([0.0, 10.0, 20.0], [0, 100, 200])  # 10 steps a second
    late = ([5.0, 15.0, 25.0], [500, 700, 900])  # 20

    assert grid.aggregate_speed([early]) == pytest.approx(10)
    assert grid.aggregate_speed([early, late]) == pytest.approx(30)


def test_trials_that_never_learned_together_are_refused():
    with pytest.raises(SystemExit, match="more --steps"):
        grid.aggregate_speed([([0.0, 1.0], [0, 10]), ([2.0, 3.0], [0, 10])])


def test_efficiency_is_relative_to_the_fewest_trials():
    summary = grid.summarise({1: [10.0, 12.0, 11.0], 4: [22.0, 24.0, 22.0]})

    assert summary["4"]["efficiency"] == pytest.approx(0.5)
    assert summary["4"]["times_fewest"]["value"] == pytest.approx(2)
    assert "| 4 | 22 | 2.00 (2.00 - 2.16) | 0.50 |" in grid.table(summary)


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_trials_double_up_to_the_cores(cores, counts):
    assert grid.powers_of_two(cores) == counts


@pytest.mark.exhaustive
@pytest.mark.slow
def test_it_times_a_real_sweep(tmp_path, monkeypatch):
    out = tmp_path / "grid.json"
    monkeypatch.setattr(grid, "WARMUP_STEPS", 100)  # trials learn for longer than they may begin apart

    grid.main(["--trials", "2", "--steps", "4000", "--every", "100", "--rounds", "1", "--out", str(out)])

    row = json.loads(out.read_text())["trials"]["2"]
    assert row["steps_per_s"] > 0
    assert row["times_fewest"]["value"] == 1

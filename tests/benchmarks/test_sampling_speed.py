import json

from benchmarks import sampling_speed


def test_it_times_a_runner_of_every_algorithm(tmp_path, capsys):
    out = tmp_path / "speed.json"

    sampling_speed.main(["--task", "hopper", "--rounds", "5", "--steps", "100", "--out", str(out)])

    row = json.loads(out.read_text())["tasks"]["hopper"]
    assert list(row) == list(sampling_speed.ALGORITHMS)
    assert all(len(one["rounds"]) == 5 and one["steps_per_cpu_s"] > 0 for one in row.values())
    assert row["sac-hpo"]["steps_per_cpu_s"] < row["sac"]["steps_per_cpu_s"]
    assert "| hopper |" in capsys.readouterr().out

import json

from benchmarks import update_cost


def test_it_measures_every_algorithm_and_writes_the_rounds(tmp_path, capsys):
    out = tmp_path / "cost.json"

    update_cost.main(["--rounds", "3", "--chunk", "2", "--out", str(out)])

    updates = json.loads(out.read_text())["updates"]
    assert list(updates) == ["sac", "sac-hpo, K = 2", "sac-hpo, K = 3"]
    assert updates["sac"]["times_sac"]["cpu"]["value"] == 1
    assert updates["sac-hpo, K = 3"]["times_sac"]["cpu"]["value"] > 1
    assert all(len(row["rounds"]["cpu"]) == 3 for row in updates.values())
    assert "| sac-hpo, K = 2 |" in capsys.readouterr().out

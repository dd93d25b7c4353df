from __future__ import annotations

import json

import pytest

from benchmarks import gpu


def written(directory, name, content):
    (directory / name).write_text(json.dumps(content))


def test_every_figure_is_beside_its_target(tmp_path):
    updates = [
        {
            "algorithm": name,
            "size": size,
            "mode": mode,
            "updates_per_second": speed,
            "times_eager": {"value": 0.1},
        }
        for name, speed in (("sac", 6_000.0), ("sac-nf", 1.0), ("sac-hpo, K = 3", 2_000.0))
        for size in ("Hopper", "Humanoid")
        for mode in ("eager", "graph")
    ]
    written(tmp_path, gpu.UPDATES, {"updates": updates})
    speeds = {"one process": {"steps_per_s": 900.0}, "8 runners": {"steps_per_s": 1_600.0}}
    written(tmp_path, gpu.RUNNERS, {"updates_per_step": {"1": speeds}})
    written(tmp_path, gpu.GRID, {"trials": {"1": {}, "5": {"times_fewest": {"value": 2.5}}}})
    assert gpu.verdicts(list(gpu.figures(tmp_path))) == [
        "sac, updates/s: 6,000.0, target >= 5,000: reached",
        "sac, times eager: 10.0, target >= 8: reached",
        "sac-hpo, K = 3, updates/s: 2,000.0, target >= 2,500: MISSED",
        "sac-hpo, K = 3, times eager: 10.0, target >= 8: reached",
        "Hopper end to end, steps/s at one update a step: 1,600.0, target >= 1,500: reached",
        "five seeds, times one: 2.5, target >= 3: MISSED",
    ]


def test_without_a_gpu_nothing_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no CUDA device here"):
        gpu.main(["--results", str(tmp_path)])
    assert not list(tmp_path.iterdir())

import json

import pytest

from benchmarks import grid_cost
from benchmarks.grid_cost import Machines, Rates, Trial

TRIALS = [
    Trial("sac", "Hopper", "hopper", "sac", updates=3_600_000, steps=7_200_000, evaluation_steps=3_600_000),
    Trial("sac-hpo, K = 2", "Hopper", "hopper", "sac-hpo", 3_600_000, 7_200_000, 3_600_000),
]
RATES = Rates(
    updates_per_s={("sac", "Hopper"): 1_000, ("sac-hpo, K = 2", "Hopper"): 500},
    sharing=2.0,
    steps_per_s={("hopper", "sac"): 2_000, ("hopper", "sac-hpo"): 500},
)


def test_work_is_shared_by_gpus_and_cores():
    found = grid_cost.estimate(TRIALS, RATES, Machines(gpus=1, cores=2))

    assert found.learning == pytest.approx((1 + 2) / 2)  # sharing doubles what the GPU makes
    assert found.sampling == pytest.approx((1 + 4) / 2)
    assert found.longest_trial == pytest.approx(2)
    assert found.bottleneck(1) == "cores"


def test_without_gpus_cores_learn_too():
    found = grid_cost.estimate(TRIALS, RATES, Machines(gpus=0, cores=1))

    assert found.hours == found.sampling == pytest.approx(1 + 2 + 1 + 4)


def test_no_number_of_machines_shortens_the_longest_trial():
    found = grid_cost.estimate(TRIALS, RATES, Machines(gpus=1_000, cores=1_000))

    assert found.hours == pytest.approx(2)
    assert found.bottleneck(1_000) == "the longest trial"


def test_what_was_not_measured_is_said(tmp_path):
    rows = [
        {"algorithm": name, "size": "Hopper", "device": "cpu", "mode": "eager", "updates_per_second": 100.0}
        for name in ("sac", "sac-hpo, K = 2")
    ]
    files = {
        "update_speed": {"updates": rows},
        "sampling_speed": {"tasks": {"hopper": {n: {"steps_per_cpu_s": 500.0} for n in ("sac", "sac-hpo")}}},
        "prices": {"date": "D", "source": "S", "gpu_with_16_cores_per_hour": 3.0, "core_per_hour": 0.05},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))

    lines = grid_cost.table(TRIALS, tmp_path).splitlines()

    assert lines[2:5] == [
        "| 1 GPU, 16 cores | not measured | | |",
        "| 8 GPUs, 128 cores | not measured | | |",
        "| 64 GPUs, 1024 cores | not measured | | |",
    ]
    # 3,600,000 updates at 100 a second are ten hours, on sixteen cores at 0.05 an hour each.
    assert lines[5] == "| 16 cores | 0.4 | 8 | the longest trial |"
    assert "Prices of D. S" in lines[-1]


def test_the_papers_grid_is_120_trials_of_240_million_steps():
    work = grid_cost.trials(grid_cost.SWEEP)

    assert len(work) == 120
    assert sum(trial.steps - trial.evaluation_steps for trial in work) == 240_000_000

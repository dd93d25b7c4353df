"""Test runs and tables against values computed by hand from rows."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rllib_hpo.analysis.random_policy import random_return
from rllib_hpo.analysis.runs import TaskId, clock, runs_of, series_of, tasks_of
from rllib_hpo.analysis.tables import (
    Table,
    aggregate_table,
    all_tables,
    best,
    common_steps,
    coverage,
    differences_table,
    final,
    improvement_table,
    normalised,
    paired_table,
    progress_table,
    scores_of,
    steps_table,
)
from rllib_hpo.settings import SACHPOSettings, SACSettings
from tests.results.rows import make_row

HOPPER, ANT = TaskId("hopper", "Hopper-v4"), TaskId("ant", "Ant-v4")

DIAGNOSTICS = {"gate_mean": 0.5, "displacement_drift": 0.1, "displacement_noise": 0.3}


def grid(
    changes: dict[str, float] | None = None, *, ends: dict[tuple[str, int], int] | None = None
) -> pa.Table:
    """SAC and SAC-HPO on two tasks, three seeds, returns 100 * step number * (1 + seed), SAC-HPO 50 more."""
    rows = []
    for algorithm, bonus in {"sac": 0.0, "sac-hpo": 50.0, **(changes or {})}.items():
        for task in (HOPPER, ANT):
            for seed in range(3):
                last = (ends or {}).get((algorithm, seed), 4)
                rows += [
                    make_row(
                        algorithm=algorithm,
                        task=task.name,
                        env_id=task.env_id,
                        seed=seed,
                        env_steps=1_000 * number,
                        updates=900 * number,
                        returns=(100.0 * number * (1 + seed) + bonus,),
                        trial_id=f"{algorithm}-{task.name}-{seed}",
                        diagnostics=DIAGNOSTICS if algorithm == "sac-hpo" and number > 1 else {},
                        config={"algorithm": algorithm, "seed": seed, "alpha": 0.2, "evaluation_every": 1_000}
                        | ({"leapfrog_steps": 2} if algorithm == "sac-hpo" else {}),
                    ).to_arrow()
                    for number in range(last + 1)
                ]
    return pa.concat_tables(rows)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def from_images(repeats: int, algorithm: str) -> list[pa.Table]:
    """Return rows of a run from images whose evaluations are at 0, 100, 200 and, off the schedule, 250 steps."""
    return [
        make_row(
            algorithm=algorithm,
            task="dm-walker-walk",
            env_steps=steps,
            returns=(float(steps * repeats),),
            trial_id=f"{algorithm}-{repeats}",
            diagnostics={"frames": float(steps * repeats)},
            config={"algorithm": algorithm, "seed": 0, "evaluation_every": 100},
        ).to_arrow()
        for steps in (0, 100, 200, 250)
    ]


def test_runs_from_images_are_compared_at_frames() -> None:
    """Two runs whose actions are repeated differently often have come as far in frames, not in steps."""
    rows = pa.concat_tables([*from_images(2, "sac-ae"), *from_images(4, "sac-ae-hpo")])
    plain, hpo = runs_of(rows)
    assert (plain.steps.tolist(), hpo.steps.tolist()) == ([0, 200, 400, 500], [0, 400, 800, 1_000])
    assert plain.scheduled.tolist() == hpo.scheduled.tolist() == [True, True, True, False]
    assert common_steps([plain, hpo]) == {plain.task: 500}
    finals = scores_of([plain, hpo], lambda returns: float(returns[-1]))
    assert [finals.of(plain.task, run.label).tolist() for run in (plain, hpo)] == [[400.0], [400.0]]
    assert "dm-walker-walk up to 500 frames" in coverage([plain, hpo])
    assert "Median over seeds of the frames until" in steps_table([plain, hpo], finals).note
    assert (clock([plain]), clock([plain, *runs_of(grid())])) == ("frames", "environment steps or frames")


def test_runs_hold_what_the_rows_say() -> None:
    runs = runs_of(grid())
    assert [(run.task, run.label, run.seed) for run in runs][:4] == [
        (HOPPER, "SAC", 0),
        (HOPPER, "SAC", 1),
        (HOPPER, "SAC", 2),
        (HOPPER, "SAC-HPO", 0),
    ]
    run = runs[5]
    assert run.steps.tolist() == [0, 1_000, 2_000, 3_000, 4_000]
    assert run.returns.tolist() == [50.0, 350.0, 650.0, 950.0, 1_250.0]
    assert run.numbers["updates"].tolist() == [0, 900, 1_800, 2_700, 3_600]
    np.testing.assert_equal(run.diagnostics["gate_mean"], [np.nan, np.nan, 0.5, 0.5, 0.5])
    assert run.config["leapfrog_steps"] == 2
    assert tasks_of(runs) == [HOPPER, ANT]
    assert [series.label for series in series_of(runs)] == ["SAC", "SAC-HPO"]


def test_two_trials_of_one_seed_are_averaged_and_sweeps_told_apart() -> None:
    config = {"algorithm": "sac", "seed": 0, "alpha": 0.2, "evaluation_every": 1_000}
    again = make_row(
        algorithm="sac", seed=0, env_steps=1_000, returns=(300.0,), trial_id="else", config=config
    ).to_arrow()
    (run, *_) = runs_of(pa.concat_tables([grid(), again]))
    assert run.returns.tolist()[:3] == [0.0, 200.0, 200.0]
    other = make_row(sweep="other", algorithm="sac", trial_id="else").to_arrow()
    labels = {run.label for run in runs_of(pa.concat_tables([grid(), other]))}
    assert labels == {"SAC (demo)", "SAC-HPO (demo)", "SAC (other)"}


def test_scores_by_hand() -> None:
    scores = scores_of(runs_of(grid()), best)
    assert scores.of(HOPPER, "SAC").tolist() == [400.0, 800.0, 1_200.0]
    assert scores.of(HOPPER, "nothing").tolist() == []
    finals = scores_of(runs_of(grid()), final)
    np.testing.assert_allclose(finals.matrix("SAC-HPO"), [[250, 250], [450, 450], [650, 650]])
    scaled = normalised(finals, finals)
    assert scaled is not None
    zero = random_return("Hopper-v4")
    assert zero is not None
    np.testing.assert_allclose(
        scaled.of(HOPPER, "SAC-HPO"), (np.array([250, 450, 650]) - zero) / (400 - zero)
    )


def test_what_cannot_be_normalised_is_not() -> None:
    runs = [run for run in runs_of(grid()) if run.label != "SAC"]
    finals = scores_of(runs, final)
    assert normalised(finals, finals) is None
    unknown = make_row(algorithm="sac", task="mine", env_id="Mine-v0").to_arrow()
    finals = scores_of(runs_of(unknown), final)
    assert normalised(finals, finals) is None
    assert "aggregate" not in {table.name for table in all_tables(runs, rng())}


def test_runs_are_compared_where_all_of_a_task_are() -> None:
    runs = runs_of(grid(ends={("sac-hpo", 1): 2}))
    assert common_steps(runs) == {HOPPER: 2_000, ANT: 2_000}
    assert scores_of(runs, best).of(HOPPER, "SAC").tolist() == [200.0, 400.0, 600.0]
    assert "hopper up to 2,000 steps, ant up to 2,000 steps" in coverage(runs)
    assert coverage(runs_of(grid())) == ""


def test_comparisons_by_hand() -> None:
    runs = runs_of(grid())
    finals = scores_of(runs, final)
    (hopper, _) = paired_table(finals, rng()).rows
    assert hopper == ["hopper", "50.0 [50.0, 50.0] (3)"]
    # Of nine pairs of seeds six are won, and none is a draw: 250 > 200, 450 > 200, 400; 650 > all.
    (hopper, _, together) = improvement_table(finals, rng()).rows
    assert hopper[1].startswith("0.67 [")
    assert together[0] == "all tasks"
    (hopper, _) = steps_table(runs, finals).rows
    # SAC ends at 400 on average: its seeds get there at 4,000, 2,000, 2,000 steps.
    assert hopper == ["hopper", "400.0", "2,000 (3 of 3)", "2,000 (3 of 3)"]


def test_an_aggregate_says_how_many_runs_it_is_of() -> None:
    finals = scores_of(runs_of(grid()), final)
    scaled = normalised(finals, finals)
    assert scaled is not None
    table = aggregate_table(scaled, rng())
    assert [row[-1] for row in table.rows] == ["3 x 2", "3 x 2"]
    assert table.rows[0][2].startswith("1.00 [")  # SAC's mean is 1 by definition


def test_progress_and_differences() -> None:
    runs = runs_of(grid(ends={("sac", 2): 1}))
    progress = {tuple(row[:2]): row[2:] for row in progress_table(runs).rows}
    assert progress["hopper", "SAC"][:2] == ["3", "1,000 - 4,000"]
    assert progress["hopper", "SAC-HPO"][1] == "4,000"
    assert progress["hopper", "SAC-HPO"][2] == "850.0 ± 400.0"
    differences = differences_table(runs).rows
    assert differences[0] == ["algorithm", "sac", "sac-hpo"]
    assert ["leapfrog_steps", "-", "2"] in differences
    only_hpos = set(SACHPOSettings.model_fields) - set(SACSettings.model_fields)
    assert {row[0] for row in differences} == {"algorithm", "policy_layers", *only_hpos}


def test_the_same_rows_give_the_same_tables() -> None:
    runs = runs_of(grid())
    assert all_tables(runs, rng()) == all_tables(runs, rng())


def test_text_of_tables() -> None:
    table = Table("x", "A & B", "50 % of_it", ["task", "SAC"], [["a|b", "1.0 ± 2.0"]])
    assert "| a\\|b | 1.0 ± 2.0 |" in table.to_markdown()
    latex = table.to_latex()
    assert r"\caption{A \& B. 50 \% of\_it}" in latex
    assert r"1.0 $\pm$ 2.0 \\" in latex
    assert list(csv.reader(io.StringIO(table.to_csv()))) == [["task", "SAC"], ["a|b", "1.0 ± 2.0"]]


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Ant-v5", "HumanoidFlagrunHarderPyBulletEnv-v0"])
def test_random_returns_are_measured(env_id: str) -> None:
    assert random_return(env_id) is not None
    assert random_return("Nothing-v0") is None


def test_analysis_works_without_ray(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = "import sys, rllib_hpo.analysis.tables, rllib_hpo.analysis.figures; print('ray' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_the_end_of_a_run_off_the_schedule_enters_no_mean() -> None:
    steps = [0, 1_000, 2_000, 2_500]
    config = {"algorithm": "sac", "seed": 0, "evaluation_every": 1_000}
    rows = [
        make_row(env_steps=step, returns=(float(step),), trial_id="one", config=config).to_arrow()
        for step in steps
    ]
    (run,) = runs_of(pa.concat_tables(rows))
    assert (run.steps.tolist(), run.scheduled.tolist()) == (steps, [True, True, True, False])
    ((_, by_seed),) = scores_of([run], final).values.items()
    assert list(by_seed.values()) == [1_000.0]
    (short,) = runs_of(pa.concat_tables([rows[0], rows[3]]))
    assert short.scheduled.all()  # else an untrained policy would stand for the run

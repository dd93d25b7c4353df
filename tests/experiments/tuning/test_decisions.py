"""Test what a search decides: ASHA against Tune's scheduler, populations, and a study that is opened again."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from rllib_hpo.errors import CheckpointError, UserError
from rllib_hpo.experiments.config.search_config import Search, contains, read_search
from rllib_hpo.experiments.tuning import halving
from rllib_hpo.experiments.tuning.population import Member, first_generation, next_generation
from rllib_hpo.experiments.tuning.scores import Score
from rllib_hpo.experiments.tuning.study import Study

SPACE = """\
search: mine
algorithm: sac-hpo
task: Pendulum-v1
steps: 90_000
trials: 8
space:
  step_size: {low: 0.02, high: 0.5, log: true}
  leapfrog_steps: {low: 1, high: 4}
  explore_sampler: {choices: [gaussian, hamiltonian]}
first:
  - {step_size: 0.1}
"""


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """Return a search over a range, whole numbers and choices."""
    path = tmp_path / "search.yaml"
    path.write_text(SPACE)
    return read_search(path)


# --- asynchronous successive halving ---


@pytest.mark.parametrize("reduction_factor", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_decisions_are_those_of_tunes_asha(seed: int, reduction_factor: int) -> None:
    """On random scores that arrive in a random order."""
    rng = np.random.default_rng(seed)
    longest, first = 30, 2
    rungs = [first * reduction_factor**k for k in range(10) if first * reduction_factor**k < longest]
    asha = ASHAScheduler(
        "t", "r", "max", max_t=longest, grace_period=first, reduction_factor=reduction_factor
    )
    trials = [SimpleNamespace(trial_id=str(number), status="RUNNING") for number in range(12)]
    for trial in trials:
        asha.on_trial_add(None, trial)
    reports: list[dict[int, float]] = [{} for _ in trials]
    running, num_stops = set(range(len(trials))), 0
    while running:
        number = int(rng.choice(sorted(running)))
        step = max(reports[number], default=0) + 1
        if step >= longest:
            running.remove(number)
            continue
        reports[number][step] = value = float(rng.normal())
        theirs = asha.on_trial_result(None, trials[number], {"t": step, "r": value}) == TrialScheduler.STOP
        others = [report for other, report in enumerate(reports) if other != number]
        assert halving.stops(reports[number], others, rungs, reduction_factor) == theirs
        if theirs:
            running.remove(number)
            num_stops += 1
    assert num_stops > 3


def test_a_decision_that_was_not_written_down_is_made_again() -> None:
    """Only at the report that reaches the rung: a trial that was let through is not stopped by later ones."""
    others = [{10: 5.0}, {10: 6.0}]
    assert halving.stops({10: 1.0}, others, [10], 2)
    assert not halving.stops({10: 1.0, 12: 0.0}, others, [10], 2)
    assert not halving.stops({}, others, [10], 2)
    assert not halving.stops({10: 1.0}, [{8: 9.0}], [10], 2)


# --- populations ---


def test_a_population_begins_in_the_space(search: Search) -> None:
    members = first_generation(search)
    assert members == first_generation(search)
    assert len({member.values["step_size"] for member in members}) == 8
    assert members[0].values["step_size"] == 0.1
    assert all(contains(search, name, value) for member in members for name, value in member.values.items())


def test_the_worst_copy_the_best(search: Search) -> None:
    members = first_generation(search)
    scores: list[float | None] = [3.0, -1.0, 7.0, 0.0, 2.0, 5.0, None, 4.0]
    for generation in range(1, 30):  # each with draws of its own
        following = next_generation(search, generation, members, scores)
        assert following == next_generation(search, generation, members, scores)
        for place, member in enumerate(following):
            if place in (1, 6):  # the lowest score, and the one that diverged: a quarter of 8
                assert member.origin in (2, 5)
                assert all(contains(search, name, value) for name, value in member.values.items())
            else:
                assert member == Member(members[place].values, place)


def test_perturbed_settings_are_neighbours_or_drawn_anew(search: Search) -> None:
    members = [Member({"step_size": 0.1, "leapfrog_steps": 2, "explore_sampler": "gaussian"}, None)] * 2
    drawn = [
        next_generation(search, generation, members, [0.0, 1.0])[0].values for generation in range(1, 400)
    ]
    near = [values["step_size"] for values in drawn if values["step_size"] in (0.1 * 1.2, 0.1 / 1.2)]
    assert 0.68 < len(near) / len(drawn) < 0.82  # 1 - resample = 0.75
    assert {values["leapfrog_steps"] for values in drawn} == {1, 2, 3, 4}
    assert {values["explore_sampler"] for values in drawn} == {"gaussian", "hamiltonian"}


@pytest.mark.parametrize(("step_size", "leapfrog_steps"), [(0.5, 4), (0.02, 1)])
def test_settings_at_an_edge_stay_in_the_space(search: Search, step_size: float, leapfrog_steps: int) -> None:
    values = {"step_size": step_size, "leapfrog_steps": leapfrog_steps, "explore_sampler": "gaussian"}
    members = [Member(values, None)] * 2
    drawn = [
        next_generation(search, generation, members, [0.0, 1.0])[0].values for generation in range(1, 40)
    ]
    assert all(contains(search, name, value) for values in drawn for name, value in values.items())
    assert any(values["step_size"] == step_size for values in drawn)


def test_a_population_that_diverged_is_one_sentence(search: Search) -> None:
    with pytest.raises(UserError, match="All members of the population diverged"):
        next_generation(search, 1, first_generation(search), [None] * 8)


# --- studies ---


def _ask_twice(study: Study) -> None:
    study.report(study.ask().number, 10_000, Score(1.0))
    second = study.ask().number
    study.report(second, 20_000, Score(2.0))
    study.end(second, "COMPLETE")


def _ask_and_die(path: Path, search: Search) -> None:
    study = Study(path, search)
    _ask_twice(study)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_study_outlives_its_writer(search: Search, tmp_path: Path) -> None:
    """What a process had written when it was killed is there, and the next asks as if nothing had happened."""
    pytest.importorskip("optuna")
    process = multiprocessing.get_context("spawn").Process(
        target=_ask_and_die, args=(tmp_path / "study.db", search)
    )
    process.start()
    process.join(250)
    assert process.exitcode == -signal.SIGKILL
    study, alone = Study(tmp_path / "study.db", search), Study(tmp_path / "alone.db", search)
    first, second = study.records()
    assert (first.state, first.reports, first.values["step_size"]) == (
        "RUNNING",
        {10_000: Score(1.0)},
        0.1,
    )
    assert (second.state, second.reports) == ("COMPLETE", {20_000: Score(2.0)})
    _ask_twice(alone)
    assert study.ask().values == alone.ask().values
    study.report(first.number, 10_000, Score(7.0))  # heard again after a resume
    assert study.records()[0].reports == {10_000: Score(1.0)}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_sampler_stays_in_the_space(sampler: str, search: Search, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    changed = read_search(tmp_path / "search.yaml", {"sampler": sampler, "trials": 15})
    study = Study(tmp_path / "study.db", changed)
    for _ in range(15):
        record = study.ask()
        study.report(record.number, 90_000, Score(record.values["step_size"]))
        study.end(record.number, "COMPLETE")
    tried: list[dict[str, Any]] = [record.values for record in study.records()]
    assert all(contains(search, name, value) for values in tried for name, value in values.items())
    assert len({values["step_size"] for values in tried}) == 15
    assert {type(values["leapfrog_steps"]) for values in tried} == {int}


def test_a_damaged_study_is_one_sentence(search: Search, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "study.db").write_bytes(b"no database, whatever its name says" * 100)
    with pytest.raises(CheckpointError, match=r"The study .*study\.db cannot be used: "):
        Study(tmp_path / "study.db", search)

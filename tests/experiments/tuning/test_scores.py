"""Test how trials compare under a limit on costs: in the ledger, by Optuna, by ASHA and in a population."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rllib_hpo.experiments.config.search_config import read_search
from rllib_hpo.experiments.sweeps.plan import SweepFiles
from rllib_hpo.experiments.tuning import generations
from rllib_hpo.experiments.tuning.directory import SearchDirectory, open_search, start_search
from rllib_hpo.experiments.tuning.generations import Generations
from rllib_hpo.experiments.tuning.scores import Score, comparable, score_of
from rllib_hpo.experiments.tuning.search import Ledger, tried
from rllib_hpo.experiments.tuning.study import STUDY_FILE, Study
from tests.experiments.tuning.test_decisions import SPACE

LIMITED = SPACE + "settings: {cost: {kind: torque}, cost_limit: 25.0, cost_discounting: undiscounted}\n"


def metrics(value: float, cost: float) -> dict[str, float]:
    """Return what an evaluation reports; the discounted cost, which is not limited, is always high."""
    return {
        "evaluation/return_mean": value,
        "evaluation/cost_mean": cost,
        "evaluation/cost_discounted_mean": 100.0,
        "evaluation/cost_limit": 25.0,
    }


def begun(folder: Path, **changes: Any) -> SearchDirectory:
    """Make the directory of a search under a limit."""
    (folder / "search.yaml").write_text(LIMITED)
    return start_search(folder / "search.yaml", changes, SweepFiles(folder / "out"))


def played(directory: SearchDirectory, evaluations: Mapping[int, tuple[float, float]]) -> None:
    """Run trials to their end without training: return and cost of the last evaluation, by trial."""
    ledger = Ledger(directory)
    for number, (value, cost) in evaluations.items():
        name = ledger.next()
        assert name == Ledger.name(number)
        ledger.heard(name, [(directory.search.steps, metrics(value, cost))])
        ledger.ended(name, diverged=False)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_whoever_exceeds_the_limit_is_below_whoever_does_not(mode: str, tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(LIMITED)
    search = read_search(tmp_path / "search.yaml", {"mode": mode})
    scores = [Score(-5.0), Score(7.0), Score(1e6, 3.0), Score(-1e6, 0.1), Score(0.0)]
    ranked = sorted(scores, key=comparable(search, scores), reverse=True)
    within = sorted(scores[:2] + scores[4:], reverse=mode == "max")
    assert ranked == [*within, scores[3], scores[2]]


def test_a_score_is_the_excess_of_the_limited_cost(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(LIMITED)
    search = read_search(tmp_path / "search.yaml")
    assert score_of(search, metrics(3.0, 27.5)) == Score(3.0, 2.5)
    assert score_of(search, metrics(3.0, 25.0)) == Score(3.0, 0.0)
    assert read_search(tmp_path / "search.yaml", {"within_cost_limit": False}).limited is None
    discounted = LIMITED.replace("undiscounted", "discounted")
    (tmp_path / "search.yaml").write_text(discounted)
    assert score_of(read_search(tmp_path / "search.yaml"), metrics(3.0, 0.0)) == Score(3.0, 75.0)


def test_an_infeasible_trial_is_never_the_best(tmp_path: Path) -> None:
    """As Optuna says, too, of what the study holds."""
    optuna = pytest.importorskip("optuna")
    directory = begun(tmp_path, trials=4)
    played(directory, {0: (900.0, 26.0), 1: (10.0, 25.0), 2: (20.0, 5.0), 3: (950.0, 40.0)})
    assert [one.number for one in tried(open_search(directory.files))] == [2, 1, 0, 3]
    study = optuna.load_study(
        study_name="mine", storage=f"sqlite:///{directory.files.directory / STUDY_FILE}"
    )
    if hasattr(optuna.trial.Trial, "set_constraint"):
        assert study.best_trial.number == 2
        assert [trial.constraints["excess_cost"] for trial in study.trials] == [1.0, 0.0, 0.0, 15.0]
    assert [trial.user_attrs["excess_cost"] for trial in study.trials] == [1.0, 0.0, 0.0, 15.0]


def test_a_search_may_compare_by_the_metric_alone(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    directory = begun(tmp_path, trials=2, within_cost_limit=False)
    played(directory, {0: (900.0, 26.0), 1: (10.0, 25.0)})
    assert [one.number for one in tried(directory)] == [0, 1]


def test_the_sampler_turns_to_what_is_within_the_limit(tmp_path: Path) -> None:
    """The return grows with the step size, and so does the cost; only the limit keeps the sampler from the largest."""
    pytest.importorskip("optuna")
    (tmp_path / "search.yaml").write_text(LIMITED)
    changes = {"trials": 24, "space": {"step_size": {"low": 0.01, "high": 1.0}}, "first": []}
    search = read_search(tmp_path / "search.yaml", changes)
    study = Study(tmp_path / "study.db", search)
    for _ in range(24):
        record = study.ask()
        step_size = record.values["step_size"]
        study.report(record.number, 90_000, Score(step_size, max(0.0, step_size - 0.4)))
        study.end(record.number, "COMPLETE")
    late = [record.values["step_size"] for record in study.records()[12:]]
    assert (
        sum(0.2 < step_size <= 0.45 for step_size in late) > 5
    )  # of 12; by chance 3, without the limit none


def test_asha_stops_whoever_exceeds_the_limit_first(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    directory = begun(
        tmp_path, trials=4, scheduler="asha", asha={"reduction_factor": 2, "first_rung": 10_000}
    )
    ledger = Ledger(directory)
    stopped = [
        ledger.heard(ledger.next() or "", [(10_000, metrics(value, cost))])
        for value, cost in ((5.0, 20.0), (900.0, 30.0), (6.0, 21.0), (4.0, 22.0))
    ]
    assert stopped == [False, True, False, True]
    records = Study(directory.files.directory / STUDY_FILE, directory.search).records()
    assert [record.state for record in records] == ["RUNNING", "PRUNED", "RUNNING", "PRUNED"]


def test_a_population_copies_members_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real generations, with evaluations made up; the file holds what was compared."""
    made = [(900.0, 30.0), (1.0, 20.0), (2.0, 21.0), (3.0, 22.0)]
    directory = begun(tmp_path, trials=4, scheduler="pbt", pbt={"quantile": 0.25, "interval": 10_000})
    population = Generations(directory)
    assert population.begin() == 0
    scores = {name: metrics(*one) for name, one in zip(population.trials(0), made, strict=True)}
    monkeypatch.setattr(
        SearchDirectory, "last_score", lambda self, name, steps: score_of(self.search, scores[name])
    )
    assert population.finish(0)
    assert Generations(directory).begin() == 1
    members = Generations(directory).trials(1).values()
    assert [member.origin for member in members] == [3, 1, 2, 3]
    stored = json.loads((directory.files.directory / generations.POPULATION_FILE).read_text())
    assert stored["generations"][0]["scores"] == [[900.0, 5.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]
    assert [one.number for one in tried(directory)] == [3, 2, 1, 0]

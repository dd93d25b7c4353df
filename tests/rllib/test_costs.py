"""Test costs from the environment's info to result rows, for algorithms with and without a constraint."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from rllib_hpo.algorithms.base import Episode
from rllib_hpo.errors import SettingsError
from rllib_hpo.experiments.runs.evaluate import evaluate_checkpoint
from rllib_hpo.results import COST_COLUMNS, read_rows
from rllib_hpo.rllib.new_stack.sampling import Block
from rllib_hpo.rllib.training_costs import TrainingCosts
from tests.algorithms.toy import CostlyEnv
from tests.rllib.tiny import assert_equal, facts, loaded, running, tiny_config, train_to

COSTLY = {"cost": {"kind": "info", "key": "cost"}, "cost_limit": 3.0}
"""Settings for `CostlyEnv`, whose episodes have 8 steps, of which the odd ones cost 1."""
DISCOUNTED = sum(0.99**t for t in (0, 2, 4, 6))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train SAC, which stores no costs, in three environments with costs; return it and its checkpoint half-way."""
    config = tiny_config("sac", CostlyEnv, **COSTLY).env_runners(num_envs_per_env_runner=3)
    rows = tmp_path_factory.mktemp("rows")
    with running(config.results(results_dir=str(rows))) as built:
        train_to(built, 40)
        checkpoint = built.save_to_path(tmp_path_factory.mktemp("checkpoint"))
        result = train_to(built, 80)
        yield built, checkpoint, result, rows


def test_rows_say_what_episodes_cost(trained: Any) -> None:
    first, *_, last = read_rows(trained[3]).to_pylist()
    for row in (first, last):
        assert (row["cost_mean"], row["cost_sd"], row["costs"]) == (4.0, 0.0, [4.0, 4.0])
        assert row["cost_discounted_mean"] == pytest.approx(DISCOUNTED)
        assert (row["violation_share"], row["cost_limit"]) == (0.5, 3.0)
    assert first["diagnostics"] == []
    training = dict(last["diagnostics"])
    assert training["train_cost_mean"] == 4.0
    assert training["train_cost_discounted_mean"] == pytest.approx(DISCOUNTED)
    # Three environments of 26 steps, which were built anew after 13: an episode each before and after.
    assert training["train_cost_total"] == 4.0 * 6


def test_results_say_it_too_and_the_replay_stores_none(trained: Any) -> None:
    built, _, result, _ = trained
    assert result["env_runners"]["train_cost_mean"] == 4.0
    assert result["evaluation"]["env_runners"]["cost_mean"] == 4.0
    assert built.local_learner.replay.layout.columns == ()


def test_a_resumed_run_goes_on_counting(trained: Any) -> None:
    built, checkpoint, *_ = trained
    with loaded(checkpoint) as resumed:
        train_to(resumed, 80)
        assert resumed.training_costs.numbers() == built.training_costs.numbers()
        assert_equal(facts(resumed), facts(built))


def test_without_a_cost_columns_are_null(tmp_path: Path) -> None:
    with running(tiny_config("sac").results(results_dir=str(tmp_path))) as built:
        train_to(built, 40)
    for row in read_rows(tmp_path).to_pylist():
        assert [row[name] for name in (*COST_COLUMNS, "costs")] == [None] * 6
        assert not any("cost" in name for name, _ in row["diagnostics"])


def test_a_cost_whose_key_is_missing_is_named() -> None:
    """The message lists the existing keys."""
    config = tiny_config("sac", CostlyEnv, cost={"kind": "info", "key": "price"}, cost_limit=1.0)
    with (
        running(config) as built,
        pytest.raises(SettingsError, match=r"does not report 'price' .*: cost, place\.$"),
    ):
        built.train()


def test_evaluating_a_checkpoint_counts_costs(tmp_path: Path) -> None:
    """The command makes the environment again from its gymnasium id."""
    config = tiny_config("sac", cost={"kind": "torque"}, cost_limit=5.0)
    with running(config) as built:
        train_to(built, 40)
        played, _ = evaluate_checkpoint(Path(built.save_to_path(tmp_path / "checkpoint")), 2)
    assert played.costs is not None
    assert all(0 < cost <= 25 for cost in played.costs.sums)


def test_episodes_carry_the_step_at_which_they_ended() -> None:
    """This holds also where a stop cuts their block of transitions, and a checkpoint holds the rest."""
    episodes = [Episode(0.0, 3, ended_at=3), Episode(0.0, 4, ended_at=7)]
    block = Block(pickle.dumps, 0, 10, episodes, 0, False)  # type: ignore[arg-type]  # rows are not touched
    first, rest = block.cut(5)
    assert rest is not None
    assert (first.episodes, rest.start) == ([], 5)
    import numpy as np

    fetched_block = rest._replace(rows=np.zeros((10, 1), np.float32)).fetched_block()
    assert [e.ended_at for e in fetched_block.episodes] == [-2, 2]
    with running(tiny_config("sac")) as built:
        built.env_steps = 105  # of which the first part of the block were the last five
        for part in (rest, fetched_block):
            assert [e.ended_at for e in built.dated(part.episodes, part.start)] == [103, 107]


def test_training_costs_by_hand() -> None:
    costs = TrainingCosts()
    assert costs.numbers() == {}
    for number in range(12):
        costs.add(Episode(0.0, 5, cost=float(number), cost_discounted=number / 2))
    costs.add(Episode(0.0, 5, cost=100.0, failed=True))
    numbers = costs.numbers()
    assert numbers == {
        "train_cost_total": 66.0 + 100.0,
        "train_cost_mean": 6.5,
        "train_cost_discounted_mean": 3.25,
    }
    other = TrainingCosts()
    other.set_state(costs.get_state())
    assert other.numbers() == numbers

"""Test the row schema, its hash, and the statistics of one evaluation."""

from __future__ import annotations

import dataclasses
import hashlib

import pyarrow as pa
import pytest

from rllib_hpo.results import (
    COST_COLUMNS,
    SCHEMA,
    SUCCESS_RATE,
    VOLATILE_COLUMNS,
    EvaluationRow,
    canonical_json,
    config_hash,
    cost_statistics,
    episode_statistics,
    rows_from_arrow,
    without_volatile,
)
from tests.results.rows import make_row

LATER_COLUMNS = {"episodes_cut", "env_restarts", "costs", SUCCESS_RATE, *COST_COLUMNS}


def test_row_fields_are_the_schema() -> None:
    assert {field.name for field in dataclasses.fields(EvaluationRow)} == set(SCHEMA.names)


def test_every_column_is_documented_and_required() -> None:
    for field in SCHEMA:
        assert field.metadata[b"description"].endswith(b"."), field.name
        assert field.nullable == (field.name in LATER_COLUMNS), field.name


def test_round_trip_through_arrow_is_exact() -> None:
    rows = [make_row(returns=(0.1, -1e100, 5e-324)), make_row(seed=2**62, returns=(1.0,))]
    table = pa.concat_tables([row.to_arrow() for row in rows])
    assert table.schema.equals(SCHEMA)
    assert rows_from_arrow(table) == rows


def test_volatile_columns_are_columns_and_the_rest_decides_equality() -> None:
    assert set(SCHEMA.names) > VOLATILE_COLUMNS
    first = make_row()
    other = make_row(wall_time_s=99.0, trial_id="else", device="gpu", git_commit="", versions="{}")
    assert without_volatile(first.to_arrow()).equals(without_volatile(other.to_arrow()))
    assert not without_volatile(first.to_arrow()).equals(without_volatile(make_row(seed=1).to_arrow()))


def test_config_hash_depends_on_content_only() -> None:
    one, same = {"b": [1, 2], "a": {"y": 0.1, "x": "ü"}}, {"a": {"x": "ü", "y": 0.1}, "b": [1, 2]}
    assert config_hash(one) == config_hash(same)
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert canonical_json({"b": 1, "a": 0.5}) == '{"a":0.5,"b":1}'
    assert config_hash({"b": 1, "a": 0.5}) == hashlib.sha256(b'{"a":0.5,"b":1}').hexdigest()[:16]
    with pytest.raises(ValueError, match="JSON"):
        config_hash({"alpha": float("nan")})


def test_cost_statistics_by_hand() -> None:
    """Two episodes have 10 and 30 steps; 4 of the 40 steps have a cost."""
    assert cost_statistics([1.0, 3.0], [0.5, 2.0], [1, 3], [10, 30]) == {
        "cost_mean": 2.0,
        "cost_sd": 1.0,
        "cost_discounted_mean": 1.25,
        "violation_share": 0.1,
        "costs": (1.0, 3.0),
    }


def test_episode_statistics_by_hand() -> None:
    assert episode_statistics([1.0, 3.0, 8.0], [10, 20, 60]) == {
        "return_mean": 4.0,
        "return_std": pytest.approx((26 / 3) ** 0.5),  # ((-3)^2 + (-1)^2 + 4^2) / 3
        "returns": (1.0, 3.0, 8.0),
        "episode_length_mean": 30.0,
    }
    with pytest.raises(ValueError, match="2 returns and 1 lengths"):
        episode_statistics([1.0, 2.0], [10])


@pytest.mark.parametrize("column", ["sweep", "algorithm", "task", "trial_id"])
def test_columns_that_name_files_may_not_be_empty(column: str) -> None:
    with pytest.raises(ValueError, match=column):
        make_row(**{column: ""})

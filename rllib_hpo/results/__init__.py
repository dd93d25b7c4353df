"""Evaluation rows: their schema, and Parquet files of them written atomically and read back."""

from rllib_hpo.results.atomic import write_atomically
from rllib_hpo.results.maintenance import Problem, add, check, compact, merge_trial
from rllib_hpo.results.provenance import provenance
from rllib_hpo.results.reader import read_rows, row_config
from rllib_hpo.results.schema import (
    COST_COLUMNS,
    SCHEMA,
    SCHEMA_VERSION,
    SUCCESS_RATE,
    VOLATILE_COLUMNS,
    EvaluationRow,
    canonical_json,
    config_hash,
    cost_statistics,
    episode_statistics,
    excess_cost,
    limited_cost,
    rows_from_arrow,
    without_volatile,
)
from rllib_hpo.results.writer import row_path, trial_id, write_row

__all__ = [
    "COST_COLUMNS",
    "SCHEMA",
    "SCHEMA_VERSION",
    "SUCCESS_RATE",
    "VOLATILE_COLUMNS",
    "EvaluationRow",
    "Problem",
    "add",
    "canonical_json",
    "check",
    "compact",
    "config_hash",
    "cost_statistics",
    "episode_statistics",
    "excess_cost",
    "limited_cost",
    "merge_trial",
    "provenance",
    "read_rows",
    "row_config",
    "row_path",
    "rows_from_arrow",
    "trial_id",
    "without_volatile",
    "write_atomically",
    "write_row",
]

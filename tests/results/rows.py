"""Make evaluation rows for tests."""

from __future__ import annotations

from typing import Any

from rllib_hpo.results import EvaluationRow, canonical_json, config_hash, episode_statistics


def make_row(**changes: Any) -> EvaluationRow:
    """Make a plausible row; `changes` replace columns, and `config` or `returns` the columns derived from them."""
    default = {"algorithm": "sac-hpo", "gamma": 0.99, "leapfrog_steps": 2, "evaluation_every": 1_000}
    config = changes.pop("config", default)
    returns = changes.pop("returns", (310.5, 298.25))
    columns: dict[str, Any] = {
        "sweep": "demo",
        "algorithm": "sac-hpo",
        "variant": "default",
        "task": "hopper",
        "env_id": "Hopper-v4",
        "seed": 0,
        "env_steps": 10_000,
        "weights_env_steps": 10_000,
        "updates": 9_000,
        "eval_sampler": "hamiltonian",
        "config_json": canonical_json(config),
        "config_hash": config_hash(config),
        "device": "cpu",
        "wall_time_s": 12.5,
        "trial_id": f"{123456789 + changes.get('seed', 0):010d}",
        "git_commit": "a" * 40,
        "versions": '{"python":"3.11.7"}',
        **episode_statistics(returns, [100] * len(returns)),
    }
    return EvaluationRow(**{**columns, **changes})

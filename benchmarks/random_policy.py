"""Measure returns of a uniformly random policy, the zero of normalised scores.

    python -m benchmarks.random_policy

writes rllib_hpo/analysis/random_returns.json, with the mean and the standard deviation over 100 seeded episodes.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from rllib_hpo.analysis.random_policy import FILE
from rllib_hpo.results import episode_statistics
from rllib_hpo.results.provenance import provenance
from rllib_hpo.tasks import Boundary, all_tasks, make_env

OTHER_VERSIONS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "Pendulum-v1")


def play(env_id: str, num_episodes: int) -> dict[str, float]:
    """Play episodes with the seeds 0, 1, ..., in one environment."""
    env = make_env(env_id)
    checked = Boundary(env)
    env.action_space.seed(0)
    returns, lengths = [], []
    for seed in range(num_episodes):
        checked.reset(env, seed)
        total, length, over = 0.0, 0, False
        while not over:
            _, reward, terminated, truncated = checked.step(env, env.action_space.sample())
            total, length, over = total + reward, length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    env.close()
    statistics = episode_statistics(returns, lengths)
    return {name: round(float(np.mean(value)), 4) for name, value in statistics.items() if name != "returns"}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=100)
    arguments = parser.parse_args()
    ids = list(dict.fromkeys([*(task.env_id for task in all_tasks()), *OTHER_VERSIONS]))
    environments = {}
    for env_id in ids:
        environments[env_id] = play(env_id, arguments.episodes)
        print(env_id, environments[env_id])
    measured = {
        "command": "python -m benchmarks.random_policy",
        "episodes": arguments.episodes,
        **provenance("cpu"),
        "environments": environments,
    }
    FILE.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()

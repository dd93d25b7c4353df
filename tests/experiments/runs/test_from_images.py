"""Test runs from images as the command line makes them: killed, resumed, on remote runners."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from rllib_hpo.results import read_rows
from tests.experiments.lives import (
    assert_same_outcome,
    ended,
    evaluated,
    life,
    new_run,
    outcome,
    resumed,
    run,
)
from tests.experiments.runs.test_crash import killed_often, kills

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

FROM_IMAGES: dict[str, Any] = {
    "env_config": '{"max_episode_steps": 40, "wrappers": [{"pixels": {"size": 15, "num_repeats": 2}}]}',
    "conv_layers": 2,
    "conv_filters": 4,
    "latent_dim": 6,
    "replay_capacity": 300,
    "num_envs_per_env_runner": 2,
}


@pytest.mark.exhaustive
def test_kills_change_nothing(tmp_path: Path) -> None:
    """Pendulum's frames, the rings of the replay, the optimizers and the streams go on bitwise."""
    steps = 600
    reference, directory = tmp_path / "reference", tmp_path / "killed"
    run(new_run(reference, "sac-ae-hpo", "Pendulum-v1", steps, **FROM_IMAGES), tmp_path)
    plan = kills(random.Random(2), clock=0, training=1, evaluation=1, checkpoint=2, restoring=0)
    start = new_run(directory, "sac-ae-hpo", "Pendulum-v1", steps, **FROM_IMAGES)
    killed_often(tmp_path, start, steps, plan)
    assert_same_outcome(directory, reference)
    replay = outcome(directory)["replay"]
    assert {name: rows.shape[1] for name, rows in replay.items()} == {
        "rows": 3,
        "links": 7,
        "frames": 3 * 15**2,
    }
    assert len(replay["rows"]) == 300
    assert evaluated(directory) == list(range(0, steps + 1, 100))
    rows = read_rows(directory / "results").to_pylist()
    assert [dict(row["diagnostics"])["frames"] for row in rows] == [2.0 * row["env_steps"] for row in rows]


def run_remotely(arguments: list[str], cwd: Path) -> None:
    """Run to the end, which must succeed; Ray itself may say that RLlib hands configs on in its object store."""
    with life(arguments, cwd) as process:
        code, out, err = ended(process)
    assert (code, [line for line in err.splitlines() if "core_worker.cc" not in line]) == (0, []), out


def test_remote_runners_of_several_environments_are_resumed(tmp_path: Path) -> None:
    """Each frame is stored once, and no counted step is lost."""
    remote = FROM_IMAGES | {"num_env_runners": 2, "rollout_fragment_length": 5}
    directory = tmp_path / "run"
    run_remotely(new_run(directory, "sac-ae", "Pendulum-v1", 200, **remote), tmp_path)
    run_remotely(resumed(directory, "--steps", "300"), tmp_path)
    replay = outcome(directory)["replay"]
    assert len(replay["rows"]) == 300
    # An episode of 20 decisions has 21 frames. Each of four environments has begun another one at most, and did so
    # again when the run was resumed.
    assert len(replay["frames"]) == 300  # the newest, of which there are a few more
    newest = replay["links"][:, :-1].max()
    assert 300 + 300 // 20 <= newest + 1 <= 300 + 300 // 20 + 2 * 4
    assert evaluated(directory) == [0, 100, 200, 300]

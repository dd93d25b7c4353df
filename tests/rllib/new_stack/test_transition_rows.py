"""Test a runner's rows in the replay: transitions as columns, actions in [-1, 1], true successors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rllib_hpo.replay.layout import RowLayout
from rllib_hpo.rllib.algorithms import SACGaussianConfig
from rllib_hpo.rllib.new_stack.env_runner import ColumnarEnvRunner
from tests.rllib.environments import CountingEnv


@pytest.fixture(scope="module", params=[True, False], ids=["warm-up", "policy"])
def rows(request: pytest.FixtureRequest) -> Any:
    """Return forty steps of two environments with episodes of four steps, as columns."""
    import torch

    config = SACGaussianConfig().environment(CountingEnv, env_config={"length": 4}).debugging(seed=0)
    config.env_runners(num_envs_per_env_runner=2)
    config.validate()
    runner = ColumnarEnvRunner(config=config)
    sampled = runner.sample(num_steps=40, random_actions=request.param).rows
    runner.stop()
    return RowLayout(3, 1).unpack(torch.from_numpy(sampled))


def test_truncation_is_not_termination(rows: Any) -> None:
    """A time limit bootstraps: only episodes that terminate (the odd ones here) have a terminated row."""
    last = rows.next_obs[:, 1] == 4
    odd = rows.obs[:, 0] % 2 == 1
    assert rows.terminated.tolist() == (last & odd).float().tolist()
    assert (last & ~odd).sum() > 2
    assert (last & odd).sum() > 2


def test_the_autoreset_row_never_enters(rows: Any) -> None:
    """The successor of every row is the same episode's next step, also at its end."""
    assert (rows.next_obs[:, 0] == rows.obs[:, 0]).all()
    assert (rows.next_obs[:, 1] == rows.obs[:, 1] + 1).all()
    assert (rows.reward == rows.next_obs[:, 1]).all()
    assert (rows.obs[:, 1] < 4).all()


def test_actions_are_stored_in_unit_range(rows: Any) -> None:
    """Rows hold the action in [-1, 1]; the environment got it rescaled to its bounds, here 4 a + 1."""
    assert rows.action.abs().max() <= 1
    assert rows.action.std() > 0.2
    np.testing.assert_allclose(rows.next_obs[:, 2], 4 * rows.action[:, 0] + 1, rtol=0, atol=1e-5)

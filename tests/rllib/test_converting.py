"""Test converting a checkpoint between API stacks: same policy, same replay, same progress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rllib_hpo import cli
from rllib_hpo.errors import UserError
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.checkpointing import MANIFEST
from rllib_hpo.rllib.converting import convert
from rllib_hpo.rllib.trained_policy import load_policy
from tests.rllib.tiny import (
    EVERY_ALGORITHM_OF_BOTH_STACKS_IN_TIME,
    SAC_HPO_OF_BOTH_STACKS_IN_TIME,
    assert_equal,
    loaded,
    running,
    tiny_config,
    train_to,
    tuned,
)

OTHER = {"new": "old", "old": "new"}


@pytest.fixture(params=["new", "old"])
def stack(request: pytest.FixtureRequest) -> str:
    """Return the stack to convert from."""
    return str(request.param)


def written(algorithm: str, stack: str, directory: Path, **settings: Any) -> Path:
    """Write a checkpoint at step 80."""
    config = tiny_config(algorithm, "Hopper-v4", **settings).api_stack(stack == "new", stack == "new")
    with running(config) as built:
        train_to(built, 80)
        return Path(built.save_to_path(directory / "original"))


def learned(algorithm: ActorCriticAlgorithm) -> dict[str, Any]:
    """Return everything learned, and what determines the next updates."""
    core = algorithm.local_learner
    return {
        "model": core.trainer.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in core.trainer.optimizers.values()],
        "trainer": core.trainer.get_state(),
        "rows": np.concatenate(
            core.replay.read(core.replay.total_rows - core.replay.num_rows, core.replay.total_rows)
        ),
        "counters": (algorithm.env_steps, algorithm._num_updates, algorithm.latest_evaluation),
    }


@SAC_HPO_OF_BOTH_STACKS_IN_TIME
def test_noise_free_actions_stay_bitwise_equal(algorithm: str, stack: str, tmp_path: Path) -> None:
    original = written(algorithm, stack, tmp_path)
    assert convert(original, tmp_path / "converted") == OTHER[stack]
    assert convert(tmp_path / "converted", tmp_path / "back") == stack
    obs = 3 * torch.randn((200, 11), generator=torch.Generator().manual_seed(0))
    policies = [load_policy(path) for path in (original, tmp_path / "converted", tmp_path / "back")]
    assert [policy.manifest["config"]["api_stack"] for policy in policies] == [stack, OTHER[stack], stack]
    for policy in policies[1:]:
        assert torch.equal(policy.actor.act(obs), policies[0].actor.act(obs))
        assert policy.action_space == policies[0].action_space
        assert policy.observation_space == policies[0].observation_space


@EVERY_ALGORITHM_OF_BOTH_STACKS_IN_TIME
def test_everything_learned_is_taken_over(algorithm: str, stack: str, tmp_path: Path) -> None:
    """Training continues from it; the ring of 60 rows has wrapped around."""
    original = written(algorithm, stack, tmp_path, **tuned(algorithm), replay_capacity=60)
    convert(original, tmp_path / "converted")
    with loaded(original) as before, loaded(tmp_path / "converted") as after:
        assert after.config.is_old_stack == (stack == "new")
        assert_equal(learned(before), learned(after))
        train_to(after, 120)
        assert after._num_updates == 100


def test_exploration_does_not_begin_again(stack: str, tmp_path: Path) -> None:
    """The converted run draws other noise than the original's first steps."""
    original = written("sac", stack, tmp_path)
    convert(original, tmp_path / "converted")
    with loaded(tmp_path / "converted") as after:
        worker = after.env_runner
        owner = (worker.get_policy() if after.config.is_old_stack else worker)._owner
        assert owner[-1] == 80


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], stack: str) -> None:
    original = written("sac-hpo", stack, tmp_path)
    for arguments in (
        ["convert", str(original), "--out", str(tmp_path / "converted")],
        ["evaluate", str(original), "--episodes", "2"],
        ["evaluate", str(tmp_path / "converted"), "--episodes", "2"],
    ):
        cli.app(arguments, standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"a checkpoint for RLlib's {OTHER[stack]} API stack")
    assert lines[1] == lines[2]
    assert lines[1].startswith("sac-hpo on Hopper-v4 after 80 steps")


def test_a_checkpoint_of_an_older_version(tmp_path: Path) -> None:
    """It lacks settings that were added later."""
    original = written("sac", "new", tmp_path)
    manifest = json.loads((original / MANIFEST).read_text())
    for name in ("cuda_graph", "tf32"):
        del manifest["config"][name]
    (original / MANIFEST).write_text(json.dumps(manifest))
    assert convert(original, tmp_path / "converted") == "old"
    with loaded(tmp_path / "converted") as converted:
        assert converted.settings.cuda_graph


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    original = written("sac", "new", tmp_path)
    with pytest.raises(UserError, match="original already exists; choose another --out"):
        convert(original, original)

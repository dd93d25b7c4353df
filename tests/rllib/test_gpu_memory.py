"""Test that a learner with a share of a GPU keeps within that share of its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rllib_hpo.errors import UserError
from rllib_hpo.learning.memory import limit_gpu_memory
from rllib_hpo.rllib.new_stack import learner
from rllib_hpo.rllib.old_stack import policy as torch_policy
from rllib_hpo.rllib.old_stack import stack as policy_stack
from tests.rllib.old_stack.test_policy_stack import old_config
from tests.rllib.tiny import running, tiny_config


@pytest.mark.parametrize(
    ("share", "device", "limits"),
    [
        (0.2, "cuda", [(0.2, "cuda")]),
        (0.5, "cuda:1", [(0.5, "cuda:1")]),
        (1.0, "cuda", []),
        (0.0, "cuda", []),
        (0.2, "cpu", []),
    ],
)
def test_a_share_bounds_the_memory(share: float, device: str, limits: list[tuple[float, str]]) -> None:
    called: list[tuple[float, str]] = []
    limit_gpu_memory(share, torch.device(device), lambda *args: called.append((args[0], str(args[1]))))
    assert called == limits


@pytest.mark.parametrize("limited", [True, False])
def test_the_bound_can_be_turned_off(limited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is set before the learner allocates its replay."""
    called: list[tuple[float, str]] = []

    def note(share: float, device: torch.device) -> None:
        called.append((share, str(device)))

    monkeypatch.setattr(learner, "limit_gpu_memory", note)
    with running(tiny_config().learners(limit_gpu_memory=limited)):
        assert called == ([(0, "cpu")] if limited else [])


def test_the_old_stack_keeps_to_its_share_too(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[float] = []
    monkeypatch.setattr(torch_policy, "limit_gpu_memory", lambda share, device: called.append(share))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # and yet there is none to be found
    with running(old_config().resources(num_gpus=0.25)):
        assert called == [0.25]


def _full(*args: Any, **kwargs: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


SENTENCE = r"^The learner does not fit into its share of GPU memory: give it a larger fraction .*\.$"


@pytest.mark.parametrize("make", [tiny_config, old_config])
def test_a_learner_that_does_not_fit_is_told_of_in_a_sentence(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (learner, policy_stack):
        monkeypatch.setattr(module, "ReplayLearner", _full)
    with pytest.raises(UserError, match=SENTENCE):
        make().build_algo()


@pytest.mark.parametrize("make", [tiny_config, old_config])
def test_an_update_that_does_not_fit_is_told_of_in_a_sentence(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(make()) as algorithm:
        monkeypatch.setattr(algorithm.local_learner.trainer, "update", _full)
        with pytest.raises(UserError, match=SENTENCE):
            algorithm.train()

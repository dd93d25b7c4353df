"""A learner with a share of a GPU holds no more than that of its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rllib_hpo.errors import UserError
from rllib_hpo.rllib import learner
from rllib_hpo.rllib.learner import limit_gpu_memory
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
    """It is set before the learner takes any memory for its replay."""
    called: list[tuple[float, str]] = []

    def note(share: float, device: torch.device) -> None:
        called.append((share, str(device)))

    monkeypatch.setattr(learner, "limit_gpu_memory", note)
    with running(tiny_config().learners(limit_gpu_memory=limited)):
        assert called == ([(0, "cpu")] if limited else [])


def test_a_learner_that_does_not_fit_is_told_of_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(learner, "ReplayLearner", full)
    with pytest.raises(UserError, match=r"A learner does not fit into the memory of 0 GPU: raise num_gpus"):
        tiny_config().build_algo()

"""Count the operations of an update on a GPU: nodes of its graph, each of which costs microseconds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.algorithms.sac import SoftActorCriticModel
from rllib_hpo.kernels import products, q_networks
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.learning.trainer import Trainer
from rllib_hpo.settings import ActorCriticSettings, SACHPOSettings, SACNFSettings, SACSettings

AT_MOST: dict[str, tuple[ActorCriticSettings, int]] = {
    "sac": (SACSettings(), 119),
    "sac, automatic temperature": (SACSettings(alpha="auto"), 136),
    "sac-nf": (SACNFSettings(), 223),
    "sac-hpo, K = 1": (SACHPOSettings(leapfrog_steps=1), 173),
    "sac-hpo, K = 3": (SACHPOSettings(leapfrog_steps=3), 251),
}
VIEWS = {"alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "squeeze", "t"}
VIEWS |= {"_reshape_alias", "_unsafe_view", "transpose", "unbind", "unsqueeze", "view"}
NO_WORK = VIEWS | {"empty", "empty_like", "empty_strided", "new_empty", "lift_fresh"}


class _Count(TorchDispatchMode):
    """Count operations that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += function.__name__.split(".")[0] not in NO_WORK
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("settings", "at_most"), AT_MOST.values(), ids=AT_MOST)
def test_an_update_is_few_operations(
    settings: ActorCriticSettings, at_most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted as made on a GPU: both critics in one product, without oneDNN."""
    monkeypatch.setattr(q_networks, "separate", lambda w, b: [q_networks.Layers(list(w), list(b))])
    monkeypatch.setattr(products, "HAS_ONEDNN", False)
    settings = settings.model_copy(update={"replay_capacity": 500})
    model = SoftActorCriticModel(11, 3, settings, seed=0)
    learner = ReplayLearner(Trainer(make_method(settings), model, seed=0))
    learner.add_transitions(torch.randn(500, learner.replay.layout.width).numpy())
    learner.trainer.update_in_bulk(None)
    learner.update_from_replay(2)  # which makes what is kept
    feed = learner.trainer.bulk._feed
    feed.draw(learner.replay, 2, learner.trainer.streams)
    with _Count() as count:
        learner.trainer.update(*feed.next(), "update")
    assert at_most - 3 <= count.number <= at_most

"""Make one update of a model as the trainer does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rllib_hpo.algorithms.base import Noise
from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.optim.guards import Guard
from rllib_hpo.optim.replicas import ALONE, Replica
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch
from rllib_hpo.settings import Settings

Optimizers = dict[str, torch.optim.Optimizer]


def make_optimizers(model: Any, settings: Settings) -> Optimizers:
    return make_method(settings).make_optimizers(model)


def update(
    model: Any,
    optimizers: Optimizers,
    batch: Batch,
    noise: Noise,
    settings: Settings,
    replica: Replica = ALONE,
    guard: Guard | None = None,
) -> dict[str, Tensor]:
    """Make update number 1."""
    method = make_method(settings)
    return method.update(model, batch, noise, Steps(optimizers, replica, guard), method.kind(1))

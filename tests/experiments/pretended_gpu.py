"""Let the learner use the CPU on a node with a pretended GPU (Ray counts it, torch has none); for `--import`."""

from __future__ import annotations

import torch
from ray.rllib.core.learner.torch import torch_learner

from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.rllib.new_stack.learner import ActorCriticLearner


class LearnerOnCPU(ActorCriticLearner):
    """Run the same learner on the CPU; a remote learner's process imports this module because it holds the class."""


torch_learner.get_device = lambda *_: torch.device("cpu")
ActorCriticAlgorithm._validate_local_hardware = staticmethod(lambda config: None)  # type: ignore[method-assign]
ActorCriticConfig.get_default_learner_class = lambda self: LearnerOnCPU  # type: ignore[method-assign]

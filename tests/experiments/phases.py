"""Report the phases of a run that imports this module (`--import`), and change nothing else.

When a phase begins, it appends "+PHASE" to the file that PHASES_FILE names, and when it ends, the enclosing phase.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from rllib_hpo.experiments.storage.checkpoints import CheckpointStore
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.rllib import algorithm, checkpointing, evaluating

# The run stores what it imports, so a life that nobody watches imports this, too.
_file = os.open(os.environ.get("PHASES_FILE", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
_around = ["building"]


def announce(owner: Any, method: str, phase: str) -> None:
    """Report calls of `owner.method` as `phase`."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def announced(*args: Any, **kwargs: Any) -> Any:
        _around.append(phase)
        os.write(_file, f"+{phase}\n".encode())
        try:
            return original(*args, **kwargs)
        finally:
            _around.pop()
            os.write(_file, f"{_around[-1]}\n".encode())

    setattr(owner, method, announced)


os.write(_file, b"+building\n")
announce(algorithm.ActorCriticAlgorithm, "restore_from_path", "restoring")
announce(algorithm.ActorCriticAlgorithm, "train", "training")
announce(algorithm.ActorCriticAlgorithm, "_play", "evaluation")
announce(evaluating, "write_row", "writing a row")
announce(CheckpointStore, "save", "checkpoint")
announce(ReplayLearner, "save_replay", "checkpoint, replay")
announce(checkpointing, "write_atomically", "checkpoint, manifest")
announce(CheckpointStore, "_link", "checkpoint, link")
announce(CheckpointStore, "_prune", "checkpoint, pruning")

"""Record the operations and matrix products of updates in the form that a GPU gets, on any machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from rllib_hpo.learning.replay_learner import ReplayLearner

VIEWS = {"alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "squeeze", "t"}
VIEWS |= {"_reshape_alias", "_unsafe_view", "transpose", "unbind", "unsqueeze", "view"}
NO_WORK = VIEWS | {"empty", "empty_like", "empty_strided", "new_empty", "lift_fresh"}
"""Operations that launch no kernel."""

_PRODUCTS = {"mm": 0, "bmm": 0, "mv": 0, "addmm": 1, "baddbmm": 1, "addmv": 1}
"""Operations that multiply matrices, with the position of the first factor among their arguments."""


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Use batched critics and torch's own products within, as on a GPU."""
    from rllib_hpo.kernels import products, q_networks

    def together(weights: Any, biases: Any) -> Any:
        return [q_networks.Layers(list(weights), list(biases))]

    with (
        mock.patch.object(q_networks, "separate", together),
        mock.patch.object(products, "HAS_ONEDNN", new=False),
    ):
        yield


class Operations(TorchDispatchMode):
    """Count operations that compute something, and keep the shapes of matrix products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number = 0
        self.products: list[tuple[int, int, int, int]] = []
        """Batch size, M, K and N of every product (M, K) times (K, N)."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        self.number += name not in NO_WORK
        if (place := _PRODUCTS.get(name)) is not None:
            left, right = args[place].shape, args[place + 1].shape
            columns = right[-1] if len(right) > 1 else 1
            self.products.append((math.prod(left[:-2]), left[-2], left[-1], columns))
        return function(*args, **(kwargs or {}))


def operations_of_updates(learner: ReplayLearner, num_updates: int) -> list[Operations]:
    """Return the operations of each of the next updates of a learner on a CPU, in the form that a GPU gets."""
    trainer, found = learner.trainer, []
    with as_on_a_gpu():
        trainer.update_in_bulk(None)
        learner.update_from_replay(len(trainer.all_kinds()) * 4)  # makes what is made on first use
        assert trainer.bulk is not None
        feed = trainer.bulk._feed
        assert feed is not None
        kinds = trainer.kinds(num_updates)
        feed.draw(learner.replay, num_updates, trainer.streams)
        for kind in kinds:
            with Operations() as operations:
                trainer.update(*feed.next(), kind)
            found.append(operations)
            trainer.count([kind], feed.last)
    return found

"""Several processes that train one model in step, each on batches of its own: gradients averaged, metrics merged.

DistributedDataParallel averages what goes through its `forward`; an update here calls samplers, critics and
targets by themselves and has an optimizer for each loss, so the mean is taken between each backward and its step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rllib_hpo.errors import WorkerDiedError

LEARNERS_DIED_MESSAGE = "A remote learner died; resume the run from its last checkpoint."
"""What is said when one of several is gone."""
LEARNER_DIED_MESSAGE = "The remote learner died; resume the run from its last checkpoint."
"""What is said when the only one is gone."""

GPU_MEMORY = "gpu_memory_bytes"
"""The metric of the most bytes that torch has held at a time on the GPU that trains."""

_MERGED: dict[str, Callable[[Sequence[float]], float]] = {"replay_rows": sum, GPU_MEMORY: max}


class Replica:
    """One of `world_size` processes that hold equal models and take equal steps.

    Args:
        rank: Its number, from 0.
        world_size: How many there are.
        group: The process group of torch.distributed in which they talk; None for one that is alone.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.world_size, self._group = rank, world_size, group

    @classmethod
    def of_this_process(cls, timeout_s: float) -> Replica:
        """That of this process in a group of all processes of torch.distributed.

        Args:
            timeout_s: How long one waits for another, in seconds, before it takes it for lost.
        """
        group = dist.new_group(timeout=timedelta(seconds=timeout_s))
        return cls(dist.get_rank(), dist.get_world_size(), group)

    @property
    def owner(self) -> tuple[str | int, ...]:
        """Words that tell this replica's random streams from the others'; none for the first."""
        return ("rank", self.rank) if self.rank else ()

    def share(self, total: int) -> int:
        """What falls to this replica of `total` things dealt one by one."""
        return len(range(self.rank, total, self.world_size))

    @torch.no_grad()
    def average_gradients(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        """Puts the mean over all replicas in the place of every gradient that `optimizer` follows.

        One all-reduce of all of them and the loss, flattened: bitwise the same everywhere.

        Args:
            optimizer: Whose parameters have gradients, the same ones in all replicas.
            loss: Scalar without gradient, whose gradients these are.

        Returns:
            The mean of the losses, a scalar: not finite in all replicas where it is not finite in one.

        Raises:
            WorkerDiedError: If another replica is gone, or silent for longer than the group's patience.
        """
        if self.world_size == 1:
            return loss
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([tensor.reshape(-1) for tensor in (*gradients, loss)])
        self._communicate(dist.all_reduce, flat)
        flat /= self.world_size
        *means, mean_loss = flat.split([tensor.numel() for tensor in (*gradients, loss)])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
        return mean_loss.squeeze()

    @torch.no_grad()
    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all replicas, bitwise the same everywhere.

        Raises:
            WorkerDiedError: As `average_gradients`.
        """
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        self._communicate(dist.all_reduce, total)
        return total / self.world_size

    @torch.no_grad()
    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Gives `tensors` the values they have in the first replica.

        Raises:
            WorkerDiedError: As `average_gradients`.
        """
        for tensor in tensors if self.world_size > 1 else ():
            self._communicate(dist.broadcast, tensor, src=0)

    def _communicate(self, collective: Callable[..., Any], tensor: Tensor, **options: Any) -> None:
        try:
            collective(tensor, group=self._group, **options)
        except RuntimeError as error:  # gloo's connection that is closed or silent has no class of its own
            raise WorkerDiedError(LEARNERS_DIED_MESSAGE) from error


ALONE = Replica()
"""The only one there is: nothing is averaged."""


def merge_metrics(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """Metrics of all replicas as one: means over those that have it; of replay rows the sum, of memory the most."""
    merged = {}
    for name in dict.fromkeys(name for each in metrics for name in each):
        values = [each[name] for each in metrics if name in each]
        merged[name] = _MERGED.get(name, fmean)(values)
    return merged

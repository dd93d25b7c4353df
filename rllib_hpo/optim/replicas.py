"""Data-parallel training in several processes: average gradients, merge metrics.

DistributedDataParallel averages gradients of its own `forward` only; an update calls samplers, critics and targets
directly and has an optimizer for each loss, so gradients are averaged between each backward pass and its step.
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
"""Error message when one of several learners has died."""
LEARNER_DIED_MESSAGE = "The remote learner died; resume the run from its last checkpoint."
"""Error message when the only learner has died."""

GPU_MEMORY = "gpu_memory_bytes"
"""Metric of torch's peak memory on the learner's GPU, in bytes."""

_MERGED: dict[str, Callable[[Sequence[float]], float]] = {"replay_rows": sum, GPU_MEMORY: max}


class Replica:
    """One of `world_size` processes with equal models that take equal steps.

    Args:
        rank: Index of the process, from 0.
        world_size: Number of processes.
        group: Their process group of torch.distributed; None for a single process.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.world_size, self._group = rank, world_size, group

    @classmethod
    def of_this_process(cls, timeout_s: float) -> Replica:
        """The replica of this process, in a group of all processes of torch.distributed.

        Args:
            timeout_s: Seconds of silence after which another process counts as dead.
        """
        group = dist.new_group(timeout=timedelta(seconds=timeout_s))
        return cls(dist.get_rank(), dist.get_world_size(), group)

    @property
    def owner(self) -> tuple[str | int, ...]:
        """Words of the names of this replica's random streams; none for the first."""
        return ("rank", self.rank) if self.rank else ()

    def share(self, total: int) -> int:
        """Share of this replica if `total` items are dealt one by one."""
        return len(range(self.rank, total, self.world_size))

    @torch.no_grad()
    def average_gradients(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        """Replace the gradients of `optimizer` by their means over all replicas.

        One all-reduce of all gradients and the loss, flattened: bitwise the same in all replicas.

        Args:
            optimizer: Optimizer whose parameters have gradients, the same ones in all replicas.
            loss: The loss, a scalar without gradient.

        Returns:
            The mean of the losses, a scalar: not finite in all replicas if it is not finite in one.

        Raises:
            WorkerDiedError: If another replica has died, or is silent for longer than the group's timeout.
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
        """Mean of a scalar over all replicas, bitwise the same in all of them.

        Raises:
            WorkerDiedError: See `average_gradients`.
        """
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        self._communicate(dist.all_reduce, total)
        return total / self.world_size

    @torch.no_grad()
    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Set `tensors` to their values in the first replica.

        Raises:
            WorkerDiedError: See `average_gradients`.
        """
        for tensor in tensors if self.world_size > 1 else ():
            self._communicate(dist.broadcast, tensor, src=0)

    def _communicate(self, collective: Callable[..., Any], tensor: Tensor, **options: Any) -> None:
        try:
            collective(tensor, group=self._group, **options)
        except RuntimeError as error:  # gloo has no class for a closed or silent connection
            raise WorkerDiedError(LEARNERS_DIED_MESSAGE) from error


ALONE = Replica()
"""A single process, which averages nothing."""


def merge_metrics(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """Merge metrics of all replicas: the sum of replay rows, the maximum of memory, means of all others."""
    merged = {}
    for name in dict.fromkeys(name for each in metrics for name in each):
        values = [each[name] for each in metrics if name in each]
        merged[name] = _MERGED.get(name, fmean)(values)
    return merged

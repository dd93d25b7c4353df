"""Every change that an update makes: gradient steps, target networks, buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rllib_hpo.optim.adam import adam_step
from rllib_hpo.optim.guards import Guard
from rllib_hpo.optim.replicas import ALONE, Replica


class Steps:
    """Changes a model, identically in all replicas, and not at all once a loss was not finite.

    Args:
        optimizers: Adam by name. The loss of that name drives the parameters of that optimizer and no others.
        replica: Which of the processes that make this update together, each with a batch of its own. All take
            the steps of the mean gradients, which are those of the concatenated batch.
        guard: What to do about a loss that is not finite: raise at once, unless another is given.
    """

    def __init__(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer],
        replica: Replica = ALONE,
        guard: Guard | None = None,
    ) -> None:
        self._optimizers, self._replica, self._guard = optimizers, replica, guard or Guard()

    def __contains__(self, name: str) -> bool:
        """Whether there is a loss of that name: a temperature that is fixed has none."""
        return name in self._optimizers

    def descend(self, name: str, loss: Tensor) -> None:
        """Takes one Adam step along the gradient of the loss's mean over all replicas.

        Args:
            name: Of the optimizer.
            loss: Scalar.

        Raises:
            NonFiniteError: If the loss is not finite, of whichever replica; the parameters that it drives are
                untouched.
            WorkerDiedError: If another replica is gone.
        """
        optimizer = self._optimizers[name]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            # The fused kernel takes parameters and gradients for rows of numbers in the same order.
            parameter.grad = None if gradient is None else gradient.contiguous()
        mean_loss = self._replica.average_gradients(optimizer, loss.detach())
        adam_step(optimizer, self._guard.check(mean_loss, f"{name} loss"))

    @torch.no_grad()
    def track(self, target: nn.Module, online: nn.Module, tau: float) -> None:
        """Moves `target` towards `online`: target <- target + tau (online - target); tau = 1 copies.

        Args:
            target: Whose parameters move.
            online: A module with the same parameters.
            tau: In (0, 1].
        """
        targets: list[Tensor] = list(target.parameters())
        onlines: list[Tensor] = list(online.parameters())
        frozen = self._guard.frozen
        if frozen is None:
            torch._foreach_lerp_(targets, onlines, tau)
        else:
            changes = torch._foreach_sub(onlines, targets)
            torch._foreach_mul_(changes, torch.rsub(frozen, tau, alpha=tau))
            torch._foreach_add_(targets, changes)

    def mean(self, value: Tensor) -> Tensor:
        """Averages a scalar over all replicas: what is written into the model must be equal in all of them.

        Raises:
            WorkerDiedError: If another replica is gone.
        """
        return self._replica.mean(value.detach())

    @torch.no_grad()
    def assign(self, buffer: Tensor, value: Tensor) -> None:
        """Writes `value` into a buffer of the model, in place."""
        frozen = self._guard.frozen
        buffer.copy_(value if frozen is None else torch.where(frozen > 0, buffer, value))

"""Make every change of an update: gradient steps, target networks, buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rllib_hpo.optim.adam import adam_step
from rllib_hpo.optim.guards import Guard
from rllib_hpo.optim.replicas import ALONE, Replica


class Steps:
    """Change a model identically in all replicas, and not at all after a non-finite loss.

    Args:
        optimizers: Adam by name. The loss of that name trains the parameters of that optimizer alone.
        replica: Rank of this process in data-parallel training. Gradients are averaged, so a step equals one on the
            concatenated batch.
        guard: Handler of non-finite losses; by default it raises at once.
    """

    def __init__(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer],
        replica: Replica = ALONE,
        guard: Guard | None = None,
    ) -> None:
        self._optimizers, self._replica, self._guard = optimizers, replica, guard or Guard()

    def __contains__(self, name: str) -> bool:
        """Return whether there is a loss of that name; a fixed temperature has none."""
        return name in self._optimizers

    def descend(self, name: str, loss: Tensor) -> None:
        """Take one Adam step along the gradient of the loss's mean over all replicas.

        Args:
            name: Name of the optimizer.
            loss: Loss, a scalar.

        Raises:
            NonFiniteError: If the loss is not finite in any replica; the parameters that it trains are unchanged.
            WorkerDiedError: If another replica has died.
        """
        optimizer = self._optimizers[name]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            # The fused kernel reads parameters and gradients as flat arrays, so both need the same memory order.
            parameter.grad = None if gradient is None else gradient.contiguous()
        mean_loss = self._replica.average_gradients(optimizer, loss.detach())
        adam_step(optimizer, self._guard.check(mean_loss, f"{name} loss"))

    @torch.no_grad()
    def track(self, target: nn.Module, online: nn.Module, tau: float) -> None:
        """Move `target` towards `online`: target <- target + tau (online - target); tau = 1 copies.

        Args:
            target: Module whose parameters change.
            online: A module with the same parameters.
            tau: Rate in (0, 1].
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
        """Average a scalar over all replicas, since values written into the model must be equal in all.

        Raises:
            WorkerDiedError: If another replica has died.
        """
        return self._replica.mean(value.detach())

    @torch.no_grad()
    def assign(self, buffer: Tensor, value: Tensor) -> None:
        """Write `value` into a buffer of the model, in place."""
        frozen = self._guard.frozen
        buffer.copy_(value if frozen is None else torch.where(frozen > 0, buffer, value))

"""Evaluate Q networks with layer normalisation before each ReLU (Ba et al. 2016, arXiv 1607.06450).

Their action gradient varies between the kinks of the ReLUs, so autograd computes it. A force that takes it for a
constant would train the policy inexactly, and `critic_layer_norm` is refused there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from rllib_hpo.networks.critics import ConditionedCritic, Critics
from rllib_hpo.settings import NetworkSettings, layer_units

_EPSILON = 1e-5
"""Added to variances, as in `nn.LayerNorm`."""


def make_critics(
    obs_dim: int,
    action_dim: int,
    settings: NetworkSettings,
    generator: torch.Generator | None,
    num: int = 2,
) -> Critics:
    """Make the critics that the settings ask for; see `Critics`."""
    kind = LayerNormCritics if settings.critic_layer_norm else Critics
    return kind(obs_dim, action_dim, settings.hidden_units, settings.critic_layers, generator, num)


class LayerNormCritics(Critics):
    """Evaluate Q_1 to Q_N with layer normalisation; see `Critics`."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden_units: int | Sequence[int] = 256,
        num_layers: int = 2,
        generator: torch.Generator | None = None,
        num: int = 2,
    ) -> None:
        super().__init__(obs_dim, action_dim, hidden_units, num_layers, generator, num)
        units = layer_units(hidden_units, num_layers)
        self.gains = nn.ParameterList(torch.ones(num, 1, width) for width in units)
        self.offsets = nn.ParameterList(torch.zeros(num, 1, width) for width in units)

    @override
    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.values(obs, action)

    def values(
        self, obs: Tensor, action: Tensor, num: int | None = None, *, detached: bool = False
    ) -> Tensor:
        """Return the values of the first `num` networks, (num, B); `detached` cuts gradients to parameters."""

        def used(parameters: nn.ParameterList) -> list[Tensor]:
            return [each[:num].detach() if detached else each[:num] for each in parameters]

        weights, biases, gains, offsets = map(used, (self.weights, self.biases, self.gains, self.offsets))
        values = torch.cat([obs, action], -1).expand(len(weights[0]), -1, -1)
        for weight, bias, gain, offset in zip(weights[:-1], biases[:-1], gains, offsets, strict=True):
            before = torch.baddbmm(bias, values, weight.mT)
            normal = F.layer_norm(before, before.shape[-1:], eps=_EPSILON)
            values = F.relu(torch.addcmul(offset, normal, gain))
        return torch.baddbmm(biases[-1], values, weights[-1].mT).squeeze(-1)

    @override
    def _conditioned(self, obs: Tensor, *, reuse: bool = True, num: int | None = None) -> ConditionedCritic:
        return _LayerNormConditionedCritic(self, obs, reuse=reuse, num=num)


class _LayerNormConditionedCritic(ConditionedCritic):
    """Evaluate layer-normalised critics at fixed states; see `ConditionedCritic`."""

    _critic: LayerNormCritics

    def _values(self, action: Tensor) -> Tensor:
        return self._critic.values(self._obs.detach(), action, self._num, detached=True)

    @override
    def minimum(self, action: Tensor) -> Tensor:
        return self._values(action).amin(0)

    @override
    def maximum(self, action: Tensor) -> Tensor:
        return self._values(action).amax(0)

    @override
    def minimum_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        return self._with_gradient(action, 1.0)

    @override
    def maximum_and_gradient(self, action: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self._with_gradient(action, -1.0)
        return -value, -gradient

    def _with_gradient(self, action: Tensor, sign: float) -> tuple[Tensor, Tensor]:
        """Return the minimum of sign * Q, (B,), and its action gradient, (B, A), both without a graph."""
        with torch.enable_grad():
            leaf = action.detach().requires_grad_()
            value = (sign * self._values(leaf)).amin(0)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

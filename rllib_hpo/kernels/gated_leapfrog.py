"""Differentiate a chain of gated leapfrog steps by running it in reverse.

Gradients of action and momentum go back through kick, drift and kick (eq. (13) of arXiv 2103.12020). Each force
backpropagates to the action and to the two networks, whose parameter gradients are one product over all forces. The
direction of a force, the gradient of Q, is a constant. Autograd would run about a hundred small operations, also for
the rows without a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rllib_hpo.kernels import products
from rllib_hpo.kernels.gated_force import Buffers, ForceLayers, gated_force
from rllib_hpo.kernels.products import add_scaled
from rllib_hpo.kernels.tracing import is_traced

Direction = Callable[[Tensor], Tensor]
"""Function from actions (B, A) to directions of the force (B, A), constant for the backward pass."""
Integrator = Callable[..., tuple[Tensor, Tensor]]
"""The function `rllib_hpo.samplers.leapfrog.leapfrog`, whose steps the backward pass reverses."""


class LeapfrogOptions(NamedTuple):
    """Options of `leapfrog` that are constant in this kernel."""

    step_size: float | Tensor
    num_steps: int
    """K >= 1."""
    final_kick: bool = True
    inverse_mass: float = 1.0
    momentum_scales: Sequence[float] | None = None

    def scale(self, step: int) -> float:
        """Return the factor of the momentum after a step."""
        return 1.0 if self.momentum_scales is None else self.momentum_scales[step]


def gated_leapfrog(
    action: Tensor,
    momentum: Tensor,
    obs: Tensor,
    direction: Direction,
    layers: ForceLayers,
    options: LeapfrogOptions,
    integrate: Integrator,
    detached_rows: int = 0,
) -> tuple[Tensor, Tensor]:
    """Evolve (a_0, rho_0) by K gated leapfrog steps, differentiably in all but `direction`.

    Args:
        action: a_0, (B, A).
        momentum: rho_0, (B, A).
        obs: States, (B, S).
        direction: Direction of the force, before the gate.
        layers: Parameters of the force's networks.
        options: Options of the integrator.
        integrate: The integrator.
        detached_rows: Number of leading rows without a gradient.

    Returns:
        (a_K, rho_K), each (B, A).
    """
    end: tuple[Tensor, Tensor] = _GatedLeapfrog.apply(  # type: ignore[no-untyped-call]
        action, momentum, obs, direction, options, integrate, detached_rows, *layers
    )
    return end


class _GatedLeapfrog(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        action: Tensor,
        momentum: Tensor,
        obs: Tensor,
        direction: Direction,
        options: LeapfrogOptions,
        integrate: Integrator,
        detached_rows: int,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        forces = _Forces(obs, direction, ForceLayers(*parameters), options.num_steps + options.final_kick)
        end = integrate(action, momentum, forces, **options._asdict())
        # Stored on ctx, not by save_for_backward: nothing else writes to them, so autograd need not check versions.
        ctx.forces, ctx.options, ctx.detached_rows = forces, options, detached_rows
        ctx.save_for_backward(*parameters)
        ctx.set_materialize_grads(False)
        return end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        options: LeapfrogOptions = ctx.options
        rows = slice(ctx.detached_rows, None)
        back = _ForcesInReverse(ctx.forces, ForceLayers(*ctx.saved_tensors), rows)
        of_action, of_momentum = (None if grad is None else grad[rows] for grad in grad_outputs)
        if of_action is None:
            of_action = torch.zeros_like(back.direction(0))
        of_action, of_momentum = _reverse(back, of_action, of_momentum, options)
        of_obs, *of_parameters = back.of_layers(needs_obs=ctx.needs_input_grad[2])
        padding = (0, 0, ctx.detached_rows, 0)
        of_inputs = (
            None if grad is None else F.pad(grad, padding) for grad in (of_action, of_momentum, of_obs)
        )
        return *of_inputs, None, None, None, None, *of_parameters


def _reverse(
    back: _ForcesInReverse, of_action: Tensor, of_momentum: Tensor | None, options: LeapfrogOptions
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a_0 and rho_0 from those of a_K and rho_K, where None stands for zero."""
    half_kick, drift = -0.5 * options.step_size, options.step_size * options.inverse_mass
    for k in reversed(range(options.num_steps)):
        is_last = k == options.num_steps - 1
        if of_momentum is None:
            of_momentum = of_action * drift
            continue
        # A force kicks at the end of its step and, except for the last, at the start of the next.
        if options.final_kick or not is_last:
            of_force = of_momentum * (half_kick * (options.scale(k) + (not is_last)))
            of_action = back.through(k + 1, of_force, of_action)
        if options.momentum_scales is not None:
            of_momentum = of_momentum * options.scale(k)
        of_momentum = add_scaled(of_momentum, of_action, drift)
    if of_momentum is None:
        raise ValueError("a chain has at least one step")
    return back.through(0, of_momentum * half_kick, of_action), of_momentum


class _Forces:
    """Evaluate the forces of one chain in order, and store what their backward pass needs."""

    def __init__(self, obs: Tensor, direction: Direction, layers: ForceLayers, number: int) -> None:
        self.obs, self._direction, self._layers = obs, direction, layers
        weight = layers.state_weight
        self._state_part = layers.bias if weight is None else products.linear(obs, weight, layers.bias)
        units, action_inputs = layers.action_weight.shape
        self.inputs = obs.new_empty((number, len(obs), action_inputs), dtype=layers.bias.dtype)
        self.hidden = self.inputs.new_empty((number, len(obs), units))
        self.heads: list[tuple[Tensor, Tensor]] = []

    def __call__(self, action: Tensor) -> Tensor:
        """Return F(a), (B, A)."""
        number = len(self.heads)
        buffers = Buffers(self.inputs[number], self.hidden[number])
        values = gated_force(action, self._direction(action), self._state_part, self._layers, buffers)
        self.heads.append((values.transform, values.gate))
        return values.force


class _ForcesInReverse:
    """Run the backward pass of `_Forces` for R of the rows."""

    def __init__(self, forces: _Forces, layers: ForceLayers, rows: slice) -> None:
        self._layers, self._obs = layers, forces.obs[rows]
        self._inputs, self._hidden = forces.inputs[:, rows], forces.hidden[:, rows]
        self._heads = [(transform[rows], gate[rows]) for transform, gate in forces.heads]
        number, num_rows, _ = self._hidden.shape
        self._action_dim, self._units = layers.transform_weight.shape
        self._before_hidden = self._hidden.new_empty((number, num_rows, 2 * self._units))
        self._before_heads = self._hidden.new_empty((2, number, num_rows, self._action_dim))
        self._num_used = 0

    def direction(self, number: int) -> Tensor:
        """Return the direction g of a force, (R, A)."""
        return self._inputs[number, :, self._action_dim :]

    def through(self, number: int, of_force: Tensor, of_action: Tensor) -> Tensor:
        """Return the gradient of the action, (R, A), including the part through a force."""
        self._num_used = max(self._num_used, number + 1)  # the last action may have no gradient
        (transform, gate), layers = self._heads[number], self._layers
        before_transform, before_gate = self._before_heads[:, number]
        aten, units = torch.ops.aten, self._units
        of_transform = torch.addcmul(of_force, of_force, gate, value=-1)
        _write(before_transform, aten.tanh_backward, of_transform, transform)
        of_gate = of_force * (self.direction(number) - transform)
        _write(before_gate, aten.sigmoid_backward, of_gate, gate)
        before_hidden = self._before_hidden[number]
        of_hidden = torch.empty_like(before_hidden)
        _write(of_hidden[:, :units], aten.mm, before_transform, layers.transform_weight)
        _write(of_hidden[:, units:], aten.mm, before_gate, layers.gate_weight)
        _write(before_hidden, aten.elu_backward, of_hidden, 1, 1, 1, True, self._hidden[number])
        return torch.addmm(of_action, before_hidden, layers.action_weight[:, : self._action_dim])

    def of_layers(self, *, needs_obs: bool) -> tuple[Tensor | None, ...]:
        """Return the gradients of the states, (R, S), if needed, and of all parameters, ordered as in `ForceLayers`."""
        used, weight = slice(0, self._num_used), self._layers.state_weight
        before_hidden, of_state_part = self._before_hidden[used], self._before_hidden[used].sum(0)
        before_transform, before_gate = self._before_heads[:, used]
        for_transform, for_gate = self._hidden[used].chunk(2, dim=-1)
        return (
            products.product(of_state_part, weight) if needs_obs and weight is not None else None,
            of_state_part.sum(0),
            torch.bmm(before_hidden.mT, self._inputs[used]).sum(0),
            torch.bmm(before_transform.mT, for_transform).sum(0),
            before_transform.sum((0, 1)),
            torch.bmm(before_gate.mT, for_gate).sum(0),
            before_gate.sum((0, 1)),
            None if weight is None else products.product(of_state_part.mT, self._obs),
        )


def _write(out: Tensor, operator: Any, *args: Any) -> None:
    """Compute into `out`; where traced by a copy, which the compiler removes."""
    if is_traced():
        out.copy_(operator(*args))
    elif "grad_input" in operator.overloads():
        operator.grad_input(*args, grad_input=out)
    else:
        operator.out(*args, out=out)

"""Integrate Hamilton's equations by leapfrog steps, given a force and a step size.

Xu & Fekri, arXiv 2103.12020, eq. (9) and (13): half kick, drift, half kick,

    rho_{k+1/2} = rho_k       - (eps / 2) F(a_k)
    a_{k+1}     = a_k         + eps M^-1 rho_{k+1/2}
    rho_{k+1}   = rho_{k+1/2} - (eps / 2) F(a_{k+1})

Every line is a shear, so the map (a, rho) -> (a', rho') has unit Jacobian for any force F(a).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from rllib_hpo.kernels.products import add_scaled

Force = Callable[[Tensor], Tensor]
"""Function from actions (B, A) to forces (B, A): the negative gradient of Q where Q should increase."""


class LeapfrogState(NamedTuple):
    """State of a chain. The force after step k is the force before step k + 1, so it is kept."""

    action: Tensor
    """a_k, (B, A)."""
    momentum: Tensor
    """rho_k, (B, A)."""
    force: Tensor | None
    """F(a_k), (B, A); None if the final kick was skipped."""


def leapfrog_step(
    state: LeapfrogState,
    force: Force,
    *,
    step_size: float | Tensor,
    inverse_mass: float | Tensor = 1.0,
    final_kick: bool = True,
) -> LeapfrogState:
    """Take one step: half kick, drift and, with `final_kick`, half kick.

    Args:
        state: a_k, rho_k and F(a_k).
        force: The force F, evaluated once, at a_{k+1}; not at all without the final kick.
        step_size: Step size eps, a number or (A,).
        inverse_mass: M^-1, a number or (A,).
        final_kick: Whether to compute rho_{k+1}; otherwise the returned momentum is rho_{k+1/2}.

    Raises:
        ValueError: If `state.force` is None.
    """
    if state.force is None:
        raise ValueError(
            "a step without the final kick must be the last of a chain, since its momentum lacks half a kick"
        )
    momentum = add_scaled(state.momentum, state.force, -0.5 * step_size)
    action = add_scaled(state.action, momentum, step_size * inverse_mass)
    if not final_kick:
        return LeapfrogState(action, momentum, None)
    new_force = force(action)
    return LeapfrogState(action, add_scaled(momentum, new_force, -0.5 * step_size), new_force)


def leapfrog(
    action: Tensor,
    momentum: Tensor,
    force: Force,
    *,
    step_size: float | Tensor,
    num_steps: int,
    final_kick: bool = True,
    inverse_mass: float | Tensor = 1.0,
    momentum_scales: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Evolve (a_0, rho_0) by `num_steps` leapfrog steps, without modifying its inputs.

    It evaluates the force num_steps + 1 times, num_steps times without the final kick, and never for 0 steps.

    Args:
        action: a_0, (B, A).
        momentum: rho_0, (B, A).
        force: The force F, (B, A) -> (B, A).
        step_size: Step size eps, a number or (A,).
        num_steps: Number of steps K >= 0.
        final_kick: Whether to take the last half kick; a_K does not depend on it.
        inverse_mass: M^-1 of the drift, a number or (A,).
        momentum_scales: K tempering factors; the k-th multiplies the momentum after step k.

    Returns:
        (a_K, rho_K), each (B, A).

    Raises:
        ValueError: If `num_steps` is negative.
    """
    if num_steps < 0:
        raise ValueError(f"num_steps is {num_steps}, less than 0")
    if num_steps == 0:
        return action, momentum
    state = LeapfrogState(action, momentum, force(action))
    for k in range(num_steps):
        kick = final_kick or k < num_steps - 1
        state = leapfrog_step(state, force, step_size=step_size, inverse_mass=inverse_mass, final_kick=kick)
        if momentum_scales is not None:
            state = state._replace(momentum=state.momentum * momentum_scales[k])
    return state.action, state.momentum

"""The leapfrog integrator. It knows a force and a step size, and nothing else.

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
"""Action (B, A) to force (B, A); the negative gradient of Q where Q is to rise."""


class LeapfrogState(NamedTuple):
    """Where a chain stands. The force after step k is the force before step k + 1, so it travels along."""

    action: Tensor
    """a_k, (B, A)."""
    momentum: Tensor
    """rho_k, (B, A)."""
    force: Tensor | None
    """F(a_k), (B, A); None once the final kick was left out."""


def leapfrog_step(
    state: LeapfrogState,
    force: Force,
    *,
    step_size: float | Tensor,
    inverse_mass: float | Tensor = 1.0,
    final_kick: bool = True,
) -> LeapfrogState:
    """One step: half kick, drift and, with `final_kick`, half kick.

    Args:
        state: a_k, rho_k and F(a_k).
        force: Evaluated once, at a_{k+1}; not at all without the final kick.
        step_size: eps, a number or (A,).
        inverse_mass: M^-1, a number or (A,).
        final_kick: False where rho_{k+1} is not needed; the momentum returned is then rho_{k+1/2}.

    Raises:
        ValueError: If `state.force` is None.
    """
    if state.force is None:
        raise ValueError("a step without the final kick ends a chain: its momentum is half a kick short")
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
    """Evolves (a_0, rho_0) by `num_steps` leapfrog steps; pure, nothing is modified.

    The force is evaluated num_steps + 1 times, num_steps times without the final kick, never for 0 steps.

    Args:
        action: a_0, (B, A).
        momentum: rho_0, (B, A).
        force: F, called with (B, A).
        step_size: eps, a number or (A,).
        num_steps: K >= 0.
        final_kick: Whether the last half kick is done; a_K does not depend on it.
        inverse_mass: M^-1 of the drift, a number or (A,).
        momentum_scales: K factors; the momentum is multiplied by the k-th after step k (tempering).

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

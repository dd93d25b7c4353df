"""Sample densities on a box, and find their normalising constants, by annealed sequential Monte Carlo.

Particles start uniform on [-1, 1]^A. The exponent of the density rises from 0 to 1 in steps that keep the effective
sample size; at each, particles are resampled and moved by Hamiltonian Monte Carlo that reflects at the walls, so every
move leaves the density at that exponent as it is (Del Moral, Doucet & Jasra, "Sequential Monte Carlo samplers", 2006;
Neal, "MCMC using Hamiltonian dynamics", 2011, section 5.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LogDensity = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps actions (S, N, A) in [-1, 1] to unnormalised log-densities (S, N) and their gradients (S, N, A)."""

MIN_ESS = 0.7
"""Share of the particles that a step of the exponent leaves effective, at least."""
MAX_EXPONENTS = 400
TARGET_ACCEPTANCE = 0.7
"""Share of moves accepted at which the step size stays as it is."""


class Reference(NamedTuple):
    """Samples of S densities, and what says whether to trust them."""

    actions: Tensor
    """(S, N, A) samples in [-1, 1], equally weighted."""
    log_z: Tensor
    """(S,) log of the integral of the unnormalised density over [-1, 1]^A."""
    ess: Tensor
    """(S,) smallest effective sample size of any step, as a share of N."""
    acceptance: Tensor
    """(S,) share of accepted moves at the last exponents."""
    survivors: Tensor
    """(S,) share of the first particles that have descendants among the samples."""


def annealed_smc(
    log_density: LogDensity,
    num_densities: int,
    dim: int,
    generator: torch.Generator,
    *,
    num_particles: int = 1_000,
    num_moves: int = 6,
    num_leapfrog_steps: int = 4,
    dtype: torch.dtype = torch.float32,
) -> Reference:
    """Draw N samples of each of S densities on [-1, 1]^A.

    Args:
        log_density: Of all S densities at once.
        num_densities: S.
        dim: A.
        generator: Of all randomness.
        num_particles: N.
        num_moves: Hamiltonian moves of every particle at each exponent.
        num_leapfrog_steps: Leapfrog steps of a move.
        dtype: Of actions and densities.
    """
    shape = num_densities, num_particles, dim
    actions = 2 * torch.rand(shape, generator=generator, dtype=dtype) - 1
    values, gradients = log_density(actions)
    exponent = torch.zeros(num_densities, dtype=dtype)
    log_z = torch.full((num_densities,), dim * math.log(2.0), dtype=dtype)
    least, acceptance = torch.ones_like(exponent), torch.ones_like(exponent)
    step_size = torch.full((num_densities,), 0.2, dtype=dtype)
    ancestors = torch.arange(num_particles).expand(num_densities, -1)
    for _ in range(MAX_EXPONENTS):
        step = _next_step(values, 1 - exponent)
        weights = values * step.unsqueeze(1)
        log_z += torch.logsumexp(weights, 1) - math.log(num_particles)
        least = torch.minimum(least, _ess(weights))
        chosen = _systematic(weights.softmax(1), generator)
        actions, gradients = (
            value.gather(1, chosen.unsqueeze(2).expand(shape)) for value in (actions, gradients)
        )
        values, ancestors = values.gather(1, chosen), ancestors.gather(1, chosen)
        exponent = exponent + step
        for _ in range(num_moves):
            actions, values, gradients, accepted = _move(
                log_density, actions, values, gradients, exponent, step_size, num_leapfrog_steps, generator
            )
            acceptance = accepted.to(dtype).mean(1)
            step_size = (step_size * torch.exp(acceptance - TARGET_ACCEPTANCE)).clamp(1e-4, 1.0)
        if bool((exponent >= 1).all()):
            break
    survivors = torch.tensor([len(own.unique()) / num_particles for own in ancestors])
    return Reference(actions, log_z, least, acceptance, survivors)


def _ess(log_weights: Tensor) -> Tensor:
    """Return the effective sample size (S,) of log-weights (S, N), as a share of N."""
    log_share = 2 * torch.logsumexp(log_weights, 1) - torch.logsumexp(2 * log_weights, 1)
    return log_share.exp() / log_weights.shape[1]


def _next_step(values: Tensor, rest: Tensor) -> Tensor:
    """Return the largest steps (S,) of the exponents, at most `rest`, that keep the effective sample size."""
    low, high = torch.zeros_like(rest), rest.clone()
    whole = _ess(values * rest.unsqueeze(1)) >= MIN_ESS
    for _ in range(40):
        middle = (low + high) / 2
        keeps = _ess(values * middle.unsqueeze(1)) >= MIN_ESS
        low, high = torch.where(keeps, middle, low), torch.where(keeps, high, middle)
    return torch.where(whole, rest, low)


def _systematic(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return indices (S, N) of particles resampled by normalised weights (S, N), with one uniform for each density."""
    num_densities, number = weights.shape
    first = torch.rand(num_densities, 1, generator=generator, dtype=weights.dtype)
    points = (first + torch.arange(number, dtype=weights.dtype)) / number
    cumulated = weights.cumsum(1)
    return torch.searchsorted(cumulated / cumulated[:, -1:], points).clamp_max(number - 1)


def _move(
    log_density: LogDensity,
    actions: Tensor,
    values: Tensor,
    gradients: Tensor,
    exponent: Tensor,
    step_size: Tensor,
    num_steps: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make one Hamiltonian move of every particle, with a Metropolis test; also return which were accepted (S, N)."""
    scale, size = exponent[:, None, None], step_size[:, None, None]
    momentum = torch.randn(actions.shape, generator=generator, dtype=actions.dtype)
    proposed, speed, gradient, value = actions, momentum, gradients, values
    for _ in range(num_steps):
        speed = speed + 0.5 * size * scale * gradient
        proposed, speed = reflect(proposed + size * speed, speed)
        value, gradient = log_density(proposed)
        speed = speed + 0.5 * size * scale * gradient
    gain = exponent[:, None] * (value - values) - 0.5 * (speed.square() - momentum.square()).sum(2)
    accepted = torch.rand(gain.shape, generator=generator, dtype=gain.dtype).log() < gain
    kept = accepted.unsqueeze(2)
    return (
        torch.where(kept, proposed, actions),
        torch.where(accepted, value, values),
        torch.where(kept, gradient, gradients),
        accepted,
    )


def reflect(position: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
    """Reflect positions at -1 and 1, as often as needed, and turn the momentum with each reflection."""
    folded = torch.remainder(position + 1, 4)
    is_turned = folded > 2
    return torch.where(is_turned, 3 - folded, folded - 1), torch.where(is_turned, -momentum, momentum)

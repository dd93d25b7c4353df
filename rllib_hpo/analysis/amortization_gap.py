"""Measure how far a policy's actions are from the density that its own critics define: the amortization gap.

Maximum-entropy policies are to approach p(a|s) = exp(min Q(s, a) / alpha) / Z(s) on [-1, 1]^A (Haarnoja et al. 2018,
arXiv 1812.05905, eq. (4)). A network that maps states to distributions misses p by the amortization gap (Cremer et
al. 2018, arXiv 1801.03558); leapfrog steps along the gradient of Q are to shrink it (Xu & Fekri, arXiv 2103.12020).
Samples of p and log Z come from `annealed_smc`, twice, and a state is left out if the two runs disagree.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rllib_hpo.algorithms.sac import SamplerActor
from rllib_hpo.algorithms.sac_ae import ImageActor
from rllib_hpo.algorithms.soft_q import SoftQActor
from rllib_hpo.analysis.annealed_smc import LogDensity, Reference, annealed_smc
from rllib_hpo.analysis.gap_tables import Stage
from rllib_hpo.errors import SettingsError
from rllib_hpo.networks.critics import ActionValue
from rllib_hpo.samplers.base import Mode, draw_noise
from rllib_hpo.samplers.hamiltonian import HamiltonianSampler
from rllib_hpo.streams import TorchStreams, torch_generator

NUM_DRAWS = 1_000
"""Draws of the policy, and of the density, in each state."""
ROUNDS = (2, 4, 8)
"""Chains one after another, each with a fresh momentum, beyond the one that the policy makes."""
MIN_SURVIVORS = 0.02
"""Share of the first particles with descendants below which a reference is not trusted."""
MIN_ACCEPTANCE = 0.2
MAX_DISAGREEMENT = 0.35
"""Largest difference of log Z between the two runs of a trusted reference, in nats."""
MODES: tuple[Mode, ...] = ("train", "explore")


class Draws(NamedTuple):
    """Actions of a stage."""

    stage: Stage
    action: Tensor
    """(S, N, A) within [-1, 1]."""
    log_prob: Tensor | None = None
    """(S, N) log-density in the policy's entropy; None without one."""
    is_density: bool = False
    """Whether `log_prob` is the density of `action`, and not of where its chain began."""
    acceptance: Tensor | None = None
    """(S,) mean probability that a Metropolis test would accept the chain; None without a chain."""


class Gap(NamedTuple):
    """Numbers of one stage, each (S,), by state; NaN where there is none."""

    stage: Stage
    distance: Tensor
    """Square root of the energy distance between draws and reference."""
    kl: Tensor
    """KL(q || p) = log Z - E_q[Q / alpha - log q], in nats; of policies with a density."""
    value_lost: Tensor
    """alpha log Z - E_q[Q - alpha log q], the soft value lost; leapfrog steps count the log q of where they began."""
    q_gap: Tensor
    """E_p[Q] - E_q[Q]."""
    acceptance: Tensor


class Measured(NamedTuple):
    """The gap of one policy in S states."""

    gaps: list[Gap]
    floor: Tensor
    """(S,) distance between two halves of the reference: what a perfect policy would show."""
    trusted: Tensor
    """(S,) whether the reference is to be trusted; the other states enter no mean."""
    ess: Tensor
    acceptance: Tensor
    """(S,) accepted moves of the reference."""
    disagreement: Tensor
    """(S,) |difference of log Z| between its two runs, in nats."""


Subject = SamplerActor | SoftQActor


def check_subject(actor: object, algorithm: str) -> Subject:
    """Return the actor of an algorithm whose policies approach exp(Q / alpha).

    Raises:
        SettingsError: If the algorithm has no temperature, or another target.
    """
    if isinstance(actor, SamplerActor | SoftQActor) and not isinstance(actor, ImageActor):
        return actor
    if isinstance(actor, ImageActor):
        raise SettingsError(
            f"The amortization gap of '{algorithm}' cannot be measured: it acts from images. Give policies with "
            "vectors for observations."
        )
    why = (
        "its target includes the previous policy"
        if algorithm in ("mcmc-po", "langevin-po")
        else "it has no temperature, so its critics define no density of actions"
    )
    raise SettingsError(
        f"The amortization gap of '{algorithm}' cannot be measured: {why}. Give policies of SAC, SAC-NF, SAC-HPO, "
        "their constrained forms, or soft Q-learning."
    )


@torch.no_grad()
def amortization_gap(
    actor: Subject, states: Tensor, *, num_draws: int = NUM_DRAWS, seed: int = 0, chunk: int = 8
) -> Measured:
    """Measure a policy's gap in states (S, obs_dim), normalised if the policy normalises observations.

    Args:
        actor: Policy with its target critics; a constrained one is measured against Q - lambda Q_C.
        states: States.
        num_draws: Draws of the policy and of the reference, N.
        seed: Seed of all draws.
        chunk: States at a time, which bounds memory.
    """
    parts = [_measure(actor, some, num_draws, seed + place) for place, some in enumerate(states.split(chunk))]
    gaps = [
        Gap(same[0].stage, *(torch.cat(values) for values in zip(*(gap[1:] for gap in same), strict=True)))
        for same in zip(*(part.gaps for part in parts), strict=True)
    ]
    return Measured(gaps, *(torch.cat(values) for values in zip(*(part[1:] for part in parts), strict=True)))


def _measure(actor: Subject, states: Tensor, num_draws: int, seed: int) -> Measured:
    density = _Density(actor, states)
    first, second = (
        annealed_smc(
            density,
            len(states),
            actor.action_dim,
            torch_generator(seed, "amortization gap", run),
            num_particles=num_draws,
        )
        for run in ("reference", "second reference")
    )
    streams = TorchStreams(seed, "amortization gap")
    gaps = [
        compare(draws, density, first, actor.alpha) for draws in stages(actor, states, num_draws, streams)
    ]
    trusted, disagreement = _agreement(first, second)
    return Measured(
        gaps,
        energy_distance(first.actions, second.actions),
        trusted,
        torch.minimum(first.ess, second.ess),
        torch.minimum(first.acceptance, second.acceptance),
        disagreement,
    )


class _Density:
    """Evaluate min Q / alpha of an actor's target critics for N actions in each of S states."""

    def __init__(self, actor: Subject, states: Tensor) -> None:
        self._alpha, self._actor, self._states = actor.alpha, actor, states
        self._values: dict[int, ActionValue] = {}

    def value(self, num_actions: int) -> ActionValue:
        """Return the critics at every state, repeated for each of its actions."""
        if num_actions not in self._values:
            rows = self._states.repeat_interleave(num_actions, 0)
            value: ActionValue = self._actor.target_critics.condition(rows)
            if isinstance(self._actor, SamplerActor):
                value = self._actor.force_critic(rows, self._actor.target_critics.condition(rows))
            self._values[num_actions] = value
        return self._values[num_actions]

    def __call__(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return min Q / alpha (S, N) and its gradient (S, N, A) at actions (S, N, A)."""
        q, gradient = self.value(actions.shape[1]).minimum_and_gradient(actions.flatten(0, 1))
        return (q / self._alpha).view(actions.shape[:2]), (gradient / self._alpha).view_as(actions)


def _agreement(first: Reference, second: Reference) -> tuple[Tensor, Tensor]:
    disagreement = (first.log_z - second.log_z).abs()
    trusted = disagreement <= MAX_DISAGREEMENT
    for run in (first, second):
        trusted &= (run.survivors >= MIN_SURVIVORS) & (run.acceptance >= MIN_ACCEPTANCE)
    return trusted, disagreement


def compare(draws: Draws, density: LogDensity, reference: Reference, alpha: Tensor | float) -> Gap:
    """Compare draws (S, N, A) with samples of a density exp(Q / alpha) / Z and its log Z."""
    value, _ = density(draws.action)
    expected, _ = density(reference.actions)
    nothing = torch.full_like(reference.log_z, torch.nan)
    kl = value_lost = nothing
    if draws.log_prob is not None:
        lost = reference.log_z - (value - draws.log_prob).mean(1)
        value_lost, kl = alpha * lost, lost if draws.is_density else nothing
    return Gap(
        draws.stage,
        energy_distance(draws.action, reference.actions),
        kl,
        value_lost,
        alpha * (expected.mean(1) - value.mean(1)),
        nothing if draws.acceptance is None else draws.acceptance,
    )


def energy_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the square root (S,) of the energy distance of samples (S, N, A) and (S, M, A).

    2 E|X - Y| - E|X - X'| - E|Y - Y'| (Székely & Rizzo 2013), without the zero distances of a sample to itself; where
    chance makes it negative it is 0.
    """
    within = [
        _distances(one, one).sum((1, 2)) / (one.shape[1] * (one.shape[1] - 1)) for one in (first, second)
    ]
    return (2 * _distances(first, second).mean((1, 2)) - within[0] - within[1]).clamp_min(0).sqrt()


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Return the distances (S, N, M) of points, without the products by which `cdist` loses digits of small ones."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def stages(actor: Subject, states: Tensor, num_draws: int, streams: TorchStreams) -> Iterator[Draws]:
    """Draw N actions in each state from every distribution of a policy that is of interest.

    For a Hamiltonian policy these are the actions after 0, 1, ..., K steps with the momentum of training and of
    exploration, drawn and zero; after K steps with the consistent mass; and after several chains, each with a fresh
    momentum.
    """
    shape = len(states), num_draws, actor.action_dim
    rows = states.repeat_interleave(num_draws, 0)
    if isinstance(actor, SoftQActor):
        drawn = torch.randn(shape, generator=streams["latent"])
        yield Draws(Stage("", None), actor.actions(states, drawn))
        return
    if not isinstance(actor.sampler, HamiltonianSampler):
        sample = actor.sample(rows, draw_noise(actor.sampler, len(rows), streams), "train")
        log_prob = None if sample.log_prob is None else sample.log_prob.view(shape[:2])
        yield Draws(Stage("", None), sample.action.view(shape), log_prob, is_density=True)
        return
    yield from _Chains(actor, actor.sampler, rows, shape, streams).draws()


class _Chains:
    """Draw the stages of a Hamiltonian policy."""

    def __init__(
        self,
        actor: SamplerActor,
        sampler: HamiltonianSampler,
        rows: Tensor,
        shape: tuple[int, int, int],
        streams: TorchStreams,
    ) -> None:
        self._sampler, self._rows, self._shape, self._streams = sampler, rows, shape, streams
        self._critic, self._alpha = (
            actor.force_critic(rows, actor.target_critics.condition(rows)),
            actor.alpha,
        )
        self._begun, self._log_prob = sampler.initial_action(rows, draw_noise(sampler, len(rows), streams))

    def draws(self) -> Iterator[Draws]:
        """Yield every stage."""
        yield self._stage(Stage("", 0), self._begun, None, is_density=True)
        for mode in MODES:
            for noise in (True, False) if self._drifts_in_its_own_way(mode) else (True,):
                actions, acceptance = self._chain(self._sampler, mode, self._begun, noise=noise)
                for k, action in enumerate(actions[1:], 1):
                    last = acceptance if k == len(actions) - 1 and noise else None
                    yield self._stage(Stage(mode, k, noise=noise), action, last)
        yield from self._consistent()
        yield from self._rounds()

    def _drifts_in_its_own_way(self, mode: Mode) -> bool:
        """Return whether a chain without momentum differs from that of training, as with a mass or tempering."""
        own, training = (replace(self._sampler.chains[name], momentum_std=1.0) for name in (mode, "train"))
        return mode == "train" or own != training

    def _consistent(self) -> Iterator[Draws]:
        if self._sampler.settings.mass_matrix == "consistent" or not self._sampler.settings.leapfrog_steps:
            return
        sampler = copy.deepcopy(self._sampler)
        for mode, chain in sampler.chains.items():
            sampler.chains[mode] = replace(chain, inverse_mass=chain.momentum_std**-2)
        for mode in MODES:
            actions, acceptance = self._chain(sampler, mode, self._begun, noise=True)
            stage = Stage(mode, len(actions) - 1, mass="consistent")
            yield self._stage(stage, actions[-1], acceptance)

    def _rounds(self) -> Iterator[Draws]:
        """Yield the actions after several chains, towards the posterior (arXiv 2103.12020, 4.2)."""
        for mode in MODES:
            action, steps = self._begun, 0
            for number in range(1, max(ROUNDS) + 1):
                actions, _ = self._chain(self._sampler, mode, action, noise=True)
                action, steps = actions[-1].clamp(-1, 1), len(actions) - 1
                if steps and number in ROUNDS:
                    yield self._stage(Stage(mode, steps, rounds=number), action, None)

    def _chain(
        self, sampler: HamiltonianSampler, mode: Mode, action: Tensor, *, noise: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Return a_0, ..., a_K, and the probabilities (S,) of a Metropolis test of a_K, the mean over draws."""
        momentum = torch.zeros_like(action)
        if noise:
            momentum = sampler.initial_momentum(action, draw_noise(sampler, len(action), self._streams), mode)
        force = sampler.force(self._rows, self._critic, self._alpha)
        actions, momenta = sampler.trajectory(action, momentum, force, mode)
        variance = sampler.chains[mode].momentum_std ** 2
        before, after = (
            self._critic.minimum(place) / self._alpha - speed.square().sum(1) / (2 * variance)
            for place, speed in ((actions[0], momenta[0]), (actions[-1], momenta[-1]))
        )
        inside = (actions[-1].abs() <= 1).all(1)  # the density is zero outside
        accepted = torch.where(inside, (after - before).clamp_max(0).exp(), torch.zeros_like(after))
        return actions, accepted.view(self._shape[:2]).mean(1)

    def _stage(
        self, stage: Stage, action: Tensor, acceptance: Tensor | None, *, is_density: bool = False
    ) -> Draws:
        log_prob = self._log_prob.view(self._shape[:2])
        return Draws(stage, action.clamp(-1, 1).view(self._shape), log_prob, is_density, acceptance)


def mean_of_trusted(values: Tensor, trusted: Tensor) -> float:
    """Return the mean over the trusted states; NaN without any."""
    return float(values[trusted].mean()) if bool(trusted.any()) else float("nan")

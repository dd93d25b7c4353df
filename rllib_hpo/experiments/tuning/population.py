"""Decide how a population goes on: which members copy which, with what settings (population-based training)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rllib_hpo.errors import UserError
from rllib_hpo.experiments.config.search_config import Domain, Pbt, Search, Values
from rllib_hpo.streams import numpy_generator


class Member(NamedTuple):
    """A member of one generation."""

    values: dict[str, Any]
    """Its searched settings."""
    origin: int | None
    """The member of the generation before whose checkpoint it begins from; None in the first generation."""


def first_generation(search: Search) -> list[Member]:
    """Members with settings drawn from the space, except those that the file gives."""
    given = [*search.file.first, *({} for _ in range(search.file.trials))]
    return [
        Member({**_drawn(search, _generator(search, 0, number)), **given[number]}, None)
        for number in range(search.file.trials)
    ]


def next_generation(
    search: Search, generation: int, members: Sequence[Member], scores: Sequence[float | None]
) -> list[Member]:
    """The next generation: the worst members begin from the best ones, with settings nearby.

    Truncation selection of Jaderberg et al. (arXiv 1711.09846, section 4.1). The draws follow from the search's seed,
    the generation and the member, so a decision that is made again is the same. Members without a score, which
    diverged, are among the worst.

    Args:
        search: The search.
        generation: Number of the generation to make.
        members: The generation before.
        scores: Their scores, more is better; None for a member that diverged.

    Raises:
        UserError: If all diverged.
    """
    pbt = search.file.pbt or Pbt()
    ranked = sorted(
        (place for place, score in enumerate(scores) if score is not None),
        key=lambda place: scores[place] or 0.0,
    )
    if not ranked:
        raise UserError("All members of the population diverged; search a space with smaller steps.")
    diverged = [place for place, score in enumerate(scores) if score is None]
    number = max(1, math.floor(len(members) * pbt.quantile))
    best = ranked[-number:]
    worst = [*diverged, *(place for place in ranked[: max(0, number - len(diverged))] if place not in best)]
    following = [Member(dict(member.values), place) for place, member in enumerate(members)]
    for place in worst:
        rng = _generator(search, generation, place)
        origin = int(rng.choice(best))
        following[place] = Member(_explored(search, members[origin].values, pbt, rng), origin)
    return following


def _explored(search: Search, values: Values, pbt: Pbt, rng: np.random.Generator) -> dict[str, Any]:
    """Settings near others: each is drawn anew with probability `resample`, else perturbed."""
    drawn = _drawn(search, rng)
    return {
        name: drawn[name] if rng.random() < pbt.resample else _perturbed(search, name, values[name], pbt, rng)
        for name in search.file.space
    }


def _perturbed(search: Search, name: str, value: Any, pbt: Pbt, rng: np.random.Generator) -> Any:
    domain, is_up = search.file.space[name], bool(rng.random() < 0.5)
    if domain.choices is not None:
        place = domain.choices.index(value) + (1 if is_up else -1)
        return domain.choices[min(max(place, 0), len(domain.choices) - 1)]
    low, high = domain.bounds
    moved = value * pbt.factor if is_up else value / pbt.factor
    if name in search.whole:
        moved = max(round(moved), value + 1) if is_up else min(round(moved), value - 1)
        return int(min(max(moved, low), high))
    return float(min(max(moved, low), high))


def _drawn(search: Search, rng: np.random.Generator) -> dict[str, Any]:
    return {name: _draw(domain, name in search.whole, rng) for name, domain in search.file.space.items()}


def _draw(domain: Domain, is_whole: bool, rng: np.random.Generator) -> Any:
    if domain.choices is not None:
        return domain.choices[int(rng.integers(len(domain.choices)))]
    low, high = domain.bounds
    if domain.log:
        value = float(np.exp(rng.uniform(np.log(low - 0.5 * is_whole), np.log(high + 0.5 * is_whole))))
    elif is_whole:
        return int(rng.integers(int(low), int(high), endpoint=True))
    else:
        value = float(rng.uniform(low, high))
    return int(min(max(round(value), low), high)) if is_whole else min(max(value, low), high)


def _generator(search: Search, generation: int, member: int) -> np.random.Generator:
    return numpy_generator(search.file.seed, "population", generation, member)

"""Find an algorithm by its name, its settings or its configuration; other packages register theirs here.

Built-in algorithms are registered as strings, so that reading results does not import torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from rllib_hpo.errors import unknown_name
from rllib_hpo.settings import Settings, complete_settings

if TYPE_CHECKING:
    from rllib_hpo.algorithms.base import Method


class _Entry(NamedTuple):
    settings: str | type[Settings]
    """The settings class, or "module:Class" to import on first use."""
    title: str
    """Name in figures and tables."""


_ENTRIES: dict[str, _Entry] = {
    "sac": _Entry("rllib_hpo.settings:SACSettings", "SAC"),
    "sac-nf": _Entry("rllib_hpo.settings:SACNFSettings", "SAC-NF"),
    "sac-hpo": _Entry("rllib_hpo.settings:SACHPOSettings", "SAC-HPO"),
    "td3": _Entry("rllib_hpo.algorithms.td3:TD3Settings", "TD3"),
    "ddpg": _Entry("rllib_hpo.algorithms.td3:DDPGSettings", "DDPG"),
    "mcmc-po": _Entry("rllib_hpo.algorithms.mcmc_po:MCMCPOSettings", "MCMC-PO"),
    "langevin-po": _Entry("rllib_hpo.algorithms.langevin_po:LangevinPOSettings", "Langevin-PO"),
    "sac-lagrangian": _Entry("rllib_hpo.algorithms.sac_lagrangian:SACLagrangianSettings", "SAC-Lagrangian"),
    "sac-hpo-lagrangian": _Entry(
        "rllib_hpo.algorithms.sac_lagrangian:SACHPOLagrangianSettings", "SAC-HPO-Lagrangian"
    ),
    "soft-q": _Entry("rllib_hpo.algorithms.soft_q:SoftQSettings", "Soft Q-learning"),
    "sac-ae": _Entry("rllib_hpo.algorithms.sac_ae:SACAESettings", "SAC-AE"),
    "sac-ae-hpo": _Entry("rllib_hpo.algorithms.sac_ae:SACAEHPOSettings", "SAC-AE-HPO"),
}

BUILT_IN = tuple(_ENTRIES)
"""Names of the algorithms of this package."""

_METHODS: dict[str, str | type[Method[Any, Any]]] = {
    "rllib_hpo.settings:ActorCriticSettings": "rllib_hpo.algorithms.sac:SoftActorCritic",
    "rllib_hpo.algorithms.td3:TD3Settings": "rllib_hpo.algorithms.td3:TD3",
    "rllib_hpo.algorithms.mcmc_po:MCMCPOSettings": "rllib_hpo.algorithms.mcmc_po:MCMCPO",
    "rllib_hpo.algorithms.langevin_po:LangevinPOSettings": "rllib_hpo.algorithms.langevin_po:LangevinPO",
    "rllib_hpo.algorithms.sac_lagrangian:ConstraintSettings": (
        "rllib_hpo.algorithms.sac_lagrangian:ConstrainedSoftActorCritic"
    ),
    "rllib_hpo.algorithms.soft_q:SoftQSettings": "rllib_hpo.algorithms.soft_q:SoftQ",
    "rllib_hpo.algorithms.sac_ae:AutoencoderSettings": "rllib_hpo.algorithms.sac_ae:SACAE",
}
"""Methods by the settings class ("module:Class") that they learn with; subclasses of it use the same method."""


def register_algorithm(
    name: str,
    settings: type[Settings],
    method: type[Method[Any, Any]] | None = None,
    *,
    title: str | None = None,
) -> None:
    """Register an algorithm, or replace the one of that name.

    Args:
        name: Name on the command line, in sweeps and in results.
        settings: Class of its hyperparameters. A subclass of `ActorCriticSettings` that names another registered
            `sampler` makes a soft actor-critic with that sampler.
        method: The `Method` subclass; by default that of the settings' base class.
        title: Name in figures and tables; by default `name`.
    """
    _ENTRIES[name] = _Entry(settings, title or name)
    if method is not None:
        _METHODS[_path(settings)] = method


def algorithm_names() -> tuple[str, ...]:
    """Return the names of all registered algorithms; installed packages offer more (`find_settings`)."""
    return tuple(_ENTRIES)


def find_settings(algorithm: str) -> type[Settings]:
    """Return the settings class of a registered algorithm, or of one that an installed package offers.

    Packages offer algorithms with an entry point of the group "rllib_hpo.algorithms": a module that calls
    `register_algorithm`, and `register_sampler` where it adds one, when imported.

    Raises:
        UnknownNameError: If there is none; it names the nearest algorithm.
    """
    if algorithm not in _ENTRIES:
        for entry_point in importlib.metadata.entry_points(group="rllib_hpo.algorithms"):
            entry_point.load()
    if algorithm not in _ENTRIES:
        raise unknown_name("algorithm", algorithm, _ENTRIES)
    settings: type[Settings] = _loaded(_ENTRIES[algorithm].settings)
    return settings


def make_method(settings: Settings) -> Method[Any, Any]:
    """Make the `Method` that learns with these settings.

    Raises:
        TypeError: If no method was registered for their class or a base of it.
    """
    for base in type(settings).__mro__:
        if (found := _METHODS.get(_path(base))) is not None:
            method: Method[Any, Any] = _loaded(found)(settings)
            return method
    raise TypeError(f"no method is registered for {type(settings).__name__}")


def method_of_others(settings: type[Settings]) -> type[Method[Any, Any]] | None:
    """Return the method that another package registered for exactly this class of settings, or None."""
    found = _METHODS.get(_path(settings))
    return None if isinstance(found, str) else found


def title(algorithm: str) -> str:
    """Return an algorithm's name in figures and tables; its own name where it is not registered."""
    return _ENTRIES[algorithm].title if algorithm in _ENTRIES else algorithm


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a row's configuration as `complete_settings` does, if its algorithm is registered."""
    entry = _ENTRIES.get(str(config.get("algorithm")))
    return {**config, **(complete_settings(_loaded(entry.settings), config) if entry is not None else {})}


def _path(settings: type) -> str:
    return f"{settings.__module__}:{settings.__qualname__}"


def _loaded(named: Any) -> Any:
    if not isinstance(named, str):
        return named
    module, name = named.split(":")
    return getattr(importlib.import_module(module), name)

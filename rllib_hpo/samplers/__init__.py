"""Register samplers, the parts in which SAC, SAC-NF and SAC-HPO differ. Pure torch, without ray.

`SAMPLERS` has one line per built-in sampler; `register_sampler` adds one from another package.
"""

from __future__ import annotations

from collections.abc import Callable

from rllib_hpo.errors import unknown_name
from rllib_hpo.samplers.base import Sampler
from rllib_hpo.samplers.gaussian import GaussianSampler
from rllib_hpo.samplers.hamiltonian import HamiltonianSampler
from rllib_hpo.samplers.radial_flow import RadialFlowSampler

SamplerFactory = Callable[..., Sampler]
"""Called with (obs_dim, action_dim, settings, generator)."""

SAMPLERS: dict[str, SamplerFactory] = {
    "gaussian": GaussianSampler,
    "radial_flow": RadialFlowSampler,
    "hamiltonian": HamiltonianSampler,
}


def register_sampler(name: str, factory: SamplerFactory) -> None:
    """Register `factory` as the sampler of algorithms whose settings class sets `sampler = name`."""
    SAMPLERS[name] = factory


def find_sampler(name: str) -> SamplerFactory:
    """Return the sampler registered as `name`.

    Raises:
        UnknownNameError: If there is none; it names the nearest one.
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    return SAMPLERS[name]

"""Convert the package's modules into the inputs of `tests.reference`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rllib_hpo.algorithms.sac import SoftActorCriticModel
from rllib_hpo.networks.critics import Critics
from rllib_hpo.samplers.forces import GatedForce
from tests.reference.networks import Layers
from tests.reference.update import Networks


def leaf(tensor: Tensor) -> Tensor:
    """Return a copy that is a leaf of its own autograd graph."""
    return tensor.detach().clone().requires_grad_()


def linear_layers(network: nn.Module) -> Layers:
    """Return weight (out, in) and bias of every linear layer, in order."""
    return [(leaf(m.weight), leaf(m.bias)) for m in network.modules() if isinstance(m, nn.Linear)]


def critic_layers(critics: Critics) -> list[Layers]:
    """Return the two critics as separate networks."""
    pairs = list(zip(critics.weights, critics.biases, strict=True))
    return [[(leaf(w[twin]), leaf(b[twin, 0])) for w, b in pairs] for twin in range(2)]


def gated_force_layers(force: GatedForce) -> tuple[Layers, Layers]:
    """Return T_h and sigma_h as two networks over [s, a, g] (or [a, g]); the module joins their first layers."""
    weight = force.action_weight
    if force.state_weight is not None:
        weight = torch.cat([force.state_weight, weight], -1)
    units = len(force.bias) // 2
    transform, gate = (
        [(leaf(weight[rows]), leaf(force.bias[rows])), *linear_layers(last)]
        for rows, last in ((slice(0, units), force.transform), (slice(units, None), force.gate))
    )
    return transform, gate


def networks_of(model: SoftActorCriticModel) -> Networks:
    """Copy everything that an update changes."""
    sampler = model.sampler
    networks = Networks(
        policy=linear_layers(sampler.policy),
        critics=critic_layers(model.critics),
        targets=critic_layers(model.target_critics),
        log_alpha=leaf(model.log_alpha),
    )
    if hasattr(sampler, "flow"):
        networks.flow = tuple(leaf(p) for p in (sampler.flow.center, sampler.flow.raw_a, sampler.flow.raw_b))
    if getattr(sampler, "gated_force", None) is not None:
        networks.transform, networks.gate = gated_force_layers(sampler.gated_force)
    if hasattr(sampler, "raw_step_size"):
        networks.raw_step_size = leaf(sampler.raw_step_size)
    return networks


def named_tensors(networks: Networks) -> dict[str, Tensor]:
    """Return every tensor of `networks` by name, for comparisons."""
    named = {"log_alpha": networks.log_alpha}
    groups = {"policy": networks.policy, "transform": networks.transform, "gate": networks.gate}
    for twin in range(2):
        groups |= {f"critic {twin}": networks.critics[twin], f"target {twin}": networks.targets[twin]}
    for name, layers in groups.items():
        for depth, (weight, bias) in enumerate(layers):
            named |= {f"{name} weight {depth}": weight, f"{name} bias {depth}": bias}
    for name, tensor in zip(("center", "raw_a", "raw_b"), networks.flow or (), strict=False):
        named[f"flow {name}"] = tensor
    if networks.raw_step_size is not None:
        named["raw_step_size"] = networks.raw_step_size
    return named

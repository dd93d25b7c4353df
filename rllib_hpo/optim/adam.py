"""Step torch's Adam by its fused kernel directly, with one call for all parameters of a group.

`torch.optim.Adam.step` costs more than the kernel in a small update. The state is torch's own, so checkpoints read and
write it as usual. Step counts are on the parameters' device, so that a CUDA graph can capture a step, and a tensor on
that device can skip it; the learning rate is a constant of the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rllib_hpo.kernels.tracing import is_traced_for_compiler


def make_adam(parameters: list[Tensor], lr: float) -> torch.optim.Adam:
    """Make Adam with the defaults of the papers: betas 0.9 and 0.999, epsilon 1e-8."""
    return torch.optim.Adam(parameters, lr=lr, eps=1e-8, fused=True)


def adam_step(optimizer: torch.optim.Optimizer, skip: Tensor | None = None) -> None:
    """Take one step along `.grad` of the parameters that have one.

    Args:
        optimizer: Optimizer from `make_adam`.
        skip: A float32 scalar on the parameters' device; 1.0 leaves parameters and state unchanged.
    """
    for group in optimizer.param_groups:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            continue
        if is_traced_for_compiler():
            for parameter in parameters:
                _traced_step(parameter, _state(optimizer, parameter), group, skip)
            continue
        states = [_state(optimizer, parameter) for parameter in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )
        if skip is not None:
            torch._foreach_sub_(steps, [skip] * len(steps))


@torch.no_grad()
def _traced_step(
    parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any], skip: Tensor | None
) -> None:
    """Take the step by operations that a compiler fuses; the fused kernel would be a call that it cannot look into."""
    gradient, (beta1, beta2), step = parameter.grad, group["betas"], state["step"]
    assert gradient is not None
    goes: float | Tensor = 1.0
    if group["weight_decay"]:
        gradient = gradient + group["weight_decay"] * parameter
    if skip is not None:  # a gradient that is not finite must not reach the state, not even times 0
        goes, gradient = 1 - skip, gradient.masked_fill(skip > 0, 0)
    step.add_(goes)
    state["exp_avg"].add_((gradient - state["exp_avg"]) * ((1 - beta1) * goes))
    state["exp_avg_sq"].add_((gradient * gradient - state["exp_avg_sq"]) * ((1 - beta2) * goes))
    root = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt()
    change = group["lr"] / (1 - beta1**step) * state["exp_avg"] / (root + group["eps"])
    parameter.sub_(change if skip is None else change.masked_fill(skip > 0, 0))


def _state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return the parameter's moments and step count, made on first use, as torch makes them."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state

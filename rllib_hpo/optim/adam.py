"""Adam as torch has it, stepped by its fused kernel directly: all of a group's parameters in one call.

`torch.optim.Adam.step` costs a small update more than the kernel does. The state is torch's own, so that checkpoints
read and write it as ever. Step counts live on the parameters' device, so a step may be captured in a CUDA graph,
and a tensor on that device decides whether it takes place; the learning rate is a constant of the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor


def make_adam(parameters: list[Tensor], lr: float) -> torch.optim.Adam:
    """Adam with the defaults of the papers: betas 0.9 and 0.999, epsilon 1e-8."""
    return torch.optim.Adam(parameters, lr=lr, eps=1e-8, fused=True)


def adam_step(optimizer: torch.optim.Optimizer, skip: Tensor | None = None) -> None:
    """One step along the `.grad` of those parameters that have one.

    Args:
        optimizer: From `make_adam`.
        skip: A float32 scalar on the parameters' device; 1.0 leaves parameters and state as they are.
    """
    for group in optimizer.param_groups:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
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
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )
        if skip is not None:
            torch._foreach_sub_(steps, [skip] * len(steps))


def addresses(optimizer: torch.optim.Optimizer) -> list[int]:
    """Where in memory the parameters and their state are, for those who captured a step."""
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    return [tensor.data_ptr() for tensor in tensors]


def _state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The parameter's moments and step count, made when first needed, as torch makes them."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state

"""Matrix products by what is fastest for them: oneDNN for large ones on a CPU, torch's default elsewhere.

torch multiplies float32 matrices on x86 with MKL, which leaves AMD's AVX-512 units idle; oneDNN, which every
build of torch for x86 carries too, uses them and adds bias and ReLU on the way (benchmarks/PROFILE.md).
Which of the two runs is decided by shapes and the machine alone, so equal runs stay equal to the last bit.
Autograd sees nothing of what is computed here.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

WORTH_ONEDNN = 2_000_000
"""Multiplications from which oneDNN's fixed cost (some 20 us) pays."""

HAS_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False) -> Tensor:
    """x W^T + b, with ReLU if asked for.

    Args:
        inputs: x, (B, I), or (N, B, I) for N layers at a time.
        weight: W, (O, I) or (N, O, I).
        bias: b, (O,) or (N, 1, O).
        relu: Whether to end in a ReLU.

    Returns:
        (B, O) or (N, B, O).
    """
    if inputs.dim() == 3:
        outputs = torch.baddbmm(bias, inputs, weight.mT)
    elif _worth_onednn(inputs, weight.shape[0]):
        return _onednn(inputs, weight, bias, "relu" if relu else "none")
    elif weight.shape[0] == 1:  # several times faster than a matrix of one column
        outputs = torch.addmv(bias, inputs, weight[0]).unsqueeze(-1)
    else:
        outputs = torch.addmm(bias, inputs, weight.mT)
    return outputs.relu_() if relu else outputs


def add_product(term: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """t + x W^T, (B, O) or (N, B, O), of t of that shape, x and W as in `linear`."""
    if inputs.dim() == 3:
        return torch.baddbmm(term, inputs, weight.mT)
    return torch.addmm(term, inputs, weight.mT)


def product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product, (..., M, O), of (..., M, K) and (..., K, O)."""
    if left.dim() == 2 and _worth_onednn(left, right.shape[1]):
        return _onednn(left, right.mT, None, "none")
    return left * right if left.shape[-1] == 1 else left @ right


def add_scaled(term: Tensor, tensor: Tensor, factor: float | Tensor) -> Tensor:
    """term + factor * tensor, in one operation."""
    if isinstance(factor, Tensor):
        return torch.addcmul(term, tensor, factor)
    return torch.add(term, tensor, alpha=factor)


def through_relu(gradient: Tensor, activation: Tensor) -> Tensor:
    """The gradient before a ReLU, of that after it; several times faster than multiplying by a mask."""
    return torch.ops.aten.threshold_backward(gradient, activation, 0)


def _worth_onednn(inputs: Tensor, out_units: int) -> bool:
    return (
        not torch.compiler.is_compiling()
        and HAS_ONEDNN
        and inputs.dtype == torch.float32
        and inputs.device.type == "cpu"
        and inputs.shape[0] * inputs.shape[1] * out_units >= WORTH_ONEDNN
    )


def _onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    inputs, weight = _dense(inputs), _dense(weight)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, activation, [], "")
    return result


def _dense(matrix: Tensor) -> Tensor:
    # Columns cut out of a wider matrix would send oneDNN to an implementation a thousand times slower.
    return matrix if matrix.is_contiguous() or matrix.mT.is_contiguous() else matrix.contiguous()

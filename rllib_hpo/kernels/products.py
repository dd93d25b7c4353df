"""Multiply matrices with the fastest library: oneDNN for large ones on a CPU, torch's default elsewhere.

torch multiplies float32 matrices on x86 with MKL, which does not use AMD's AVX-512 units. oneDNN, which is part of
every build of torch for x86, uses them and fuses bias and ReLU (benchmarks/PROFILE.md). Shapes and the machine alone
determine which library runs, so equal runs stay bitwise equal. Autograd does not record these functions.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_hpo.kernels.tracing import is_traced, opaque

WORTH_ONEDNN = 2_000_000
"""Number of multiplications above which oneDNN's fixed cost (about 20 us) pays off."""

HAS_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False) -> Tensor:
    """Return x W^T + b, with ReLU on request.

    Args:
        inputs: Inputs x, (B, I), or (N, B, I) for N layers at a time.
        weight: Weights W, (O, I) or (N, O, I).
        bias: Bias b, (O,) or (N, 1, O).
        relu: Whether to apply a ReLU.

    Returns:
        (B, O) or (N, B, O).
    """
    if inputs.dim() == 3:
        outputs = torch.baddbmm(bias, inputs, weight.mT)
    elif _worth_onednn(inputs, weight.shape[0]):
        return _onednn(inputs, weight, bias, "relu" if relu else "none")
    elif weight.shape[0] == 1:  # several times faster than a product with a one-column matrix
        outputs = torch.addmv(bias, inputs, weight[0]).unsqueeze(-1)
    else:
        outputs = F.linear(inputs, weight, bias)
    return outputs.relu_() if relu else outputs


def add_product(term: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """Return t + x W^T, (B, O) or (N, B, O), for t of that shape, and x and W as in `linear`."""
    if inputs.dim() == 3:
        return torch.baddbmm(term, inputs, weight.mT)
    return torch.addmm(term, inputs, weight.mT)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return the matrix product, (..., M, O), of (..., M, K) and (..., K, O)."""
    if left.dim() == 2 and _worth_onednn(left, right.shape[1]):
        return _onednn(left, right.mT, None, "none")
    return left * right if left.shape[-1] == 1 else left @ right


def add_scaled(term: Tensor, tensor: Tensor, factor: float | Tensor) -> Tensor:
    """Return term + factor * tensor, in one operation."""
    if isinstance(factor, Tensor):
        return torch.addcmul(term, tensor, factor)
    return torch.add(term, tensor, alpha=factor)


def through_relu(gradient: Tensor, activation: Tensor) -> Tensor:
    """Return the gradient before a ReLU from the one after it; several times faster than multiplying by a mask."""
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
    multiply = _opaque_product if is_traced() else _multiply
    result: Tensor = multiply(_dense(inputs), _dense(weight), bias, activation)
    return result


def _multiply(inputs: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, activation, [], "")
    return result


_opaque_product = opaque(
    "onednn_product(Tensor inputs, Tensor weight, Tensor? bias, str activation) -> Tensor",
    _multiply,
    lambda inputs, weight, bias, activation: inputs.new_empty(inputs.shape[0], weight.shape[0]),
)
"""`_multiply` as one operator: inductor would replace the product by a slower one."""


def _dense(matrix: Tensor) -> Tensor:
    # For column slices of a wider matrix oneDNN picks an implementation that is a thousand times slower.
    return matrix if matrix.is_contiguous() or matrix.mT.is_contiguous() else matrix.contiguous()

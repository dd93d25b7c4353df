"""Say whether a compiler traces a whole update, and hide from it what it must not look into.

A tracer records the operations that run, so code whose operations depend on values must be one operator to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import library

_OPERATORS = library.Library("rllib_hpo", "DEF")
_traced = _compiled = False


@contextmanager
def tracing(*, compiled: bool = True) -> Iterator[None]:
    """Trace within: hand-written passes still run, by operations that a tracer can record.

    Args:
        compiled: Whether a compiler will fuse what is traced, so that many small operations cost nothing.
    """
    global _traced, _compiled  # noqa: PLW0603  (one tracer runs at a time in a process)
    _traced, _compiled = True, compiled
    try:
        yield
    finally:
        _traced = _compiled = False


def is_traced() -> bool:
    """Return whether a whole update is being traced, its hand-written passes included; see `wants_gradients`."""
    return _traced


def is_traced_for_compiler() -> bool:
    """Return whether a whole update is being traced, and a compiler will fuse its operations."""
    return _compiled


def opaque(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Register an operator of CPU tensors that tracers record as one operation.

    Args:
        schema: Name, arguments and result, as torch declares them.
        function: What it computes.
        fake: What it returns for tensors without values: the shape of the result.

    Returns:
        The operator, to call with the same arguments.
    """
    _OPERATORS.define(schema)
    name = schema[: schema.index("(")]
    _OPERATORS.impl(name, function, "CPU")
    library.register_fake(f"rllib_hpo::{name}", fake, lib=_OPERATORS)
    operator: Callable[..., Any] = getattr(torch.ops.rllib_hpo, name).default
    return operator

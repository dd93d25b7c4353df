"""Turn the trace of one seed's update into the update of several seeds, whose tensors are stacked.

Each operation of the trace becomes one operation on all seeds (`torch.vmap`), so N seeds take about as many kernels as
one. `vmap` does not know three kinds of operations: those on lists of tensors, fused Adam, whose kernel reads one flag
for all its parameters, and operators of this package.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter
from torch.fx.node import map_aggregate

from rllib_hpo.learning.compiling import record

_OUT_OF_PLACE = {torch.ops.aten.addcmul_.default: torch.ops.aten.addcmul.default}
"""Operations that `vmap` runs seed by seed, and their twins, which it runs at once."""

_SUMS_WITH_PRODUCT = (torch.ops.aten.addmm.default, torch.ops.aten.baddbmm.default)


class Stacked:
    """One tensor of N seeds, which have a value each.

    Args:
        tensor: The values, (N, ...).
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def stack_graph(graph: GraphModule, arguments: Sequence[Tensor | Stacked], num_seeds: int) -> GraphModule:
    """Run a trace of one seed on the tensors of `num_seeds`, and return the graph of all operations.

    Its effects on the arguments remain.

    Args:
        graph: The trace.
        arguments: Its arguments; those that are not stacked are the same for all seeds.
        num_seeds: N.

    Returns:
        The graph of the same arguments, with stacked results.
    """

    def run(*tensors: Tensor) -> list[Tensor]:
        pairs = zip(arguments, tensors, strict=True)
        given = [Stacked(tensor) if isinstance(argument, Stacked) else tensor for argument, tensor in pairs]
        return [_stacked(result, num_seeds) for result in _StackedInterpreter(graph, num_seeds).run(*given)]

    tensors = [argument.tensor if isinstance(argument, Stacked) else argument for argument in arguments]
    with torch.no_grad():
        return record(run, tensors)


class _StackedInterpreter(Interpreter):
    """Run each node of a trace on all seeds."""

    def __init__(self, graph: GraphModule, num_seeds: int) -> None:
        super().__init__(graph)
        self._num_seeds = num_seeds

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one node; results of stacked arguments are stacked."""
        if target is operator.getitem or not _find_stacked((args, kwargs)):
            return super().call_function(target, args, kwargs)
        if target in _SUMS_WITH_PRODUCT and not kwargs:
            return self._add_products(*args)
        if target in _OUT_OF_PLACE:
            result = self._at_once(_OUT_OF_PLACE[target], args, kwargs)
            args[0].tensor.copy_(result.tensor)
            return args[0]
        if target is torch.ops.aten._fused_adam_.default:
            gradients = [Stacked(_stacked(each, self._num_seeds).contiguous()) for each in args[1]]
            return self._one_by_one(target, (args[0], gradients, *args[2:]), kwargs)
        if target.namespace == "rllib_hpo":
            return self._one_by_one(target, args, kwargs)
        if target.name().startswith("aten::_foreach"):
            return self._on_lists(target, args, kwargs)
        return self._at_once(target, args, kwargs)

    def _at_once(self, target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        def one(*tensors: Tensor) -> Any:
            own_args, own_kwargs = _with_tensors((args, kwargs), iter(tensors))
            return target(*own_args, **own_kwargs)

        tensors = [stacked.tensor for stacked in _find_stacked((args, kwargs))]
        return _map(Stacked, torch.vmap(one)(*tensors))

    def _add_products(self, term: Any, left: Any, right: Any) -> Stacked:
        """Return term + left @ right by one batched product; `vmap` would add the term in an operation of its own."""
        terms, lefts, rights = (_stacked(value, self._num_seeds) for value in (term, left, right))
        if terms.dim() < lefts.dim():  # a bias
            terms = terms.unsqueeze(-2)
        result = torch.baddbmm(_matrices(terms), _matrices(lefts), _matrices(rights))
        return Stacked(result.view(*lefts.shape[:-1], rights.shape[-1]))

    def _one_by_one(self, target: Callable[..., Any], args: Any, kwargs: Any) -> Stacked | None:
        results = []
        for seed in range(self._num_seeds):
            tensors = [stacked.tensor[seed] for stacked in _find_stacked((args, kwargs))]
            own_args, own_kwargs = _with_tensors((args, kwargs), iter(tensors))
            results.append(target(*own_args, **own_kwargs))
        return Stacked(torch.stack(results)) if isinstance(results[0], Tensor) else None

    def _on_lists(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an elementwise operation on lists of tensors; a factor of each seed scales its values."""
        tensors = [
            [_stacked(value, self._num_seeds) for value in arg] if isinstance(arg, list | tuple) else arg
            for arg in args
        ]
        if isinstance(factor := tensors[-1], Stacked):
            target = target.overloadpacket.List
            tensors[-1] = [factor.tensor.view(-1, *[1] * (value.dim() - 1)) for value in tensors[0]]
        results = target(*tensors, **kwargs)
        return None if results is None else [Stacked(result) for result in results]


def _stacked(value: Tensor | Stacked, num_seeds: int) -> Tensor:
    return value.tensor if isinstance(value, Stacked) else value.expand(num_seeds, *value.shape)


def _matrices(values: Tensor) -> Tensor:
    """Return (..., M, N) as (P, M, N)."""
    return values.reshape(-1, *values.shape[-2:])


def _find_stacked(arguments: Any) -> list[Stacked]:
    found: list[Stacked] = []
    _map(lambda value: found.append(value) if isinstance(value, Stacked) else None, arguments)
    return found


def _with_tensors(arguments: Any, tensors: Iterator[Tensor]) -> Any:
    """Replace stacked values in the order of `_find_stacked`."""
    return _map(lambda value: next(tensors) if isinstance(value, Stacked) else value, arguments)


def _map(function: Callable[[Any], Any], values: Any) -> Any:
    """Apply a function to everything in nested lists, tuples and dicts."""
    return map_aggregate(values, function)

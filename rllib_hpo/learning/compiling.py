"""Compile whole updates: trace one, find the tensors that it reads and writes, and hand the graph to inductor.

What is traced is the update itself, its backward passes and gradient steps included, so one compiled function does what
hundreds of operations do. It works on the tensors at their addresses, so it can be captured in a CUDA graph.

Torch promises neither `make_fx` nor `torch._inductor.compile`; only this file uses them (checked on torch 2.13).
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from rllib_hpo.algorithms.base import Metrics, Noise
from rllib_hpo.kernels.tracing import tracing
from rllib_hpo.replay.layout import Batch
from rllib_hpo.settings import Settings

_logger = logging.getLogger(__name__)

_NOT_COMPILED_MESSAGE = "Updates are not compiled: %s."


def compiles(settings: Settings, num_learners: int = 1) -> bool:
    """Return whether updates are to be compiled; if they cannot be, log the reason.

    Several learners do not compile: in each update they wait for each other to average gradients.
    """
    if settings.compile_update is not True:  # 'auto' is resolved where the number of steps is known
        return False
    if num_learners > 1:
        _logger.warning(_NOT_COMPILED_MESSAGE, f"{num_learners} learners average their gradients")
        return False
    return True


Function = Callable[[Batch, Noise, str], Metrics]
"""Makes one update of a kind with a batch and noise, and returns scalars by name."""


class CompiledUpdate:
    """Compile an update, once for each of its kinds.

    If compilation fails, the reason is logged once, and updates run eagerly from then on.

    Args:
        update: The update.
        signature: Returns the addresses and settings that it depends on, batch and noise apart; when it changes, all
            is compiled again.
        tensors: Returns all tensors that the update may change, those made on first use as soon as they are there.
            Such tensors are zero before their first use.
        kinds: Returns all kinds.
    """

    def __init__(
        self,
        update: Function,
        signature: Callable[[], object],
        tensors: Callable[[], Iterable[Tensor]],
        kinds: Callable[[], Iterable[str]],
    ) -> None:
        self._update, self._signature, self._tensors, self._kinds = update, signature, tensors, kinds
        self._compiled: dict[str, Function] = {}
        self._compiled_for: object = None
        self._failed = False
        self.num_compilations = 0
        """Number of compilations so far."""

    def __call__(self, batch: Batch, noise: Noise, kind: str) -> Metrics:
        """Make one update."""
        if self._failed:
            return self._update(batch, noise, kind)
        if self._compiled and (self._signature(), len(batch.reward)) != self._compiled_for:
            self._compiled.clear()
        if kind not in self._compiled:
            self._try_to_compile(batch, noise, kind)
            return self(batch, noise, kind)
        return self._compiled[kind](batch, noise, kind)

    def _try_to_compile(self, batch: Batch, noise: Noise, kind: str) -> None:
        try:
            if not self._compiled:  # make what is made on first use
                with rehearsal(self._tensors):
                    for other in self._kinds():
                        self._update(batch, noise, other)
            with rehearsal(self._tensors):
                self._compiled[kind] = compile_trace(*trace_update(self._update, batch, noise, kind))
            self._compiled_for = self._signature(), len(batch.reward)
            self.num_compilations += 1
        except Exception as error:  # noqa: BLE001  (an error of the update itself comes again in the eager call)
            _logger.warning(_NOT_COMPILED_MESSAGE, _reason(error))
            self._failed = True


@contextmanager
def rehearsal(tensors: Callable[[], Iterable[Tensor]]) -> Iterator[None]:
    """Let an update be made, and undo it: restore the tensors that it changed, and zero those that it made."""
    before = {id(tensor): tensor.detach().clone() for tensor in tensors()}
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor in tensors():
                if id(tensor) in before:
                    tensor.copy_(before[id(tensor)])
                else:
                    tensor.zero_()
                tensor.grad = None


def trace_update(
    update: Function, batch: Batch, noise: Noise, kind: str, *, compiled: bool = True
) -> tuple[GraphModule, list[Tensor], list[str]]:
    """Record every operation of an update, on real tensors.

    Args:
        update: The update.
        batch: Its batch.
        noise: Its noise.
        kind: Its kind.
        compiled: Whether a compiler will fuse the operations.

    Returns:
        The graph, its arguments, of which batch and noise come first, and the names of its results.
    """
    names: list[str] = []
    num_columns = len(batch.tensors())

    def results(*arguments: Tensor) -> list[Tensor]:
        of_batch, of_noise = arguments[:num_columns], arguments[num_columns:]
        metrics = update(batch.replaced(of_batch), dict(zip(noise, of_noise, strict=True)), kind)
        names.extend(metrics)
        return list(metrics.values())

    arguments = _arguments(batch, noise)
    with tracing(compiled=compiled):
        graph = record(results, arguments)
    return graph, [*arguments, *_lift_tensors(graph)], names


def record(function: Callable[..., Any], arguments: Sequence[Tensor]) -> GraphModule:
    """Call a function, and return the graph of its operations; their effects on the arguments remain."""
    from torch._guards import TracingContext
    from torch._guards import tracing as in_context
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    # Without a context, make_fx describes each of thousands of results in a mode of its own, which takes
    # more than twice the time.
    with in_context(TracingContext(FakeTensorMode())):
        return make_fx(function)(*arguments)


def _arguments(batch: Batch, noise: Noise) -> list[Tensor]:
    return [*batch.tensors(), *noise.values()]


def compile_trace(graph: GraphModule, arguments: list[Tensor], names: list[str]) -> Function:
    """Compile a trace; the result holds the tensors that the trace found at fixed addresses.

    A process that was killed while it compiled leaves half a file in inductor's cache, which fails all that read it: a
    failure is tried once more without that cache.
    """
    import torch._inductor as inductor

    with torch.no_grad():
        try:
            compiled = inductor.compile(graph, list(arguments))
        except Exception:  # noqa: BLE001  (what has another cause fails again)
            with _without_cache():
                compiled = inductor.compile(graph, list(arguments))
    return bind(compiled, arguments, names)


@contextmanager
def _without_cache() -> Iterator[None]:
    """Let inductor read and write its files in a folder of this context alone."""
    from torch._inductor.utils import clear_caches

    clear_caches()
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


def bind(graph: Callable[..., Any], arguments: Sequence[Tensor], names: Sequence[str]) -> Function:
    """Return the update that a trace makes: `arguments` beyond batch and noise stay those of the trace."""

    def update(batch: Batch, noise: Noise, kind: str) -> Metrics:
        given = _arguments(batch, noise)
        with torch.no_grad():
            return dict(zip(names, graph(*given, *arguments[len(given) :]), strict=True))

    return update


def _lift_tensors(graph: GraphModule) -> list[Tensor]:
    """Turn the tensors that a trace holds into its arguments, each once; returns them in that order.

    The trace holds none of them afterwards: torch would find each argument twice, and in every call prepare for changes
    by one way that are read by the other.
    """
    nodes = graph.graph.nodes
    first = next(node for node in nodes if node.op != "placeholder")
    arguments: dict[object, torch.fx.Node] = {}
    tensors: list[Tensor] = []
    held = [node for node in nodes if node.op == "get_attr"]
    for node in held:
        tensor = getattr(graph, node.target).detach()
        place = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if place not in arguments:
            with graph.graph.inserting_before(first):
                arguments[place] = graph.graph.placeholder(f"tensor_{len(tensors)}")
            tensors.append(tensor)
        node.replace_all_uses_with(arguments[place])
        graph.graph.erase_node(node)
    for name in {node.target for node in held}:
        delattr(graph, name)
    graph.graph.lint()
    graph.recompile()
    return tensors


def _reason(error: BaseException) -> str:
    """Return the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")

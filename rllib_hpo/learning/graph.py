"""Capture functions of tensors as CUDA graphs, replay them, and recapture when their tensors move."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Protocol

import torch

from rllib_hpo.settings import Settings

_logger = logging.getLogger(__name__)

_NO_GRAPH_MESSAGE = "Updates run without a CUDA graph: %s."

WARM_UPS = 3
"""Eager calls before the capture, in which libraries allocate their workspaces; they do the function's work."""


class Capture(Protocol):
    """A way to capture a function without arguments that reads and writes tensors at fixed addresses."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Call the function in the way in which it will be captured."""

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture the function without doing its work; returns a function that replays it."""


def make_capture(settings: Settings, device: torch.device, num_learners: int = 1) -> Capture | None:
    """The capture of updates on a GPU; None, with the reason in the log, if they are not captured.

    Several learners do not capture: in each update they wait for each other to average gradients.
    """
    if not settings.cuda_graph:
        reason = "cuda_graph=False"
    elif num_learners > 1:
        reason = f"{num_learners} learners average their gradients"
    else:
        return CudaGraphCapture(device)
    _logger.warning(_NO_GRAPH_MESSAGE, reason)
    return None


class CudaGraphCapture:
    """Capture the work that a function enqueues on one GPU, on a stream of its own.

    Warm-ups run on the same stream, so that cuBLAS and the allocator have their workspaces there. Allocations during
    the capture come from the graph's pool and keep their addresses.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], None]) -> None:
        """Call the function on the capture stream, in order with the current stream."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                function()
            torch.cuda.current_stream().wait_stream(self._stream)

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture the function; replays run on the stream that is current when they are called.

        A capture that fails leaves the current stream, the allocator and the default generator as they were.

        Raises:
            RuntimeError: If the function does what cannot be captured.
        """
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
            try:
                with _spare_generator(self._device), torch.cuda.graph(graph, pool=pool, stream=self._stream):
                    function()
            except BaseException:
                torch.cuda.set_stream(stream)  # a failed capture does not restore it
                _end_pool(graph, pool)
                raise
        return graph.replay


@contextmanager
def _spare_generator(device: torch.device) -> Iterator[None]:
    """Give the default generator a temporary state.

    A capture registers that state, and a failed one leaves it unusable.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    state = generator.graphsafe_get_state()
    generator.graphsafe_set_state(torch.Generator(device))
    try:
        yield
    finally:
        generator.graphsafe_set_state(state)


_FAILED: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture failed, kept alive because torch's allocator of pinned memory still queries them."""


def _end_pool(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
    """Release the pool of a failed capture; otherwise free memory would not return to the device."""
    graph.reset()
    _FAILED.append(graph)
    # Refused if the capture has ended; neither function is public in torch (checked on torch 2.13).
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        torch._C._cuda_releasePool(torch.cuda.current_device(), pool)


class GraphedFunction:
    """Call a function through CUDA graphs, or eagerly where capture fails.

    Args:
        function: Does the work of one kind on tensors at fixed addresses; each kind has a graph of its own.
        signature: Returns the addresses and settings that graphs depend on; when it changes, all are recaptured.
        capture: The way to capture; None calls the function eagerly.
    """

    def __init__(
        self, function: Callable[[str], None], signature: Callable[[], object], capture: Capture | None
    ) -> None:
        self._function, self._signature, self._capture = function, signature, capture
        self._captured: dict[str, Callable[[], None]] = {}
        self._captured_for: object = None
        self._warmed_up: Counter[str] = Counter()
        self.num_captures = 0
        """Number of captures so far."""

    def run(self, kinds: Iterable[str]) -> None:
        """Do the work of each of `kinds` in order, without waiting for the device."""
        if self._captured and self._signature() != self._captured_for:
            self._captured.clear()
            self._warmed_up.clear()
        for kind in kinds:
            self._run_once(kind)

    def _run_once(self, kind: str) -> None:
        if (captured := self._captured.get(kind)) is not None:
            captured()
        elif self._capture is None:
            self._function(kind)
        elif self._warmed_up[kind] < WARM_UPS:
            self._warmed_up[kind] += 1
            self._capture.warm_up(partial(self._function, kind))
        else:
            self._try_to_capture(self._capture, kind)
            self._run_once(kind)

    def _try_to_capture(self, capture: Capture, kind: str) -> None:
        """Capture one kind; if that fails, log the reason and never capture again."""
        try:
            signature = self._signature()
            if signature != self._captured_for:  # this kind has moved tensors of other captures
                self._captured.clear()
            self._captured_for = signature
            self._captured[kind] = capture(partial(self._function, kind))
            self.num_captures += 1
        except Exception as error:  # noqa: BLE001  (an error of the function itself comes again in the plain call)
            _logger.warning(_NO_GRAPH_MESSAGE, _reason(error))
            self._capture = None


def _reason(error: BaseException) -> str:
    """First line of the first error in the chain; later errors, of ending the capture, are its consequence."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return str(error).split("\n", 1)[0].rstrip(".")

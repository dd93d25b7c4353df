"""A function of tensors made fast to call again: captured as a CUDA graph, and captured anew when that is due."""

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
"""Calls before the capture, in which libraries allocate what they keep; they are calls like any other."""


class Capture(Protocol):
    """How a function of no arguments, which reads and writes tensors that stay where they are, is captured."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Calls the function as it will be captured."""

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """What repeats the function's work when called; the function's own work is not done now."""


def make_capture(settings: Settings, device: torch.device, num_learners: int = 1) -> Capture | None:
    """How updates are captured on a GPU; None, and the log says why, where they are not.

    Those of several learners are not: in each update learners wait for each other, for gradients to average.
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
    """Captures what a function enqueues on one GPU, by a stream of its own.

    Warm-ups run on that same stream, so that cuBLAS and the allocator have what they need there. Allocations made
    during the capture come from the graph's pool and stay where they are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], None]) -> None:
        """Calls the function on the stream, between what came before and what comes after."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                function()
            torch.cuda.current_stream().wait_stream(self._stream)

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Captures; the replays run on the stream that is current when they are called.

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
                torch.cuda.set_stream(stream)  # which a capture that fails does not do
                _end_pool(graph, pool)
                raise
        return graph.replay


@contextmanager
def _spare_generator(device: torch.device) -> Iterator[None]:
    """The default generator with a state of its own, which is thrown away.

    A capture takes that state along, and one that fails leaves it unfit for use.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    state = generator.graphsafe_get_state()
    generator.graphsafe_set_state(torch.Generator(device))
    try:
        yield
    finally:
        generator.graphsafe_set_state(state)


_FAILED: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture failed; torch's allocator of pinned memory goes on asking them what is theirs."""


def _end_pool(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
    """Ends what a failed capture began: else memory that is free would no longer be given back to the device."""
    graph.reset()
    _FAILED.append(graph)
    # Refused where the capture came as far as to end it; torch promises neither function.
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        torch._C._cuda_releasePool(torch.cuda.current_device(), pool)


class Repeated:
    """Calls a function again and again, captured if that is possible and plainly if it is not.

    Args:
        function: Does the work of one kind on tensors that keep their place; each kind is captured for itself.
        signature: What captures hold good for: addresses and settings. When it changes all are captured anew.
        capture: How; None for never.
    """

    def __init__(
        self, function: Callable[[str], None], signature: Callable[[], object], capture: Capture | None
    ) -> None:
        self._function, self._signature, self._capture = function, signature, capture
        self._captured: dict[str, Callable[[], None]] = {}
        self._captured_for: object = None
        self._warmed_up: Counter[str] = Counter()
        self.num_captures = 0
        """Captures made so far."""

    def run(self, kinds: Iterable[str]) -> None:
        """Does the function's work for each of `kinds`; never waits for the device."""
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
        """Captures, or says why that is not possible and gives up for good."""
        try:
            signature = self._signature()
            if signature != self._captured_for:  # this kind has moved what other captures refer to
                self._captured.clear()
            self._captured_for = signature
            self._captured[kind] = capture(partial(self._function, kind))
            self.num_captures += 1
        except Exception as error:  # noqa: BLE001  (an error of the function itself comes again in the plain call)
            _logger.warning(_NO_GRAPH_MESSAGE, _reason(error))
            self._capture = None


def _reason(error: BaseException) -> str:
    """The first line of what went wrong first: that a capture cannot be ended then is a consequence."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return str(error).split("\n", 1)[0].rstrip(".")

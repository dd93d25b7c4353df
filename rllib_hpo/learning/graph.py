"""A function of tensors made fast to call again: captured as a CUDA graph, and captured anew when that is due."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch

from rllib_hpo.settings import ActorCriticSettings

_logger = logging.getLogger(__name__)

WARM_UPS = 3
"""Calls before the capture, in which libraries allocate what they keep; they are calls like any other."""


class Capture(Protocol):
    """How a function of no arguments, which reads and writes tensors that stay where they are, is captured."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Calls the function as it will be captured."""

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """What repeats the function's work when called; the function's own work is not done now."""


def make_capture(
    settings: ActorCriticSettings, device: torch.device, num_learners: int = 1
) -> Capture | None:
    """How updates are captured on a device; None, and the log says why, where they are not.

    Those of several learners are not: in each update learners wait for each other, for gradients to average.
    """
    if not settings.cuda_graph:
        reason = "cuda_graph=False"
    elif device.type != "cuda":
        reason = str(device)
    elif num_learners > 1:
        reason = f"{num_learners} learners average their gradients"
    else:
        return CudaGraphCapture(device)
    _logger.info("Updates run without a CUDA graph: %s.", reason)
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

        Raises:
            RuntimeError: If the function does what cannot be captured.
        """
        with torch.cuda.device(self._device):
            stream, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, stream=self._stream):
                    function()
            finally:
                torch.cuda.set_stream(stream)  # which a capture that fails does not do
        return graph.replay


class Repeated:
    """Calls a function again and again, captured if that is possible and plainly if it is not.

    Args:
        function: Does its work on tensors that keep their place.
        signature: What a capture holds good for: addresses and settings. When it changes the function is
            captured anew.
        capture: How; None for never.
    """

    def __init__(
        self, function: Callable[[], None], signature: Callable[[], object], capture: Capture | None
    ) -> None:
        self._function, self._signature, self._capture = function, signature, capture
        self._captured: Callable[[], None] | None = None
        self._captured_for: object = None
        self._warmed_up = 0
        self.num_captures = 0
        """Captures made so far."""

    def run(self, times: int) -> None:
        """Does the function's work `times` times; never waits for the device."""
        if self._captured is not None and self._signature() != self._captured_for:
            self._captured, self._warmed_up = None, 0
        for _ in range(times):
            self._run_once()

    def _run_once(self) -> None:
        if self._captured is not None:
            self._captured()
        elif self._capture is None:
            self._function()
        elif self._warmed_up < WARM_UPS:
            self._warmed_up += 1
            self._capture.warm_up(self._function)
        else:
            self._try_to_capture(self._capture)
            self._run_once()

    def _try_to_capture(self, capture: Capture) -> None:
        """Captures, or says why that is not possible and gives up for good."""
        try:
            self._captured_for = self._signature()
            self._captured = capture(self._function)
            self.num_captures += 1
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).split("\n", 1)[0]
            _logger.warning("Updates run without a CUDA graph: %s", reason)
            self._capture = None

"""Measure updates per second of every algorithm, eagerly and as a graph, beside the floor; count kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks import update_speed
from benchmarks.gpu_check import targets
from benchmarks.gpu_check.rows import Row
from benchmarks.update_speed import Contestant

ROUNDS, CHUNK, WARM_UP, GPU_SECONDS = 3, 16, 64, 0.08
COUNTED = 32
"""Updates whose kernels are counted."""
SIZE = "Hopper"


def modes(device: str) -> tuple[str, ...]:
    """Return the ways to make updates; a CPU has no graphs."""
    return ("floor", "eager", "graph") if device == "cuda" else ("floor", "eager")


def run(device: str, emit: Callable[[Row], None], names: Sequence[str]) -> None:
    """Measure one algorithm after the other."""
    for name in names:
        try:
            measure(name, device, modes(device), emit)
        except Exception as error:  # noqa: BLE001  (the other algorithms go on)
            emit(Row(f"{name}, updates", "FAILED", detail=f"{type(error).__name__}: {error}"[:300]))


def measure(name: str, device: str, ways: Sequence[str], emit: Callable[[Row], None]) -> None:
    """Report speeds of one algorithm, and the kernels of its last mode."""
    entrants = [Contestant(name, SIZE, device, mode) for mode in ways]
    rounds, chunk, warm_up = (ROUNDS, CHUNK, WARM_UP) if device == "cuda" else (1, 2, 3)
    times = update_speed.measure(entrants, rounds, chunk, warm_up, GPU_SECONDS)
    speeds = {entrant.mode: 1e3 / sorted(found)[len(found) // 2] for entrant, found in times.items()}
    for mode, speed in speeds.items():
        aim = targets.UPDATES_PER_S.get(name) if "graph" in mode else None
        emit(Row.at_least(f"{name}, {mode}, updates/s", speed, aim))
    if "graph" in speeds and "eager" in speeds:
        times_eager = targets.TIMES_EAGER if name in targets.UPDATES_PER_S else None
        emit(Row.at_least(f"{name}, graph, times eager", speeds["graph"] / speeds["eager"], times_eager))
    count_kernels(name, device, ways[-1], emit)


def count_kernels(name: str, device: str, mode: str, emit: Callable[[Row], None]) -> None:
    """Report the kernels of an update, the mean over updates of all kinds; on a CPU the operations that a GPU gets."""
    what = f"{name}, {mode}"
    if device != "cuda":
        from benchmarks.operations import operations_of_updates

        learner = update_speed.make_learner(Contestant(name, SIZE, device, "eager"))
        number = update_speed.KINDS_REPEAT_WITHIN
        counts = [found.number for found in operations_of_updates(learner, number)]
        emit(Row(f"{what}, operations of an update on a GPU", "measured", sum(counts) / number))
        return
    learner = update_speed.make_learner(Contestant(name, SIZE, device, mode), diagnostics_interval=10**9)
    learner.update_from_replay(WARM_UP)
    kernels = kernels_of(lambda: learner.update_from_replay(COUNTED)) / COUNTED
    aim = targets.KERNELS.get(name) if "compiled" in mode else None
    emit(Row.at_most(f"{what}, kernels of an update", kernels, aim))


def kernels_of(function: Callable[[], object]) -> int:
    """Return how many kernels, copies and fills a function has a GPU run."""
    import torch
    from torch.autograd import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        function()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in profiled.events())

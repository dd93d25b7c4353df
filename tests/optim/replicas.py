"""Run replicas in processes joined by gloo without a network address."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rllib_hpo.optim.replicas import Replica

TIMEOUT_S = 120.0


def in_processes(world_size: int, job: Callable[[Replica], Any], directory: Path) -> list[Any]:
    """Return the results of `job` in each of `world_size` processes."""
    with processes(world_size, job, directory) as started:
        while not started.join():  # each call returns when one more process has ended
            pass
    return [torch.load(directory / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


@contextmanager
def processes(
    world_size: int, job: Callable[[Replica], Any], directory: Path, timeout_s: float = TIMEOUT_S
) -> Iterator[Any]:
    """Start processes that run `job` and write its results to 0.pt, 1.pt, ...; end them all at the end."""
    directory.mkdir(exist_ok=True)
    arguments = (world_size, job, str(directory), timeout_s)
    started = mp.spawn(_process, arguments, nprocs=world_size, join=False)
    try:
        yield started
    finally:
        for process in started.processes:
            process.kill()
            process.join()


def _process(
    rank: int, world_size: int, job: Callable[[Replica], Any], directory: str, timeout_s: float
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=world_size)
    torch.save(job(Replica.of_this_process(timeout_s)), f"{directory}/{rank}.pt")
    sys.stdout.flush()
    # An interpreter that ends takes gloo's threads down in any order, and once in a while aborts over it.
    os._exit(0)

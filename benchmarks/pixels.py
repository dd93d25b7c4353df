"""Measure learning from images of 84 x 84 pixels: `python -m benchmarks.pixels [--updates 3] [--device cpu]`.

It prints frames rendered per second by each task of the suite (with dm_control), what the replay of frames takes in
memory and time, and the seconds of an update of SAC-AE and SAC-AE-HPO, which alternate in pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks import machine

SIZE, STACK, ACTION_DIM, BATCH = 84, 3, 6, 128
OBS_DIM = 3 * STACK * SIZE**2
CAPACITY, HELD = 100_000, 3_000


def seconds(call: Callable[[], Any], times: int) -> float:
    """Return the median CPU seconds of a call, after a first one."""
    call()
    durations = []
    for _ in range(times):
        began = time.process_time()
        call()
        durations.append(time.process_time() - began)
    return statistics.median(durations)


def filled_replay(transitions: int, capacity: int) -> tuple[Any, float]:
    """Return a replay with random frames, and the CPU seconds to write and add a transition."""
    from rllib_hpo.replay.frames import FrameLayout, FrameReplay

    layout, rng = FrameLayout(OBS_DIM, ACTION_DIM, STACK), np.random.default_rng(0)
    replay = FrameReplay(layout, capacity)
    frames = [rng.integers(0, 256, layout.frame_bytes, dtype=np.uint8) for _ in range(STACK)]
    spent = 0.0
    for _ in range(transitions):
        obs = np.concatenate(frames).astype(np.float32)[None]
        frames = [*frames[1:], rng.integers(0, 256, layout.frame_bytes, dtype=np.uint8)]
        next_obs = np.concatenate(frames).astype(np.float32)[None]
        began = time.process_time()
        writer = layout.writer(1)
        writer.write(0, obs, np.zeros((1, ACTION_DIM)), np.zeros(1), np.zeros(1, bool), next_obs)
        replay.add(writer.finished())
        spent += time.process_time() - began
    return replay, spent / transitions


def measure_replay() -> None:
    """Print memory and times of the replay."""
    replay, per_step = filled_replay(HELD, CAPACITY)
    generator = torch.Generator().manual_seed(0)
    gather = seconds(lambda: replay.gather(replay.draw_indices(BATCH, generator)), 30)
    print(f"| memory of {CAPACITY:,} transitions | {replay.num_bytes / 1e9:.2f} GB |")
    print(f"| draw and stack a batch of {BATCH} | {1e3 * gather:.1f} ms |")
    print(f"| write and store a transition | {1e3 * per_step:.2f} ms |")


def measure_rendering() -> None:
    """Print frames per CPU second of each task, with both visuals."""
    from rllib_hpo.errors import UserError
    from rllib_hpo.tasks import make_env
    from rllib_hpo.tasks.pixels.dm_control import OF_THE_PAPER, env_id_of

    for domain, task in OF_THE_PAPER:
        for visuals in ("suite", "fast"):
            try:
                env = make_env(env_id_of(domain, task), visuals=visuals)
            except UserError as error:
                print(f"| rendering | {error} |")
                return
            env.reset(seed=0)
            rate = 1 / seconds(env.render, 40)
            print(f"| {domain}-{task}, visuals {visuals} | {rate:.0f} frames/s |")
            env.close()


def measure_updates(updates: int, device: str) -> None:
    """Print the seconds of an update of each algorithm, and their ratio over pairs."""
    from rllib_hpo.algorithms.registry import find_settings, make_method
    from rllib_hpo.learning.replay_learner import ReplayLearner
    from rllib_hpo.learning.trainer import Trainer

    replay, _ = filled_replay(2 * BATCH, 2 * BATCH)
    rows = replay.read(0, replay.total_rows)[0]
    learners = {}
    for algorithm in ("sac-ae", "sac-ae-hpo"):
        method = make_method(find_settings(algorithm)(replay_capacity=2 * BATCH))
        model = method.make_model(OBS_DIM, ACTION_DIM, seed=0).to(torch.device(device))
        learners[algorithm] = ReplayLearner(Trainer(method, model))
        learners[algorithm].add_transitions(rows)
        learners[algorithm].update_from_replay(2 if device == "cpu" else 20)
    spent: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(updates):
        for name, learner in learners.items():
            began = time.perf_counter() if device != "cpu" else time.process_time()
            learner.update_from_replay(2)
            learner.check_finite()  # waits for the device
            ended = time.perf_counter() if device != "cpu" else time.process_time()
            spent[name].append((ended - began) / 2)
    for name, times in spent.items():
        print(f"| an update of {name}, {device} | {1e3 * statistics.median(times):.1f} ms |")
    ratios = [hpo / plain for plain, hpo in zip(spent["sac-ae"], spent["sac-ae-hpo"], strict=True)]
    print(f"| sac-ae-hpo over sac-ae | {statistics.median(ratios):.2f} |")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=3, help="pairs of updates of each algorithm")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{json.dumps(machine.facts())}\n\n| what | value |\n| --- | ---: |")
    measure_rendering()
    measure_replay()
    measure_updates(arguments.updates, arguments.device)


if __name__ == "__main__":
    main()

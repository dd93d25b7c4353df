"""Measure learning from images of 84 x 84 pixels: `python -m benchmarks.pixels [--rounds 3] [--device cpu]`.

It measures frames rendered per second of CPU by each task of the paper (with dm_control); bytes and time of the replay;
and the time of an update of SAC-AE, of SAC-AE-HPO and of a plain torch loop with the same networks
(`benchmarks.handwritten_sac_ae`), which take turns in each round. The loop stores both images of a transition whole.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.handwritten_sac_ae import HandwrittenSACAE, WholeReplay
from benchmarks.pairs import Ratio
from rllib_hpo.algorithms.registry import find_settings, make_method
from rllib_hpo.errors import UserError
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.learning.trainer import Trainer
from rllib_hpo.replay.frames import FrameLayout, FrameReplay
from rllib_hpo.tasks import make_env
from rllib_hpo.tasks.pixels.dm_control import OF_THE_PAPER, env_id_of

STACK, ACTION_DIM, CAPACITY = 3, 6, 100_000
LOOP, PLAIN, HPO = "torch loop", "sac-ae", "sac-ae-hpo"


def rendering(num_frames: int) -> dict[str, float]:
    """Return frames per second of CPU, by task and visuals; nothing where the suite cannot be rendered."""
    rates = {}
    for domain, task in OF_THE_PAPER:
        for visuals in ("suite", "fast"):
            try:
                env = make_env(env_id_of(domain, task), visuals=visuals)
            except UserError as error:
                print(error)
                return {}
            env.reset(seed=0)
            rates[f"{domain}-{task}, {visuals}"] = 1 / _median_s(env.render, num_frames)
            env.close()
    return rates


def _median_s(call: Callable[[], Any], times: int) -> float:
    """Return the median CPU seconds of a call, after a first one."""
    call()
    durations = []
    for _ in range(times):
        began = time.process_time()
        call()
        durations.append(time.process_time() - began)
    return statistics.median(durations)


class Replays:
    """Both replays, with the same random frames: `frames` holds each once, `whole` both images of a transition.

    Args:
        size: Height of an image.
        transitions: Number of transitions.
        device: Where the frames are, and the batches of `whole` go.
    """

    def __init__(self, size: int, transitions: int, device: str = "cpu") -> None:
        self.layout = FrameLayout(3 * STACK * size**2, ACTION_DIM, STACK)
        self.frames = FrameReplay(self.layout, transitions, device)
        self.whole = WholeReplay(3 * STACK, size, ACTION_DIM, transitions, device)
        rng = np.random.default_rng(0)
        shown = rng.integers(0, 256, (transitions + STACK, self.layout.frame_bytes), dtype=np.uint8)
        began = time.process_time()
        for k in range(transitions):
            obs, next_obs = (shown[n : n + STACK].reshape(1, -1).astype(np.float32) for n in (k, k + 1))
            writer = self.layout.writer(1)
            writer.write(0, obs, np.zeros((1, ACTION_DIM)), np.zeros(1), np.zeros(1, bool), next_obs)
            self.frames.add(writer.finished())
        self.add_s = (time.process_time() - began) / transitions
        for k in range(transitions):
            before, after = (shown[n : n + STACK].reshape(-1, size, size) for n in (k, k + 1))
            self.whole.add(before, np.zeros(ACTION_DIM), 0.0, after)

    def facts(self, batch: int) -> dict[str, float]:
        """Return bytes of a transition in both replays, and CPU seconds to add one and to draw a batch."""
        generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
        full = FrameReplay(self.layout, CAPACITY)  # which takes memory as frames arrive
        return {
            "bytes_of_a_transition": full.num_bytes / CAPACITY,
            "bytes_of_a_transition_whole": self.whole.num_bytes / len(self.whole.obs),
            "add_s": self.add_s,
            "batch_s": _median_s(lambda: self.frames.gather(self.frames.draw_indices(batch, generator)), 20),
            "batch_whole_s": _median_s(lambda: self.whole.sample(batch, rng), 20),
        }


def updates(replays: Replays, size: int, rounds: int, device: str, **settings: Any) -> dict[str, list[float]]:
    """Return the seconds of an update of each contestant, by rounds; a policy is updated every second time."""
    rows = replays.frames.read(0, replays.frames.total_rows)[0]
    calls: dict[str, Callable[[], Any]] = {}
    batch = settings.get("train_batch_size_per_learner", 128)
    loop, rng = HandwrittenSACAE(3 * STACK, size, ACTION_DIM, device=device), np.random.default_rng(0)

    def updates_of_the_loop() -> None:
        for _ in range(2):
            loop.update(replays.whole.sample(batch, rng))

    calls[LOOP] = updates_of_the_loop
    for algorithm in (PLAIN, HPO):
        method = make_method(find_settings(algorithm)(replay_capacity=len(rows), **settings))
        model = method.make_model(replays.layout.obs_dim, ACTION_DIM, seed=0).to(torch.device(device))
        learner = ReplayLearner(Trainer(method, model))
        learner.add_transitions(rows)
        calls[algorithm] = lambda learner=learner: learner.update_from_replay(2)  # type: ignore[misc]
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-1, rounds):  # the first one is for libraries and graphs
        for name, call in calls.items():
            began = _now(device)
            call()
            if number >= 0:
                spent[name].append((_now(device) - began) / 2)
    return spent


def _now(device: str) -> float:
    """Return CPU time or, once a GPU has finished, the clock."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def table(found: dict[str, Any]) -> str:
    """Return the measurements as a table in Markdown."""
    replay, spent = found["replay"], found["updates_s"]
    lines = ["| what | value |", "| --- | ---: |"]
    lines += [f"| {name} | {rate:.0f} frames/s |" for name, rate in found["frames_per_s"].items()]
    for name, key in (("each frame once", "bytes_of_a_transition"), ("whole", "bytes_of_a_transition_whole")):
        lines.append(f"| {CAPACITY:,} transitions, {name} | {CAPACITY * replay[key] / 1e9:.2f} GB |")
    for name, key in (("each frame once", "batch_s"), ("whole", "batch_whole_s")):
        lines.append(f"| a batch, {name} | {1e3 * replay[key]:.1f} ms |")
    lines.append(f"| adding a transition | {1e3 * replay['add_s']:.2f} ms |")
    lines += [
        f"| updates of {name} | {1 / statistics.median(each):.3g} / s |" for name, each in spent.items()
    ]
    for one, other in ((PLAIN, LOOP), (HPO, PLAIN)):
        lines.append(f"| time of {one} / {other} | {Ratio.of(spent[one], spent[other])} |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of two updates of each contestant")
    parser.add_argument("--frames", type=int, default=40, help="frames rendered of each task; 0 for none")
    parser.add_argument("--size", type=int, default=84, help="height of an image")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "pixels.json")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    replays = Replays(options.size, 2 * options.batch, options.device)
    found = {
        "machine": machine.facts(),
        "size": options.size,
        "batch": options.batch,
        "device": options.device,
        "frames_per_s": rendering(options.frames) if options.frames else {},
        "replay": replays.facts(options.batch),
        "updates_s": updates(
            replays,
            options.size,
            options.rounds,
            options.device,
            train_batch_size_per_learner=options.batch,
        ),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()

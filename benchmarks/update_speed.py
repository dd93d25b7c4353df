"""Measure the cost of an update by algorithm, input size, device and mode, against its matrix products.

    python -m benchmarks.update_speed
    python -m benchmarks.update_speed --compiled          # on a CPU, with whole updates compiled, too
    python -m benchmarks.update_speed --devices cuda      # only on a GPU, which then does not idle in between

Batches hold 256 transitions; everything else is the settings' defaults, with equal critics, and a base policy of one
hidden layer where SAC has two. The floor of an update consists of only the matrix products that the algorithm needs,
forward and backward, including first layers and both chains' gradients, by the fastest of torch's libraries on this
machine. Updates and floors take turns in one process, one chunk each per round, on one CPU thread. The results are
medians, ratios of medians, and the 10th to 90th percentile of the per-round ratios.

On a CPU the time is the process's CPU time, which other load affects little. On a GPU it is wall-clock time, with
updates drawn from a replay, as a CUDA graph and kernel by kernel, against a floor that is also a graph. A chunk on a
GPU takes a quarter of a second, after an unmeasured one of the same length, since an idle GPU runs slowly. Every
hundredth update computes diagnostics, as in a run.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import machine
from benchmarks.pairs import Ratio

if TYPE_CHECKING:
    from torch import Tensor

    from rllib_hpo.learning.replay_learner import ReplayLearner
    from rllib_hpo.settings import ActorCriticSettings, Settings

BATCH_SIZE, REPLAY_ROWS = 256, 10_000
WARM_UP = 200
COST: dict[str, Any] = {"cost": {"kind": "torque"}, "cost_limit": 25.0}
"""What constrained algorithms need."""
"""Unmeasured first updates; oneDNN's first call for a number of rows costs a millisecond."""
GPU_SECONDS = 0.25
"""Seconds of a chunk on a GPU."""
KINDS_REPEAT_WITHIN = 12
"""Number of updates after which the kinds of most algorithms repeat."""
SIZES = {"Hopper": (11, 3), "Humanoid": (376, 17)}
"""Dimensions of observations and actions."""

AT_MOST_TIMES_SAC = {"sac-hpo, K = 2": 2.0, "sac-hpo, K = 3": 2.5}
AT_MOST_TIMES_FLOOR = {"Humanoid": 2.0}
"""Targets on a CPU: largest ratio to the floor."""


@dataclass(frozen=True)
class Contestant:
    """One way to make updates of one algorithm."""

    algorithm: str
    size: str
    device: str
    mode: str
    """"eager", "compiled", "graph", "compiled graph" or "floor"."""

    def __str__(self) -> str:
        return f"{self.algorithm}, {self.size}, {self.device}, {self.mode}"


def algorithms() -> dict[str, ActorCriticSettings]:
    """Return the compared settings, the reference first."""
    from rllib_hpo.settings import SACHPOSettings, SACNFSettings, SACSettings

    hpo = {f"sac-hpo, K = {steps}": SACHPOSettings(leapfrog_steps=steps) for steps in (1, 2, 3)}
    return {"sac": SACSettings(), "sac-nf": SACNFSettings(), **hpo}


def every_algorithm() -> dict[str, Settings]:
    """Return `algorithms()`, and the defaults of every other registered algorithm."""
    from rllib_hpo.algorithms.registry import algorithm_names, find_settings
    from rllib_hpo.algorithms.sac_lagrangian import ConstraintSettings
    from rllib_hpo.settings import parse_settings

    found: dict[str, Settings] = dict(algorithms())
    for name in algorithm_names():
        settings = find_settings(name)
        if settings not in {type(known) for known in found.values()}:
            is_constrained = issubclass(settings, ConstraintSettings)
            found[name] = parse_settings(settings, COST if is_constrained else {})
    return found


def contestants(devices: Iterable[str], *, compiled: bool = False) -> list[Contestant]:
    """Return all contestants: per device the floor, eager updates and, on a GPU, graphs; optionally compiled ones."""
    modes = {"cpu": ["floor", "eager"], "cuda": ["floor", "eager", "graph"]}
    if compiled:
        modes["cpu"].append("compiled")
    return [
        Contestant(algorithm, size, device, mode)
        for device in devices
        for size in SIZES
        for algorithm in algorithms()
        for mode in modes[device]
    ]


@dataclass(frozen=True)
class Product:
    """A product (M, K) times (K, N), and how often an update computes it."""

    m: int
    k: int
    n: int
    times: int = 1

    @property
    def operations(self) -> int:
        """Number of multiplications and additions."""
        return 2 * self.m * self.k * self.n * self.times


def needed_products(settings: ActorCriticSettings, obs_dim: int, action_dim: int) -> list[Product]:
    """Return every matrix product of one update with B transitions, including those of layers with one output.

    The next actions and the actions are one batch of 2B, of which B rows have gradients.
    """
    from rllib_hpo.settings import layer_units

    rows = BATCH_SIZE
    policy = [obs_dim, *layer_units(settings.hidden_units, settings.policy_layers), 2 * action_dim]
    critic = [obs_dim + action_dim, *layer_units(settings.hidden_units, settings.critic_layers), 1]
    to_action = [action_dim, *critic[1:]]
    return [
        *_forward(policy, 2 * rows),
        *_backward(policy, rows),
        *_forward(critic, rows, 2),  # targets at the next actions
        *_forward(critic, rows, 2),  # the critics' loss
        *_backward(critic, rows, 2),
        *_forward(critic, rows, 2),  # the policy's objective, and its gradient through the smaller critic
        *_to_inputs(to_action, rows),
        *_chain_products(settings, obs_dim, action_dim),
    ]


def _chain_products(settings: ActorCriticSettings, obs_dim: int, action_dim: int) -> list[Product]:
    """Return the products of the leapfrog steps: the states' parts of first layers once, the rest per force."""
    from rllib_hpo.settings import SACHPOSettings, layer_units

    if not isinstance(settings, SACHPOSettings):
        return []
    rows, gate = BATCH_SIZE, 2 * settings.leapfrog_units
    hidden = layer_units(settings.hidden_units, settings.critic_layers)
    to_action = [action_dim, *hidden, 1]
    heads = [settings.leapfrog_units, action_dim]
    once = [
        Product(2 * rows, obs_dim, hidden[0], 2),
        Product(2 * rows, obs_dim, gate),
        Product(gate, rows, obs_dim),
    ]
    each = [
        *_forward(to_action, 2 * rows, 2),
        *_to_inputs(to_action, 2 * rows),
        *_forward([2 * action_dim, gate], 2 * rows),
        *_forward(heads, 2 * rows, 2),
        *_backward([2 * action_dim, gate], rows),
        *_to_inputs([2 * action_dim, gate], rows),
        *_backward(heads, rows, 2),
        *_to_inputs(heads, rows, 2),
    ]
    return [*once, *each * settings.leapfrog_steps] if settings.leapfrog_steps else []


def _forward(units: Sequence[int], rows: int, networks: int = 1) -> list[Product]:
    return [Product(rows, a, b, networks) for a, b in itertools.pairwise(units)]


def _backward(units: Sequence[int], rows: int, networks: int = 1) -> list[Product]:
    """Return the products for gradients of all weights, and of all layers' values except the inputs."""
    of_weights = [Product(b, rows, a, networks) for a, b in itertools.pairwise(units)]
    return [*of_weights, *_to_inputs(units[1:], rows, networks)]


def _to_inputs(units: Sequence[int], rows: int, networks: int = 1) -> list[Product]:
    return [Product(rows, b, a, networks) for a, b in itertools.pairwise(units)]


def make_floor(products: Sequence[Product], device: str) -> Callable[[], None]:
    """Make a function that multiplies matrices of these shapes, each with the fastest library for it."""
    import torch

    calls: list[tuple[Callable[[], Tensor], int]] = []
    fastest: dict[Product, Callable[[], Tensor]] = {}
    for product in products:
        shape = Product(product.m, product.k, product.n)
        if shape not in fastest:
            fastest[shape] = _fastest(shape, device)
        calls.append((fastest[shape], product.times))

    @torch.no_grad()
    def one() -> None:
        for multiply, times in calls:
            for _ in range(times):
                multiply()

    return one


def _fastest(product: Product, device: str) -> Callable[[], Tensor]:
    import torch

    from rllib_hpo.kernels.products import HAS_ONEDNN

    left = torch.randn(product.m, product.k, device=device)
    right = torch.randn(product.k, product.n, device=device)
    out = torch.empty(product.m, product.n, device=device)
    transposed = right.T.contiguous()
    candidates: list[Callable[[], Tensor]] = [lambda: torch.mm(left, right, out=out)]
    if device == "cpu" and HAS_ONEDNN:
        onednn = torch.ops.mkldnn._linear_pointwise
        candidates.append(lambda: onednn(left, transposed, None, "none", [], ""))
    if len(candidates) == 1:
        return candidates[0]
    return min(candidates, key=_median_cpu_seconds)


def _median_cpu_seconds(call: Callable[[], Any]) -> float:
    call()
    durations = []
    for _ in range(9):
        began = time.process_time()
        for _ in range(5):
            call()
        durations.append(time.process_time() - began)
    return sorted(durations)[len(durations) // 2]


def make_updates(contestant: Contestant) -> Callable[[int], None]:
    """Make a function that runs a given number of updates, or of their products."""
    if contestant.mode == "floor":
        settings = algorithms().get(contestant.algorithm)
        sizes = SIZES[contestant.size]
        if settings is None or contestant.device == "cuda":
            return _floor_of_traced(contestant)
        floor = make_floor(needed_products(settings, *sizes), contestant.device)
        return lambda times: _repeat(floor, times)
    return make_learner(contestant).update_from_replay


def make_learner(contestant: Contestant, seed: int = 0, **changes: Any) -> ReplayLearner:
    """Make a learner in the contestant's mode with a filled replay; `changes` are settings."""
    import torch

    from rllib_hpo.algorithms.registry import make_method
    from rllib_hpo.learning.replay_learner import ReplayLearner
    from rllib_hpo.learning.trainer import Trainer

    obs_dim, action_dim = SIZES[contestant.size]
    by_mode: dict[str, Any] = {
        "cuda_graph": "graph" in contestant.mode,
        "compile_update": "compiled" in contestant.mode,
        "replay_capacity": REPLAY_ROWS,
    }
    if contestant.device == "cpu":
        by_mode["diagnostics_interval"] = 10**9
    settings = every_algorithm()[contestant.algorithm].model_copy(update=by_mode | changes)
    method = make_method(settings)
    model = method.make_model(obs_dim, action_dim, seed).to(torch.device(contestant.device))
    learner = ReplayLearner(Trainer(method, model, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(REPLAY_ROWS, learner.replay.layout.width, generator=generator)
    batch = learner.replay.layout.unpack(rows)
    batch.action.tanh_()
    batch.terminated.zero_()
    learner.add_transitions(rows.numpy())
    return learner


def _floor_of_traced(contestant: Contestant) -> Callable[[int], None]:
    """Make a function that computes the products that updates of all kinds compute on a GPU, batched as there."""
    from benchmarks.operations import operations_of_updates

    learner = make_learner(replace(contestant, device="cpu", mode="eager"))
    kinds = learner.trainer.kinds(KINDS_REPEAT_WITHIN)
    floors: dict[str, Callable[[], None]] = {}
    for kind, operations in zip(kinds, operations_of_updates(learner, KINDS_REPEAT_WITHIN), strict=True):
        if kind not in floors:
            floor = _products_of(operations.products, contestant.device)
            floors[kind] = _captured(floor) if contestant.device == "cuda" else floor
    made = 0

    def run(times: int) -> None:
        nonlocal made
        for _ in range(times):
            floors[kinds[made % len(kinds)]]()
            made += 1

    return run


def _products_of(shapes: Sequence[tuple[int, int, int, int]], device: str) -> Callable[[], None]:
    """Make a function that multiplies matrices of these shapes (batch, M, K, N), each into one output."""
    import torch

    calls = []
    for batch, m, k, n in shapes:
        left, right = torch.randn(batch, m, k, device=device), torch.randn(batch, k, n, device=device)
        calls.append((left, right, torch.empty(batch, m, n, device=device)))

    @torch.no_grad()
    def floor() -> None:
        for left, right, out in calls:
            torch.bmm(left, right, out=out)

    return floor


def _captured(function: Callable[[], None]) -> Callable[[], None]:
    import torch

    from rllib_hpo.learning.graph import CudaGraphCapture

    capture = CudaGraphCapture(torch.device("cuda", torch.cuda.current_device()))
    capture.warm_up(function)
    return capture(function)


def _repeat(function: Callable[[], None], times: int) -> None:
    for _ in range(times):
        function()


def measure(
    entrants: Sequence[Contestant],
    rounds: int,
    chunk: int,
    warm_up: int = WARM_UP,
    gpu_seconds: float = GPU_SECONDS,
) -> dict[Contestant, list[float]]:
    """Return milliseconds per update, one value per round: CPU time on a CPU, wall-clock time on a GPU."""
    runs = {entrant: make_updates(entrant) for entrant in entrants}
    chunks = {}
    for entrant, run in runs.items():
        run(max(chunk, warm_up))
        chunks[entrant] = chunk if entrant.device == "cpu" else chunk_for(gpu_seconds, run, chunk)
    times: dict[Contestant, list[float]] = {entrant: [] for entrant in entrants}
    for _ in range(rounds):
        for entrant, run in runs.items():
            times[entrant].append(timed(run, chunks[entrant], entrant.device))
    return times


def chunk_for(seconds: float, run: Callable[[int], None], least: int) -> int:
    """Return the number of updates that fill a chunk on a GPU."""
    return max(least, round(seconds * 1e3 / timed(run, least, "cuda")))


def timed(run: Callable[[int], None], chunk: int, device: str) -> float:
    if device == "cpu":
        began = time.process_time()
        run(chunk)
        return (time.process_time() - began) / chunk * 1e3
    import torch

    run(chunk)
    torch.cuda.synchronize()
    began = time.perf_counter()
    run(chunk)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / chunk * 1e3


def summarise(times: dict[Contestant, list[float]]) -> list[dict[str, Any]]:
    """Return per contestant medians and ratios: to its floor, to SAC in the same mode, to itself run eagerly."""
    rows = []
    for entrant, rounds in times.items():
        if entrant.mode == "floor":
            continue
        others = {
            "times_floor": Contestant(entrant.algorithm, entrant.size, entrant.device, "floor"),
            "times_sac": Contestant("sac", entrant.size, entrant.device, entrant.mode),
            "times_eager": Contestant(entrant.algorithm, entrant.size, entrant.device, "eager"),
        }
        median = sorted(rounds)[len(rounds) // 2]
        ratios = {
            name: asdict(Ratio.of(rounds, times[other])) for name, other in others.items() if other != entrant
        }
        rows.append(
            asdict(entrant)
            | {"ms_per_update": median, "updates_per_second": 1e3 / median, "rounds_ms": rounds}
            | {"floor_rounds_ms": times[others["times_floor"]], **ratios}
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the summary in Markdown."""
    lines = [
        "| update | ms | updates/s | x floor | x SAC | x eager |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        name = f"{row['algorithm']}, {row['size']}, {row['device']}, {row['mode']}"
        cells = [
            str(Ratio(**row[key])) if key in row else ""
            for key in ("times_floor", "times_sac", "times_eager")
        ]
        lines.append(
            f"| {name} | {row['ms_per_update']:.3g} | {row['updates_per_second']:.0f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def misses(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the targets on a CPU that were missed."""
    found = []
    for row in rows:
        limits = {
            "times_sac": AT_MOST_TIMES_SAC.get(row["algorithm"]),
            "times_floor": AT_MOST_TIMES_FLOOR.get(row["size"]),
        }
        for key, limit in limits.items():
            if (
                row["mode"] == "eager"
                and row["device"] == "cpu"
                and limit
                and key in row
                and row[key]["value"] > limit
            ):
                words = key.replace("_", " ")
                found.append(
                    f"{row['algorithm']}, {row['size']}: {row[key]['value']:.2f} {words}, more than {limit:g}"
                )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.update_speed", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--chunk", type=int, default=20, help="updates of one contestant in a round")
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON file (default results/update_speed.json, with --compiled update_speed_compiled.json)",
    )
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="compiled updates, too (needs a C++ compiler, and minutes the first time)",
    )
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="updates before the first that count")
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), help="default: all that there are")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    facts = machine.facts()
    devices = options.devices or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if "cuda" in devices:
        facts["gpu"] = torch.cuda.get_device_name()
    entrants = contestants(devices, compiled=options.compiled)
    rows = summarise(measure(entrants, options.rounds, options.chunk, options.warm_up))
    print(table(rows))
    for line in misses(rows):
        print(f"not reached: {line}")
    content = {"benchmark": "update_speed", "machine": facts, "batch_size": BATCH_SIZE}
    name = "update_speed_compiled.json" if options.compiled else "update_speed.json"
    machine.write_json(options.out or machine.RESULTS / name, content | {"updates": rows})


if __name__ == "__main__":
    main()

"""Record or compare the exact results of training: rows and final parameters of short runs.

    .venv/bin/python tests/data/bitwise.py record bitwise.json      # at a release, into tests/data/VERSION
    .venv/bin/python tests/data/bitwise.py compare 0.1.0            # where machine and libraries are the recorded ones
    .venv/bin/python tests/data/bitwise.py compare 0.1.0 sac/new    # only cases whose names contain a word

`bitwise.json` holds runs of 2,000 steps on Pendulum; `bitwise-tasks.json` holds runs of 3,000 steps on Hopper and
Pendulum, with the baselines of arXiv 2103.12020, Table II. Numbers are equal only on the same kind of CPU with the same
library versions, so those are recorded too.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

DATA = Path(__file__).resolve().parent
TABLE_ONE = "hopper"
SETTINGS = {"warmup_steps": 500, "evaluation_episodes": 2}
CONVENTIONAL = {"force_scale": "inverse_temperature", "force_gate": "none"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sac": ("sac", {}),
    "sac-auto": ("sac", {"alpha": "auto"}),
    "sac-nf": ("sac-nf", {}),
    "sac-hpo": ("sac-hpo", {}),
    "sac-hpo-tempering-penalty": (
        "sac-hpo",
        {"tempering": True, "tempering_allow_heating": True, "momentum_penalty": True},
    ),
    "sac-hpo-learned-step": ("sac-hpo", {"learn_step_size": True}),
}
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline-1": ("sac-hpo", CONVENTIONAL),
    "baseline-2": ("sac-hpo", {**CONVENTIONAL, "train_sampler": "gaussian"}),
    "baseline-3": ("sac-hpo", {"explore_sampler": "gaussian"}),
}


class Case(NamedTuple):
    """One run to record."""

    algorithm: str
    changes: dict[str, Any]
    stack: str
    task: str = "Pendulum-v1"
    steps: int = 2_000
    evaluation_every: int = 500


RECORDINGS: dict[str, dict[str, Case]] = {
    "bitwise.json": {
        f"{name}/{stack}": Case(*variant, stack)
        for stack in ("new", "old")
        for name, variant in VARIANTS.items()
    },
    "bitwise-tasks.json": {
        f"{name}/{stack}/{task}": Case(*variant, stack, task, 3_000, 1_000)
        for task in ("Pendulum-v1", "Hopper-v4")
        for stack in ("new", "old")
        for name, variant in {**VARIANTS, **BASELINES}.items()
    },
}
"""Cases by name, by the file that holds them."""
CASES = {name: case for cases in RECORDINGS.values() for name, case in cases.items()}
COLUMNS = (
    "env_steps",
    "updates",
    "returns",
    "return_mean",
    "return_std",
    "episode_length_mean",
    "diagnostics",
)
LIBRARIES = ("torch", "numpy", "gymnasium", "ray")


def machine() -> dict[str, str]:
    """Return what the numbers depend on: CPU, instruction set and libraries."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    about = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {key.strip(): value.strip() for key, value in about.items()}
    return {
        "cpu": found.get("model name", platform.processor()),
        "flags": hashlib.sha256(found.get("flags", "").encode()).hexdigest()[:16],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def train(case: str) -> dict[str, Any]:
    """Return rows and final parameters of one run."""
    from rllib_hpo.results import read_rows
    from rllib_hpo.rllib.algorithms import make_config
    from rllib_hpo.rllib.trained_policy import load_policy
    from rllib_hpo.tasks import find_task

    algorithm, changes, stack, task, steps, evaluation_every = CASES[case]
    settings = {**find_task(TABLE_ONE).settings_for(algorithm), **SETTINGS, **changes}
    settings["evaluation_every"] = evaluation_every
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(algorithm).api_stack(stack == "new", stack == "new").environment(task)
        config.training(**settings).debugging(seed=7, log_level="ERROR").results(results_dir=f"{folder}/rows")
        built = config.build_algo()
        try:
            while built.env_steps < steps:
                built.train()
            checkpoint = Path(built.save_to_path(f"{folder}/checkpoint"))
        finally:
            built.stop()
        rows = [
            {column: row[column] for column in COLUMNS} for row in read_rows(f"{folder}/rows").to_pylist()
        ]
        tensors = load_policy(checkpoint).actor.state_dict()
    return {
        "rows": rows,
        "parameters": {
            key: [
                hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()[:16],
                float(value.double().sum()),
            ]
            for key, value in sorted(tensors.items())
        },
    }


def differences(recorded: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """List differences; parameters are matched by value, so that they may be renamed."""
    found = []
    for before, now in zip(recorded["rows"], json.loads(json.dumps(measured["rows"])), strict=False):
        known = {**now, "diagnostics": dict(now["diagnostics"])}
        shared = {key: known["diagnostics"].get(key) for key in dict(before["diagnostics"])}
        if {**known, "diagnostics": shared} != {**before, "diagnostics": dict(before["diagnostics"])}:
            found.append(f"the row at {before['env_steps']} steps")
    if len(recorded["rows"]) > len(measured["rows"]):
        found.append("the number of rows")
    hashes = {digest for digest, _ in measured["parameters"].values()}
    found += [name for name, (digest, _) in recorded["parameters"].items() if digest not in hashes]
    return found


def load(release: str, name: str = "bitwise.json") -> dict[str, Any]:
    """Load the records of a release."""
    recorded: dict[str, Any] = json.loads((DATA / release / name).read_text())
    return recorded


def record(name: str) -> None:
    """Record the cases of one file."""
    target = DATA / version("rllib-hpo") / name
    if target.exists():
        raise SystemExit(f"error: {target} is there already; a release's numbers are recorded once.")
    cases = {}
    for case in RECORDINGS[name]:
        cases[case] = train(case)
        print(case, flush=True)
    lines = json.dumps(cases).replace('}, "', '},\n"').replace("]}, ", "]},\n")
    about = {"command": f".venv/bin/python tests/data/bitwise.py record {name}", "machine": machine()}
    target.write_text(f'{json.dumps(about, indent=1)[:-2]},\n "cases": {lines}\n}}\n')


def compare(release: str, words: list[str]) -> None:
    """Compare cases, those whose names contain one of `words`, with those of a release."""
    for name in RECORDINGS:
        known = load(release, name)
        if known["machine"] != machine():
            print(f"recorded on {known['machine']}, not on {machine()}: numbers may differ")
        for case, expected in known["cases"].items():
            if not words or any(word in case for word in words):
                print(case, differences(expected, train(case)) or "equal", flush=True)


def main(words: list[str]) -> None:
    """Record the cases of one file, or compare them with those of a release."""
    if len(words) == 2 and words[0] == "record" and words[1] in RECORDINGS:
        record(words[1])
    elif len(words) >= 2 and words[0] == "compare":
        compare(words[1], words[2:])
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])

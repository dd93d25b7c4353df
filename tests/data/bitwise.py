"""Records, or compares, the exact numbers that training gives: rows and final parameters of short runs.

    .venv/bin/python tests/data/bitwise.py record              # at a release: tests/data/VERSION/bitwise.json
    .venv/bin/python tests/data/bitwise.py compare 0.1.0       # where the machine and libraries are the recorded ones

Numbers are equal only on the same kind of CPU with the same library versions, so those are recorded too.
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
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

DATA = Path(__file__).resolve().parent
TASK, TABLE_ONE, STEPS = "Pendulum-v1", "hopper", 2_000
SETTINGS = {"warmup_steps": 500, "evaluation_every": 500, "evaluation_episodes": 2}
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
CASES = {f"{name}/{stack}": (name, stack) for stack in ("new", "old") for name in VARIANTS}
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
    """What the numbers depend on: CPU, instruction set and libraries."""
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
    """Rows and final parameters of one run."""
    from rllib_hpo.results import read_rows
    from rllib_hpo.rllib.config import make_config
    from rllib_hpo.rllib.trained_policy import load_policy
    from rllib_hpo.tasks import find_task

    name, stack = CASES[case]
    algorithm, changes = VARIANTS[name]
    settings = {**find_task(TABLE_ONE).settings_for(algorithm), **SETTINGS, **changes}
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(algorithm).api_stack(stack == "new", stack == "new").environment(TASK)
        config.training(**settings).debugging(seed=7, log_level="ERROR").results(results_dir=f"{folder}/rows")
        built = config.build_algo()
        try:
            while built.env_steps < STEPS:
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
    """What differs; parameters are told apart by their values, so that they may be renamed."""
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


def load(release: str) -> dict[str, Any]:
    """What was recorded at a release."""
    recorded: dict[str, Any] = json.loads((DATA / release / "bitwise.json").read_text())
    return recorded


def main(words: list[str]) -> None:
    """Records all cases, or compares them with those of a release."""
    if words == ["record"]:
        target = DATA / version("rllib-hpo") / "bitwise.json"
        if target.exists():
            raise SystemExit(f"error: {target} is there already; a release's numbers are recorded once.")
        recorded = {
            "command": ".venv/bin/python tests/data/bitwise.py record",
            "machine": machine(),
            "cases": {case: train(case) for case in CASES},
        }
        lines = json.dumps(recorded["cases"]).replace('}, "', '},\n"').replace("]}, ", "]},\n")
        about = json.dumps({key: recorded[key] for key in ("command", "machine")}, indent=1)
        target.write_text(f'{about[:-2]},\n "cases": {lines}\n}}\n')
        return
    if len(words) != 2 or words[0] != "compare":
        raise SystemExit(__doc__)
    known = load(words[1])
    if known["machine"] != machine():
        print(f"recorded on {known['machine']}, not on {machine()}: numbers may differ")
    for case, expected in known["cases"].items():
        print(case, differences(expected, train(case)) or "equal", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

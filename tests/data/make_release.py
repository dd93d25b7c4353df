"""Make `tests/data/VERSION`: small files as this version of rllib_hpo writes them, for later versions to read.

Run it once per release, in the release's own environment, and commit its output:

    .venv/bin/python tests/data/make_release.py            # into tests/data/VERSION, which must not exist

`release.tar.xz` holds runs, a sweep and exported policies; `expected.json` holds their content: noise-free actions on
fixed observations, steps and numbers of rows. A later version must not regenerate any of it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

DATA = Path(__file__).resolve().parent
ARCHIVE = "release.tar.xz"
PROGRAM = Path(sys.executable).with_name("rllib-hpo")
TASK = "Pendulum-v1"
SETTINGS = {
    "hidden_units": 8,
    "train_batch_size_per_learner": 16,
    "replay_capacity": 1_000,
    "warmup_steps": 40,
    "evaluation_every": 60,
    "evaluation_episodes": 2,
    "checkpoint_every": 60,
    "steps_per_iteration": 60,
    "diagnostics_interval": 20,
}
STEPS = 120
RUNS: dict[str, dict[str, Any]] = {
    "sac": {"algorithm": "sac", "alpha": "auto"},
    "sac-nf": {"algorithm": "sac-nf", "num_flows": 2},
    "sac-hpo": {
        "algorithm": "sac-hpo",
        "leapfrog_steps": 2,
        "leapfrog_units": 8,
        "step_size": 0.15,
        "momentum_std_explore": 1.5,
    },
    "sac-hpo-old": {
        "algorithm": "sac-hpo",
        "api_stack": "old",
        "leapfrog_steps": 2,
        "leapfrog_units": 8,
        "learn_step_size": True,
    },
    "wrapped": {
        "algorithm": "sac",
        "env_config": {
            "max_episode_steps": 50,
            "wrappers": [{"action-repeat": {"num_repeats": 2}}, "normalize-observation", "normalize-reward"],
        },
    },
}
EXPORTS = {"onnx": "policy.onnx", "torch-export": "policy.pt2", "safetensors": "policy.safetensors"}
SWEEP = {
    "sweep": "release",
    "description": "What a release leaves behind.",
    "algorithms": ["sac", "sac-hpo"],
    "tasks": [TASK],
    "seeds": "0",
    "settings": {"steps": STEPS, "env_config": {"max_episode_steps": 50}, **SETTINGS},
}
OBSERVATIONS = np.array([[1, 0, 0], [0, 1, 2], [-1, 0, -3], [0.6, -0.8, 0.5]], np.float32)
UNWANTED = ("tensorboard", "wandb", "tune", ".lock", "curve.png")
"""Names of files that nothing reads."""


def call(*words: str | Path, cwd: Path) -> None:
    """Run `rllib-hpo`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run([PROGRAM, *words], cwd=cwd, env=environment, check=True)


def train(name: str, folder: Path) -> None:
    """Train one run of `RUNS`, in folder/runs/NAME."""
    settings = {"env_config": {"max_episode_steps": 50}, **SETTINGS, **RUNS[name]}
    config = folder / f"{name}.json"
    config.write_text(json.dumps({"task": TASK, "steps": STEPS, **settings}))
    call(
        *("train", "--config", config, "--out", f"runs/{name}", "--wandb", "disabled"),
        *("--keep-checkpoints", "1"),
        cwd=folder,
    )
    config.unlink()


def noise_free(checkpoint: Path) -> list[list[float]]:
    """Return a checkpoint's noise-free actions in [-1, 1] on `OBSERVATIONS`."""
    from rllib_hpo.rllib.trained_policy import load_policy

    actions: list[list[float]] = load_policy(checkpoint).actor.act(torch.from_numpy(OBSERVATIONS)).tolist()
    return actions


def expected(folder: Path) -> dict[str, Any]:
    """Return the content of a release's folder, as this version reads it."""
    from rllib_hpo.results import read_rows

    return {
        "commit": subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=DATA, text=True).strip(),
        "env_steps": STEPS,
        "runs": {
            name: {
                "rows": read_rows(folder / "runs" / name).num_rows,
                "actions": noise_free(folder / "runs" / name / "checkpoints" / "last"),
            }
            for name in RUNS
        },
        "sweep": {"rows": read_rows(folder / "sweep").num_rows},
    }


def clean(folder: Path) -> None:
    """Remove files that nothing reads, and names of the machine's folders."""
    for path in [path for name in UNWANTED for path in folder.rglob(name)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def main() -> None:
    """Make the folder of this version."""
    target = DATA / importlib.metadata.version("rllib-hpo")
    if target.exists():
        raise SystemExit(f"error: {target} is there already; a release's data are made once.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "release"
        folder.mkdir()
        for name in RUNS:
            train(name, folder)
        (folder / "sweep.yaml").write_text(json.dumps(SWEEP, indent=1))
        call("sweep", "sweep.yaml", "--out", "sweep", "--wandb", "disabled", cwd=folder)
        (folder / "exported").mkdir()
        for file_format, file in EXPORTS.items():
            call("export", "runs/sac-hpo", "--format", file_format, "--out", f"exported/{file}", cwd=folder)
        clean(folder)
        target.mkdir()
        (target / "expected.json").write_text(json.dumps(expected(folder), indent=1) + "\n")
        with tarfile.open(target / ARCHIVE, "w:xz", preset=9) as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name)


if __name__ == "__main__":
    main()

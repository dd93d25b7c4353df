"""Convert a checkpoint of one API stack to the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rllib_hpo.errors import UserError
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.algorithms import make_config
from rllib_hpo.rllib.checkpointing import api_stack, follow, import_required_modules, verify
from rllib_hpo.settings import complete_settings


def convert(checkpoint: Path, out: Path) -> str:
    """Convert `checkpoint` to the other API stack and write it to `out`.

    Networks, targets, optimizers, temperature, replay, counters and the random streams of learning are copied, so
    noise-free actions are bitwise equal. Exploration continues with new streams and new episodes. Workers are neither
    started nor recorded: the result is a run in one process.

    Returns:
        The API stack of `out`, "new" or "old".

    Raises:
        UserError: If `out` exists.
        CheckpointError: If the checkpoint is incomplete or damaged.
    """
    if out.exists():
        raise UserError(f"{out} already exists; choose another --out.")
    checkpoint = follow(checkpoint)
    manifest = verify(checkpoint)
    import_required_modules(manifest, checkpoint)
    run, stack = manifest["config"], api_stack(manifest)
    other = "new" if stack == "old" else "old"
    imports = manifest.get("imports", ())
    with _built(run, stack, imports) as source, _built(run, other, imports) as target:
        source.restore_from_path(checkpoint.absolute())
        target.take_over(source)
        target.save_to_path(out.absolute())
    return other


@contextmanager
def _built(run: Mapping[str, Any], stack: str, imports: Sequence[str]) -> Iterator[ActorCriticAlgorithm]:
    """Build the algorithm of a result of `ActorCriticAlgorithm.run_config` on `stack`, in this process."""
    config = make_config(run["algorithm"]).api_stack(stack == "new", stack == "new")
    config._accepts_idle_settings = True  # as did the version that saved it
    hyperparameters = complete_settings(config.settings_class, run)
    config.environment(run["env"], env_config=run["env_config"], imports=imports).training(**hyperparameters)
    config.debugging(seed=run["seed"], log_level="ERROR").results(task=run["task"])
    algorithm: ActorCriticAlgorithm = config.build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()

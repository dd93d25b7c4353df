"""Keep a run's policies as small files at regular steps, since checkpoints are too large to keep."""

from __future__ import annotations

from pathlib import Path

from rllib_hpo.deployment import check_safetensors, to_safetensors
from rllib_hpo.experiments.storage.export import deployed
from rllib_hpo.results import write_atomically
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.trained_policy import newest_policy

FOLDER = "policies"


class KeptPolicies:
    """Write RUN/policies/step-0000010000.safetensors and so on, as `rllib-hpo export --format safetensors` does.

    Args:
        run_dir: The run's directory.
        every: Environment steps between two of them; 0 keeps none.

    Raises:
        UserError: If the package safetensors is needed and missing.
    """

    def __init__(self, run_dir: Path, every: int) -> None:
        self._directory, self._every = run_dir / FOLDER, every
        if every:
            check_safetensors()

    def save_if_due(self, algorithm: ActorCriticAlgorithm) -> Path | None:
        """Write the current policy if its step is one of those kept, replacing one of an earlier session.

        Raises:
            StorageError: If the disk is full; no half file is left.
        """
        env_steps = algorithm.env_steps
        if not self._every or env_steps % self._every:
            return None
        content = to_safetensors(deployed(newest_policy(algorithm)))
        return write_atomically(self._directory / f"step-{env_steps:010d}.safetensors", content)


def kept_up_to(run_dir: Path, env_steps: int) -> list[Path]:
    """Policy files of a run up to a step, oldest first."""
    paths = sorted((run_dir / FOLDER).glob("step-*.safetensors"))
    return [path for path in paths if int(path.stem.removeprefix("step-")) <= env_steps]

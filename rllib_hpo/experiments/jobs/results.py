"""Find and fetch the results of a sweep on a cluster."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from rllib_hpo.errors import CheckpointError, UserError
from rllib_hpo.experiments.jobs.client import Job
from rllib_hpo.experiments.storage.folder import Storage, rows_from
from rllib_hpo.experiments.storage.mirror import Mirror
from rllib_hpo.experiments.sweeps.plan import SweepFiles, fetch_sweep, read_plan


def reachable_rows(job: Job) -> str | None:
    """The readable rows of a job: its storage, or its directory if this is the head; otherwise None."""
    if job.storage:
        storage = Storage.open(job.storage)
        return job.storage if storage.local is None or storage.local.is_dir() else None
    out = Path(job.out).expanduser() if job.out else None
    return str(out) if out is not None and out.is_dir() else None


def elsewhere(job: Job) -> str:
    """A sentence that says how to reach results which this machine cannot read."""
    place = PurePosixPath(job.out or job.storage)
    where = (
        f"on {job.storage}, which this machine cannot access" if job.storage else f"in {job.out} on the head"
    )
    return (
        f"The results of {job.job_id} are {where}; copy them with `ray rsync-down CLUSTER.yaml {place}/results/ "
        f"{job.sweep}/`, or run sweeps with --storage s3://bucket/prefix."
    )


def fetch(job: Job, directory: Path, checkpoints: bool = False) -> int:
    """Download a sweep's rows from its storage and, on request, the newest intact checkpoint of each trial.

    Returns:
        How many checkpoints there were.

    Raises:
        UserError: If it has no storage that can be reached from here.
    """
    if not job.storage or reachable_rows(job) is None:
        raise UserError(elsewhere(job))
    storage, files = Storage.open(job.storage), SweepFiles(directory)
    fetch_sweep(files, storage)
    rows_from(storage.child("results"), directory)
    if not checkpoints:
        return 0
    fetched = 0
    for name in read_plan(files)["trials"]:
        with storage.reached():
            if storage.read_if_exists(f"trials/{name}/trial_id") is None:  # it has not begun
                continue
        _fetch_checkpoint(Mirror(storage, files.trial(name).directory, files.results, timeout_s=60))
        fetched += any(files.trial(name).directory.glob("checkpoints/step-*"))
    return fetched


def _fetch_checkpoint(mirror: Mirror, attempts: int = 3) -> None:
    """Download a trial's newest checkpoint; retry if the running trial replaces it meanwhile."""
    for attempt in range(attempts):
        try:
            mirror.identify()
            mirror.restore()
        except CheckpointError:
            if attempt == attempts - 1:
                raise
        else:
            return

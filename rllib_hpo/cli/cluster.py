"""Find problems of cluster files, this machine or a cluster: `rllib-hpo cluster check` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rllib_hpo.cli.console import console
from rllib_hpo.cli.options import path_argument, path_option
from rllib_hpo.errors import SettingsError, UserError


def check_cluster(
    files: Annotated[list[Path], path_argument(help="Files of `ray up`, KubeRay or Slurm.")],
    crds: Annotated[
        Path | None,
        path_option(
            help="Directory of KubeRay's own definitions, ray.io_rayclusters.yaml and ray.io_rayjobs.yaml."
        ),
    ] = None,
    sweep_file: Annotated[
        Path | None, path_option("--sweep", help="Plan this sweep's trials onto each cluster, too.")
    ] = None,
    num_env_runners: Annotated[int, typer.Option(min=0, help="Remote runners of every trial.")] = 0,
    gpus_per_learner: Annotated[
        float, typer.Option(min=0, max=1, help="GPU, or a share of one, for every trial.")
    ] = 0.0,
) -> None:
    """Say what is wrong with files of clusters, with line and remedy, without a network. Exit code 2 if anything."""
    from rllib_hpo.experiments.cluster.check import check_file

    changes = {"num_env_runners": num_env_runners, "num_gpus_per_learner": gpus_per_learner}
    found = 0
    for file in files:
        problems = check_file(file, crds)
        planned = "ok"
        if sweep_file is not None and not problems:
            planned = _plan_sweep(sweep_file, changes, file)
        for problem in problems or [f"{file}: {planned}"]:
            console.print(problem, soft_wrap=True)
        found += len(problems)
    if found:
        raise UserError(f"{found} problem{'s' if found > 1 else ''} in cluster files.")


def _plan_sweep(sweep_file: Path, changes: dict[str, Any], cluster: Path) -> str:
    """Describe how many trials of a sweep a cluster runs at a time.

    Raises:
        SettingsError: If it could never run one of them.
    """
    from rllib_hpo.experiments.cluster.check.placement import read_machines
    from rllib_hpo.experiments.config.sweep_config import read_sweep
    from rllib_hpo.experiments.sweeps.resources import describe, resources
    from rllib_hpo.rllib.machines import trials_at_a_time

    machines = read_machines(cluster)
    counts = []
    for trial in read_sweep(sweep_file, changes=changes).trials:
        request = resources(trial.config, machines.keep_rollouts_apart)
        counts.append(trials_at_a_time(request.bundles, machines))
        if not counts[-1]:
            raise SettingsError(
                f"{cluster}: {trial.name} asks for {describe(request)}, which never fit; ask for less."
            )
    return f"ok; {min(counts)} trials of {sweep_file} at a time, once it has grown"


def doctor(
    files: Annotated[
        list[Path] | None,
        path_argument(help="Sweep files, search files or files of clusters, to look at too."),
    ] = None,
    address: Annotated[str | None, typer.Option(help="The dashboard of a cluster to look at too.")] = None,
    shared: Annotated[
        str, typer.Option(metavar="DIR", help="With --address: a directory that all its nodes should share.")
    ] = "~/runs",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where runs are to go: says what its file system can do.")
    ] = Path("runs"),
) -> None:
    """Say what is wrong with this installation, or with a cluster. Exit code 2 if anything is."""
    from rllib_hpo.experiments.jobs import doctor as checks

    found = 0
    for check in checks.all_checks(files or [], address, shared, out):
        found += check.state == "problem"
        console.print(checks.line(check), soft_wrap=True)
    if found:
        raise UserError(f"{found} problem{'s' if found > 1 else ''}.")

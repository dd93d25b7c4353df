"""Write and check files of clusters: `rllib-hpo cluster init`, `cluster check` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rllib_hpo.cli.console import console
from rllib_hpo.cli.options import path_argument, path_option, sweep_file
from rllib_hpo.errors import SettingsError, UserError


def init_cluster(
    provider: Annotated[
        Literal["aws", "gcp", "local", "kuberay", "slurm"],
        typer.Option(help="Where the cluster is to be; `local` means machines of your own, over ssh."),
    ],
    out: Annotated[Path, path_option(help="A new directory for the files.")] = Path("cluster"),
) -> None:
    """Write the files of a cluster, to be edited, with the code of this installation for its nodes."""
    from rllib_hpo.experiments.cluster.templates import shown_path, write_templates

    template = write_templates(provider, out.absolute())
    shown = shown_path(out.absolute())
    console.print(f"Edit:           {shown}/{template.files[0]}", soft_wrap=True)
    console.print(f"Read:           {shown}/README.md", soft_wrap=True)
    console.print("Then:")
    for step in template.next_steps:
        console.print(f"  {step.format(out=shown)}", soft_wrap=True, markup=False)


def check_cluster(
    files: Annotated[list[Path], path_argument(help="Cluster files for `ray up`, KubeRay or Slurm.")],
    crds: Annotated[
        Path | None,
        path_option(help="Directory with KubeRay's CRDs, ray.io_rayclusters.yaml and ray.io_rayjobs.yaml."),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(
            parser=sweep_file,
            metavar="SWEEP",
            help="Also check whether each cluster can run the trials of this sweep (a file or a name), and how many "
            "at a time.",
        ),
    ] = None,
    num_env_runners: Annotated[int, typer.Option(min=0, help="Remote environment runners per trial.")] = 0,
    gpus_per_learner: Annotated[
        float, typer.Option(min=0, max=1, help="GPUs per trial: 1, or a fraction.")
    ] = 0.0,
) -> None:
    """Report problems in cluster files, each with its line and remedy, offline. Exit code 2 if there are any."""
    from rllib_hpo.experiments.cluster.check import check_file

    changes = {"num_env_runners": num_env_runners, "num_gpus_per_learner": gpus_per_learner}
    found = 0
    for file in files:
        problems = check_file(file, crds)
        planned = "ok"
        if sweep is not None and not problems:
            planned = _plan_sweep(sweep, changes, file)
        for problem in problems or [f"{file}: {planned}"]:
            console.print(problem, soft_wrap=True)
        found += len(problems)
    if found:
        raise UserError(f"{found} problem{'s' if found > 1 else ''} in cluster files.")


def _plan_sweep(sweep: Path, changes: dict[str, Any], cluster: Path) -> str:
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
    for trial in read_sweep(sweep, changes=changes).trials:
        request = resources(trial.config, machines.keep_rollouts_apart)
        counts.append(trials_at_a_time(request.bundles, machines))
        if not counts[-1]:
            raise SettingsError(
                f"{cluster}: {trial.name} requests {describe(request)}, which this cluster never has; request less."
            )
    return f"ok; runs {min(counts)} trials of {sweep} at a time, once fully scaled up"


def doctor(
    files: Annotated[
        list[Path] | None, path_argument(help="Sweep files, search files or cluster files to check as well.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Dashboard address of a cluster to check as well.")
    ] = None,
    shared: Annotated[
        str, typer.Option(metavar="DIR", help="With --address: directory that all nodes should share.")
    ] = "~/runs",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Directory for runs, whose file system is checked.")
    ] = Path("runs"),
) -> None:
    """Report problems of this installation or of a cluster. Exit code 2 if there are any."""
    from rllib_hpo.experiments.jobs import doctor as checks

    found = 0
    for check in checks.all_checks(files or [], address, shared, out):
        found += check.state == "problem"
        console.print(checks.line(check), soft_wrap=True)
    if found:
        raise UserError(f"{found} problem{'s' if found > 1 else ''}.")

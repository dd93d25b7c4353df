"""Check the file of a cluster for mistakes, before anything is started and without a network.

`ray up` files go through Ray's own schema, KubeRay's through one of its API, Slurm's through `bash -n`; all of them
through the checks that those leave out: who could get in, what would be spent, which Ray would run.
"""

from rllib_hpo.experiments.cluster.check.files import check_file

__all__ = ["check_file"]

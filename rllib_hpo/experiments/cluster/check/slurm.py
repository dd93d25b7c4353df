"""Check batch files of Slurm: `bash -n`, and access."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from rllib_hpo.errors import UserError
from rllib_hpo.experiments.cluster.check.findings import (
    DASHBOARD_HOST,
    LOCALHOST,
    TOKEN_MODE,
    Findings,
    without_comment,
)

DIRECTIVE = re.compile(r"^#SBATCH\s+(?P<options>.*)$")
OPTIONS = frozenset(
    """account array begin chdir cluster-constraint clusters comment constraint container cores-per-socket
    cpus-per-gpu cpus-per-task deadline delay-boot dependency distribution error exclude exclusive export
    extra-node-info get-user-env gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags
    hint hold ignore-pbs input job-name kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind
    mem-per-cpu mem-per-gpu mincpus network nice no-kill no-requeue nodefile nodelist nodes ntasks ntasks-per-core
    ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output overcommit oversubscribe parsable partition
    power prefer priority profile propagate qos quiet reboot requeue reservation segment signal sockets-per-node
    spread-job switches test-only thread-spec threads-per-core time time-min tmp tres-per-task uid use-min-nodes
    verbose wait wait-all-nodes wckey wrap""".split()
)


def check(path: Path, text: str, findings: Findings) -> None:
    """Check a batch file."""
    _check_bash(path, findings)
    _check_directives(text, findings)
    lines = [without_comment(line) for line in text.splitlines()]
    starts = [number for number, line in enumerate(lines, 1) if re.search(r"\bray start\b", line)]
    if not any(re.match(r"\s*set\s+-[a-z]*e[a-z]*u?[a-z]*o\s+pipefail", line) for line in lines):
        findings.add(
            1, "the script continues after a command has failed", "begin it with `set -euo pipefail`"
        )
    token = next((number for number, line in enumerate(lines, 1) if TOKEN_MODE.search(line)), None)
    if starts and (token is None or token > starts[0]):
        findings.add(
            starts[0],
            "Ray is started without RAY_AUTH_MODE=token, so other users of the node can run code as you",
            "write `export RAY_AUTH_MODE=token` above it",
        )
    if token is not None and not any("chmod 600" in line and "auth_token" in line for line in lines):
        findings.add(
            token, "no command makes the token file private", "add `chmod 600 ~/.ray/auth_token` below it"
        )
    for number, line in enumerate(lines, 1):
        match = DASHBOARD_HOST.search(line)
        if match and match[1] not in LOCALHOST:
            findings.add(
                number,
                f"the dashboard listens on {match[1]}",
                "write --dashboard-host=127.0.0.1, and use `ssh -L`",
            )


def directives(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, name and value of every long #SBATCH option; `hetjob` begins the next component."""
    for number, line in enumerate(text.splitlines(), 1):
        match = DIRECTIVE.match(line)
        for word in without_comment(match["options"]).split() if match else ():
            name, _, value = word.partition("=")
            if name == "hetjob" or name.startswith("--"):
                yield number, name.removeprefix("--"), value


def _check_bash(path: Path, findings: Findings) -> None:
    bash = shutil.which("bash")
    if bash is None:
        raise UserError("Cannot check the batch file, since bash is not installed.")
    done = subprocess.run([bash, "-n", str(path)], capture_output=True, text=True, check=False)
    for message in done.stderr.splitlines()[:1]:
        where = re.search(r"line (\d+): (.*)", message)
        if where:
            findings.add(int(where[1]), "bash cannot parse this", f"it says: {where[2]}")


def _check_directives(text: str, findings: Findings) -> None:
    lines = text.splitlines()
    # Slurm reads none of them below the first command.
    first = next(
        (i for i, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")), len(lines) + 1
    )
    for number, name, _ in directives(text):
        if number > first:
            findings.add(
                number, "Slurm does not read #SBATCH below the first command", f"move it above line {first}"
            )
        if name not in OPTIONS | {"hetjob"}:
            findings.unknown(number, name, "#SBATCH", OPTIONS)
    timed = any(re.match(r"#SBATCH\s.*(?:--time[=\s]|-t\s)", line) for line in lines)
    if not timed:
        findings.add(1, "the time limit is missing", "add `#SBATCH --time=24:00:00`")

"""What is sent to run a sweep on a cluster: its command, the files and modules beside it, and where it runs."""

from __future__ import annotations

import importlib.metadata
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rllib_hpo
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.storage.folder import Storage, check_no_secrets, is_uri

STOP_TIMEOUT_S = 120
"""How long a job that is stopped may take for the checkpoints of its running trials."""
OTHER_VERSION = 3
"""The exit code of a job that found another version of this package, or none, on the cluster."""


_PACKAGE = Path(rllib_hpo.__file__).parent
_GUARD = (
    "import importlib.metadata as m, sys; "
    "there = next((d.version for d in m.distributions(name='rllib-hpo')), 'none'); "
    f"sys.exit(there != sys.argv[1] and (print('rllib_hpo on the cluster:', there) or {OTHER_VERSION}))"
)


class Request(NamedTuple):
    """A sweep to send."""

    name: str
    words: tuple[str, ...]
    """Of `rllib-hpo sweep`, but for --out."""
    files: Mapping[str, Path]
    """Files and folders to send along, by their name there."""
    storage: str = ""
    out: str = ""
    """On the cluster; where it is empty, one named after the job."""
    resumes: bool = False
    """Whether it goes on with a sweep; one on a path is told by that, and takes no --out."""
    pip: bool = False
    """Whether to send this package too and have its dependencies installed."""


def shipped(source: Path | None, imports: Sequence[str]) -> dict[str, Path]:
    """What is sent: the sweep file, and the modules of --import that lie beside it or here as files or folders."""
    files = {} if source is None else {source.name: source}
    for module in imports:
        top = module.partition(".")[0]
        for folder in ([] if source is None else [source.parent]) + [Path()]:
            found = next((p for p in (folder / f"{top}.py", folder / top) if p.exists()), None)
            if found is not None:
                files[found.name] = found
                break
    return files


def check_paths(storage: str | None, out: str | None) -> None:
    """Refuses places that mean nothing on another machine, or hold a secret.

    Raises:
        UserError: Naming the option.
    """
    for option, place in (("--storage", storage), ("--out", out)):
        if place is None:
            continue
        check_no_secrets(place)
        if not (option == "--storage" and is_uri(place)) and not place.startswith(("/", "~/")):
            raise UserError(f"{option} {place} must be a path from / on, for it is one of the cluster.")


def below(storage: str, name: str) -> str:
    """URI/NAME; storage itself is the cluster's to reach, with credentials that may not be here."""
    return Storage(storage, None, "").child(name).uri


def entrypoint(request: Request, out: str) -> str:
    """The job's command, for a shell there."""
    words = [*request.words, *([] if request.resumes and not request.storage else ["--out", out])]
    command = " ".join(["python", "-m", "rllib_hpo.cli", "sweep", *map(quoted, words)])
    if request.pip:  # then the package is the one sent
        return command
    return f"python -c {shlex.quote(_GUARD)} {rllib_hpo.__version__} && {command}"


def quoted(word: str) -> str:
    """A word for the shell, which is to put the home directory there for a leading ~."""
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") and word != "~/" else shlex.quote(word)


def pack(request: Request, folder: Path) -> None:
    """Puts all that is sent into a folder: the job's working directory there."""
    for name, path in {**request.files, **({_PACKAGE.name: _PACKAGE} if request.pip else {})}.items():
        _copy(path, folder / name)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    else:
        shutil.copyfile(source, target)


def runtime_env(folder: str, pip: bool) -> dict[str, Any]:
    """Where a job runs: in what is in `folder`, and with what this package needs if `pip`."""
    # A stop lets the running trials save, as Ctrl-C does; by itself Ray gives a job three seconds.
    environment = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_TIMEOUT_S)}
    return {
        "working_dir": folder,
        "env_vars": environment,
        **({"pip": {"packages": pins(), "pip_check": False}} if pip else {}),
    }


def pins() -> list[str]:
    """What this package needs, in the versions installed here; Ray is the cluster's own."""
    from packaging.requirements import Requirement

    found = []
    for line in importlib.metadata.requires("rllib-hpo") or []:
        needed = Requirement(line)
        if needed.name != "ray" and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            extras = f"[{','.join(sorted(needed.extras))}]" if needed.extras else ""
            # A build such as +cpu is in no index.
            version = importlib.metadata.version(needed.name).partition("+")[0]
            found.append(f"{needed.name}{extras}=={version}")
    return sorted(found)

"""Pack a sweep or search for a cluster: its command, its files and modules, and its runtime environment."""

from __future__ import annotations

import importlib.metadata
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import rllib_hpo
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.storage.folder import Storage, check_no_secrets, is_uri

STOP_TIMEOUT_S = 120
"""Seconds that a stopped job gets for the checkpoints of its running trials."""
OTHER_VERSION = 3
"""Exit code of a job if the cluster has another version of this package, or none."""


_PACKAGE = Path(rllib_hpo.__file__).parent
_GUARD = (
    "import importlib.metadata as m, sys; "
    "there = next((d.version for d in m.distributions(name='rllib-hpo')), 'none'); "
    f"sys.exit(there != sys.argv[1] and (print('rllib_hpo on the cluster:', there) or {OTHER_VERSION}))"
)


class Request(NamedTuple):
    """A sweep or search to submit."""

    name: str
    words: tuple[str, ...]
    """Arguments of `rllib-hpo sweep` or `tune`, except --out."""
    files: Mapping[str, Path]
    """Files and folders to send, by their name on the cluster."""
    storage: str = ""
    out: str = ""
    """Directory on the cluster; "" for one named after the job."""
    resumes: bool = False
    """Whether it resumes a sweep; one resumed by its path takes no --out."""
    pip: bool = False
    """Whether to send this package, too, and to install its dependencies."""
    command: Literal["sweep", "tune"] = "sweep"

    @property
    def extra(self) -> str:
        """The optional part of this package that the command needs; "" for none."""
        return "search" if self.command == "tune" else ""


def shipped(source: Path | None, imports: Sequence[str]) -> dict[str, Path]:
    """Files to send: the sweep or search file, and the modules of --import beside it or in the working directory."""
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
    """Check that storage and directory are valid on another machine and hold no secret.

    Raises:
        UserError: Naming the option.
    """
    for option, place in (("--storage", storage), ("--out", out)):
        if place is None:
            continue
        check_no_secrets(place)
        if not (option == "--storage" and is_uri(place)) and not place.startswith(("/", "~/")):
            raise UserError(f"{option} {place} must be an absolute path, since it is a path on the cluster.")


def below(storage: str, name: str) -> str:
    """URI/NAME, without access to storage, whose credentials only the cluster may have."""
    return Storage(storage, None, "").child(name).uri


def entrypoint(request: Request, out: str) -> str:
    """The job's command for the cluster's shell."""
    words = [*request.words, *([] if request.resumes and not request.storage else ["--out", out])]
    command = " ".join(["python", "-m", "rllib_hpo.cli", request.command, *map(quoted, words)])
    if request.pip:  # then the package is the one sent
        return command
    return f"python -c {shlex.quote(_GUARD)} {rllib_hpo.__version__} && {command}"


def quoted(word: str) -> str:
    """Quote a word for the shell, except for a leading ~, which it expands."""
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") and word != "~/" else shlex.quote(word)


def pack(request: Request, folder: Path) -> None:
    """Copy all files to send into a folder, the job's working directory."""
    for name, path in {**request.files, **({_PACKAGE.name: _PACKAGE} if request.pip else {})}.items():
        _copy(path, folder / name)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    else:
        shutil.copyfile(source, target)


def runtime_env(folder: str, pip: bool, extra: str = "") -> dict[str, Any]:
    """Runtime environment of a job: `folder`, and this package's dependencies if `pip`, with those of an extra."""
    # A stop lets the running trials save, as Ctrl-C does; by itself Ray gives a job three seconds.
    environment = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_TIMEOUT_S)}
    return {
        "working_dir": folder,
        "env_vars": environment,
        **({"pip": {"packages": pins(extra), "pip_check": False}} if pip else {}),
    }


def pins(extra: str = "") -> list[str]:
    """Dependencies of this package and of one of its extras in the versions installed here, without Ray."""
    from packaging.requirements import Requirement

    found = []
    for line in importlib.metadata.requires("rllib-hpo") or []:
        needed = Requirement(line)
        if needed.name != "ray" and (needed.marker is None or needed.marker.evaluate({"extra": extra})):
            extras = f"[{','.join(sorted(needed.extras))}]" if needed.extras else ""
            # A build such as +cpu is in no index.
            version = importlib.metadata.version(needed.name).partition("+")[0]
            found.append(f"{needed.name}{extras}=={version}")
    return sorted(found)

"""Collect the findings of a check; check text for secrets, versions and open dashboards."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from rllib_hpo.documents import Place, YamlLines
from rllib_hpo.errors import nearest, shown

RAY_VERSION = importlib.metadata.version("ray")
LOCALHOST = ("127.0.0.1", "localhost", "::1")
TOKEN_MODE = re.compile(r"\bRAY_AUTH_MODE=[\"']?token\b")
DASHBOARD_HOST = re.compile(r"--dashboard-host[=\s]+[\"']?([^\s\"';]+)")
MAKE_TOKEN = "make it with `ray get-auth-token --generate >/dev/null; chmod 600 ~/.ray/auth_token`"

_RAY_PINS = re.compile(
    r"\bray(?:\[[^\]]*\])?\s*==\s*(?P<pip>[\w.]+)"
    r"|\bray\.__version__ == [\"']?(?P<asserted>[\w.]+)"
    r"|rayproject/ray(?:-ml)?:(?P<image>[\w.]+)"
    r"|/ray-(?P<wheel>\d[\w.]*)-cp"
    r"|[\"']?\brayVersion[\"']?:\s*[\"']?(?P<kuberay>[\w.]+)"
)
_NAMED_SECRET = re.compile(
    r"(?P<name>\b\w*(?:api_?key|access_?key|secret|token|password|passwd|credentials?)\w*)[\"']?\s*[=:]\s*[\"']?"
    r"(?P<value>[^\s\"'#,;}]{8,})",
    re.IGNORECASE,
)
_SECRETS = (
    ("a W&B key", re.compile(r"\bWANDB_API_KEY[\"']?\s*[=:]\s*[\"']?[^\s\"'${#]")),
    ("an AWS access key", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
    ("a GitHub token", re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}")),
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{30,}")),
    ("a Google API key", re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b")),
    ("a signed token", re.compile(r"\beyJ[\w-]{10,}\.[\w-]{10,}\.")),
    # Ray's tokens and W&B's keys; a commit stands behind an @, a digest behind a colon.
    ("what looks like a key", re.compile(r"(?<![@:/\w])(?:[0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})(?!\w)")),
)
_NOT_SECRET = re.compile(r"^(?:[~/$<{.]|(?:true|false|null|none|required|optional|disabled)$)", re.IGNORECASE)


def mapping(value: Any) -> Mapping[str, Any]:
    """A section of a file; an empty one if it is no mapping, which the schema reports."""
    return value if isinstance(value, Mapping) else {}


class Findings:
    """The mistakes in a file: sentences with their lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, what: str, remedy: str) -> None:
        """Add a mistake on a line, and its remedy."""
        if (line, what) not in {(other, text.partition("; ")[0]) for other, text in self._found}:
            self._found.append((line, f"{what}; {remedy}"))

    def unknown(self, line: int, name: str, where: str, valid: Iterable[str]) -> None:
        """Add an unknown key, with the nearest valid one."""
        allowed = sorted(valid)
        close = nearest(name, allowed)
        remedy = f"did you mean '{close}'?" if close else f"valid: {', '.join(allowed)}."
        self.add(line, f"'{name}' is not a key of {where}", remedy)

    def sentences(self) -> list[str]:
        """All sentences, in the order of lines."""
        ended = [(line, text if text[-1] in ".?" else f"{text}.") for line, text in sorted(self._found)]
        return [f"{self.path}, line {line}: {text}" for line, text in ended]

    def __len__(self) -> int:
        return len(self._found)


def check_text(text: str, findings: Findings) -> None:
    """Check single lines for secrets (in comments too) and for the version of Ray that they install."""
    pinned = False
    for number, line in enumerate(text.splitlines(), 1):
        _check_secret(line, number, findings)
        code = without_comment(line)
        for match in _RAY_PINS.finditer(code):
            pinned = True
            version = next(group for group in match.groups() if group)
            if version != RAY_VERSION and not version.startswith(f"{RAY_VERSION}-"):
                findings.add(
                    number, f"Ray {version} is not the {RAY_VERSION} of this package", f"write {RAY_VERSION}"
                )
        if re.search(r"\bray get-auth-token\b", code) and ">" not in code:
            findings.add(
                number, "`ray get-auth-token` prints the token into a log", "end it with `>/dev/null`"
            )
    if not pinned:
        findings.add(
            1,
            "no version of Ray is pinned",
            f"pin ray=={RAY_VERSION}: nodes with other versions cannot join the cluster",
        )


def _check_secret(line: str, number: int, findings: Findings) -> None:
    remedy = (
        "keep it out of files: ~/.netrc on the head (mode 0600), an instance role, or a Kubernetes Secret"
    )
    for what, pattern in _SECRETS:
        if pattern.search(line):
            findings.add(number, f"{what} is written here in plain text", remedy)
            return
    match = _NAMED_SECRET.search(without_comment(line))
    if match and not _NOT_SECRET.match(match["value"]) and re.search(r"\d", match["value"]):
        findings.add(number, f"the value of {match['name']} looks like a secret", remedy)


def without_comment(line: str) -> str:
    """A line of YAML or shell up to its comment."""
    return re.split(r"(?:^|\s)#", line, maxsplit=1)[0]


def check_schema(
    document: YamlLines, values: Any, schema: dict[str, Any], where: str, findings: Findings
) -> None:
    """Add every violation of a JSON schema, at its line."""
    for error in Draft202012Validator(schema).iter_errors(values):
        _add_violation(document, error, where, findings)


def _add_violation(document: YamlLines, error: ValidationError, where: str, findings: Findings) -> None:
    place: Place = tuple(error.absolute_path)
    inside = ".".join(str(part) for part in (where, *place) if part != "") or "a `ray up` file"
    if error.validator == "additionalProperties" and error.validator_value is False:
        valid = set(error.schema.get("properties", {}))
        for key in sorted(set(error.instance) - valid, key=str):
            findings.unknown(document.line((*place, key)), str(key), inside, valid)
    elif error.validator == "required":
        for key in error.validator_value:
            if key not in error.instance:
                findings.add(document.line(place), f"{inside} has no '{key}'", f"add '{key}'")
    else:
        findings.add(document.line(place), f"{inside} is {shown(error.instance, 80)}", _wanted(error))


def _wanted(error: ValidationError) -> str:
    value = error.validator_value
    if error.validator == "type":
        kinds = value if isinstance(value, list) else [value]
        return f"it must be of type {' or '.join(kinds)}"
    if error.validator == "enum":
        close = nearest(str(error.instance), [str(one) for one in value])
        return f"did you mean '{close}'?" if close else f"it must be one of {', '.join(map(str, value))}"
    if error.validator == "const":
        return f"it must be {value}"
    return f"fix it: {error.message[:120]}"

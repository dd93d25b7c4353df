"""Check files of `ray up`: Ray's own schema, and what it omits."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.autoscaler

from rllib_hpo.documents import Place, YamlLines
from rllib_hpo.errors import nearest
from rllib_hpo.experiments.cluster.check.findings import (
    DASHBOARD_HOST,
    LOCALHOST,
    MAKE_TOKEN,
    TOKEN_MODE,
    Findings,
    check_schema,
    mapping,
)
from rllib_hpo.experiments.cluster.driver import DRIVER, OLDER_CUDA, TORCH, TORCH_CUDA, image_driver
from rllib_hpo.rllib._private import prepare_cluster_config, validate_cluster_config
from rllib_hpo.rllib.machines import LOCAL, ROLLOUTS

TOKEN_FILE = "~/.ray/auth_token"
WORLD = ("0.0.0.0/0", "::/0")
START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    *START_COMMANDS,
)

_COMMON = {
    "type",
    "disable_launch_config_check",
    "disable_node_updaters",
    "foreground_node_launch",
    "worker_liveness_check",
    "worker_rpc_drain",
}
_CLOUD = {"region", "availability_zone", "cache_stopped_nodes", "use_internal_ips"}
PROVIDER_KEYS = {
    "aws": _COMMON | _CLOUD | {"aws_credentials", "cloudwatch", "key_pair", "security_group"},
    "gcp": _COMMON | _CLOUD | {"gcp_credentials", "project_id"},
    "local": _COMMON
    | {"coordinator_address", "external_head_ip", "head_ip", "use_internal_ips", "worker_ips"},
}
REQUIRED = {
    "aws": {"region"},
    "gcp": {"region", "availability_zone", "project_id"},
    "local": {"head_ip", "worker_ips"},
}
"""Keys under `provider` that Ray's sources read; Ray itself accepts any."""


def check(document: YamlLines, findings: Findings) -> None:
    """Check a file of `ray up`."""
    _check_provider(document, findings)
    if not len(findings):
        _check_with_ray(document, findings)
    _check_limits(document, findings)
    _check_mounts(document, findings)
    _check_quotes(document, findings)
    _check_starts(document, findings)
    provider = mapping(document.values.get("provider"))
    if provider.get("type") == "aws":
        _check_aws(document, findings)
    elif provider.get("type") == "gcp":
        _check_gcp(document, findings)
    elif provider.get("type") == LOCAL:
        _check_local(document, findings)


def _check_provider(document: YamlLines, findings: Findings) -> None:
    provider = mapping(document.values.get("provider"))
    kind = str(provider.get("type"))
    if kind not in PROVIDER_KEYS:
        close = nearest(kind, PROVIDER_KEYS)
        remedy = f"did you mean '{close}'?" if close else f"write one of {', '.join(sorted(PROVIDER_KEYS))}"
        findings.add(document.line(("provider", "type")), f"provider.type is '{kind}'", remedy)
        return
    for key in sorted(set(provider) - PROVIDER_KEYS[kind], key=str):
        findings.unknown(
            document.line(("provider", key)), str(key), f"provider for {kind}", PROVIDER_KEYS[kind]
        )
    coordinated = "coordinator_address" in provider
    for key in sorted(REQUIRED[kind] - set(provider)):
        if not coordinated:
            findings.add(document.line(("provider",)), f"provider has no '{key}'", f"add '{key}'")
    for key in ("aws_credentials", "gcp_credentials"):
        if key in provider:
            findings.add(
                document.line(("provider", key)),
                f"provider.{key} puts a secret into this file and on the head node",
                "leave it out: `ray up` uses your command line's credentials, the nodes their instance role",
            )


def _check_with_ray(document: YamlLines, findings: Findings) -> None:
    """Add every violation of Ray's schema, then Ray's other errors."""
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    before = len(findings)
    prepared: dict[str, Any] = {}
    reason = ""
    # Ray's command line prints, and ends the program, where it does not like a file.
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), _silent():
        try:
            prepared = prepare_cluster_config(copy.deepcopy(document.values))
            check_schema(document, prepared | document.values, schema, "", findings)
            validate_cluster_config(prepared)
        except (Exception, SystemExit) as error:  # noqa: BLE001  (anything Ray raises is about the file)
            reason = " ".join(str(error).splitlines()[:1]) or " ".join(said.getvalue().split())[:200]
    if reason and len(findings) == before:
        place = next(((key,) for key in document.values if f"`{key}`" in reason), ())
        findings.add(document.line(place), "Ray rejects this file", f"it says: {reason}")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)


def _check_limits(document: YamlLines, findings: Findings) -> None:
    values = document.values
    if "max_workers" not in values:
        findings.add(
            1,
            "max_workers is missing, and Ray's default is 2",
            "set it to the most workers you want to pay for",
        )
    if "idle_timeout_minutes" not in values:
        findings.add(
            1,
            "idle_timeout_minutes is missing",
            "set it to the minutes after which an idle worker ends, for example 10",
        )
    for name, node_type in mapping(values.get("available_node_types")).items():
        node_type = mapping(node_type)
        least, most = node_type.get("min_workers", 0), node_type.get("max_workers", values.get("max_workers"))
        if isinstance(least, int) and isinstance(most, int) and least > most:
            findings.add(
                document.line(("available_node_types", name, "min_workers")),
                f"min_workers {least} of {name} is above its max_workers {most}",
                "raise one or lower the other",
            )


def _check_mounts(document: YamlLines, findings: Findings) -> None:
    mounts = mapping(document.values.get("file_mounts"))
    for target, source in mounts.items():
        if not _exists(str(source)):
            remedy = MAKE_TOKEN if source == TOKEN_FILE else f"paths are relative to {Path.cwd()}"
            findings.add(
                document.line(("file_mounts", target)), f"file_mounts: {source} does not exist", remedy
            )
        elif target == TOKEN_FILE and Path(str(source)).expanduser().stat().st_mode & 0o077:
            findings.add(
                document.line(("file_mounts", target)),
                f"{source} can be read by others on this machine",
                f"chmod 600 {source}",
            )
    if TOKEN_FILE not in mounts:
        findings.add(
            document.line(("file_mounts",)), "file_mounts does not copy the token to the nodes",
            f"add `{TOKEN_FILE}: {TOKEN_FILE}`",
        )  # fmt: skip
    elif not any("chmod 600" in text and "auth_token" in text for _, text in commands(document)):
        findings.add(
            document.line(("file_mounts", TOKEN_FILE)), "no command makes the token file private on the nodes",
            f"add `chmod 600 {TOKEN_FILE}` to setup_commands",
        )  # fmt: skip


def _exists(source: str) -> bool:
    try:
        return Path(source).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long a name, no such user, a null byte
        return False


def commands(document: YamlLines) -> Iterator[tuple[Place, str]]:
    """Every command that nodes run, and its path."""
    for key in COMMANDS:
        listed = document.values.get(key)
        for i, text in enumerate(listed if isinstance(listed, list) else []):
            yield (key, i), str(text)


def _check_quotes(document: YamlLines, findings: Findings) -> None:
    """Check for ` #` in commands, which begins a comment in YAML even within a command's quotes."""
    for place, text in commands(document):
        try:
            shlex.split(text)
        except ValueError:
            findings.add(
                document.line(place),
                f"{place[0]} has a command with an unclosed quote",
                "close it; if the command continues after a ` #`, write it on the line after `- >-`",
            )


def _check_starts(document: YamlLines, findings: Findings) -> None:
    """Check that Ray is started with a token, and its dashboard on the head only."""
    for key in START_COMMANDS:
        if not document.values.get(key):
            findings.add(
                1, f"{key} is missing, and Ray's defaults start without a token and expose the dashboard",
                "copy those of cluster/gpu.yaml",
            )  # fmt: skip
    if not document.values.get("setup_commands") and not document.values.get("docker"):
        findings.add(
            1,
            "setup_commands is missing, and Ray's defaults install a nightly build",
            "copy those of cluster/gpu.yaml",
        )
    for place, text in commands(document):
        line = document.line(place)
        if "ray start" in text and not TOKEN_MODE.search(text):
            findings.add(
                line,
                f"{place[0]} starts Ray without RAY_AUTH_MODE=token, so anyone who can reach it can run code on it",
                "write `RAY_AUTH_MODE=token ray start`",
            )
        for match in DASHBOARD_HOST.finditer(text):
            if match[1] not in LOCALHOST:
                findings.add(
                    line, f"the dashboard listens on {match[1]}",
                    "write --dashboard-host=127.0.0.1, and use `ssh -L` or `ray dashboard`",
                )  # fmt: skip


def _check_local(document: YamlLines, findings: Findings) -> None:
    """Check that on-premises machines declare the same resources at start as in `metadata`."""
    says = ROLLOUTS in mapping(mapping(document.values.get("metadata")).get("workers"))
    starts = [text for (key, _), text in commands(document) if key == "worker_start_ray_commands"]
    if says and not any(f'"{ROLLOUTS}"' in text for text in starts):
        findings.add(
            document.line(("worker_start_ray_commands",)),
            f"metadata says that workers declare '{ROLLOUTS}', but their `ray start` does not",
            f"""add `--resources='{{"{ROLLOUTS}": 1}}'` to that command""",
        )


def _check_aws(document: YamlLines, findings: Findings) -> None:
    _check_rules(document, findings)
    node_types = mapping(document.values.get("available_node_types"))
    for name, node_type in node_types.items():
        config = mapping(mapping(node_type).get("node_config"))
        if not {"SecurityGroupIds", "LaunchTemplate", "NetworkInterfaces"} & set(config):
            findings.add(
                document.line(("available_node_types", name, "node_config")),
                f"{name} names no security group, so Ray creates one with ssh open to the world",
                "name one of yours in node_config, through LaunchTemplate (cluster/aws_setup.sh) or "
                "SecurityGroupIds",
            )
        if name == document.values.get("head_node_type") and "IamInstanceProfile" not in config:
            findings.add(
                document.line(("available_node_types", name, "node_config")),
                f"{name} names no IamInstanceProfile, so Ray gives it full access to EC2 and S3",
                "name one with few permissions (cluster/iam/head-policy.json)",
            )


def _check_rules(document: YamlLines, findings: Findings) -> None:
    rules = mapping(mapping(document.values.get("provider")).get("security_group")).get("IpPermissions")
    for i, rule in enumerate(rules if isinstance(rules, list) else []):
        rule = mapping(rule)
        listed = [rule.get("IpRanges"), rule.get("Ipv6Ranges")]
        ranges = [one for some in listed if isinstance(some, list) for one in some]
        if any(str(address) in WORLD for one in ranges for address in mapping(one).values()):
            port = rule.get("FromPort", "every port")
            findings.add(
                document.line(("provider", "security_group", "IpPermissions", i)),
                f"port {port} is open to the world"
                if isinstance(port, int)
                else f"{port} is open to the world",
                "name your own range, for example 198.51.100.7/32",
            )


def _check_gcp(document: YamlLines, findings: Findings) -> None:
    for name, node_type in mapping(document.values.get("available_node_types")).items():
        place: Place = ("available_node_types", name, "node_config")
        config = mapping(mapping(node_type).get("node_config"))
        if "networkInterfaces" not in config:
            findings.add(
                document.line(place),
                f"{name} names no network, and the project's default network has ssh open to the world",
                "name one of yours in networkInterfaces (cluster/gcp_setup.sh)",
            )
        disks = config.get("disks")
        for i, disk in enumerate(disks if isinstance(disks, list) else []):
            image = mapping(mapping(disk).get("initializeParams")).get("sourceImage")
            _check_driver(document, (*place, "disks", i, "initializeParams", "sourceImage"), image, findings)


def _check_driver(document: YamlLines, place: Place, image: Any, findings: Findings) -> None:
    """Check that an image's driver is new enough for the torch that nodes install."""
    driver = image_driver(str(image))
    # Where the commands name an index of torch for another CUDA, the driver may be older.
    chosen = any("download.pytorch.org/whl/" in text for _, text in commands(document))
    if driver is not None and driver < DRIVER and not chosen:
        findings.add(
            document.line(place),
            f"this image has NVIDIA's driver {driver}, which is too old for torch {TORCH} (CUDA {TORCH_CUDA})",
            f"name an image family with driver {DRIVER} or later, or install torch from {OLDER_CUDA}",
        )

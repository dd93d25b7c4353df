"""Test cluster/gpu.yaml against moto's mock of AWS, with a machine of the lab as head.

As a user does, the tests prepare the account by cluster/aws_setup.sh and inspect it with the `aws` program.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab import HEAD, HOME, WORKSTATION, Lab, brought_up, running_lab, wait_until
from tests.experiments.lives import REPOSITORY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

RANGE, BUCKET = "198.51.100.7/32", "rllib-hpo-results-of-a-test"
AWS = {
    "AWS_ENDPOINT_URL": f"http://{WORKSTATION}:5055",
    "AWS_DEFAULT_REGION": "us-west-2",
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_PAGER": "",
}
INTERNET = "astral.sh|/uv |apt-get|/srv/rllib-hpo"
"""Setup commands that need the Internet. The last is the shared directory's, which needs the NFS server before it."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Run a lab with a prepared account of the mock."""
    with running_lab(tmp_path_factory.mktemp("lab") / "sshd.log", needs=["aws"], **AWS) as running:
        running.make_token()
        running.start(
            *("moto_server", "--host", WORKSTATION, "--port", "5055"),
            stdout=subprocess.DEVNULL,
            variables={"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"},
        )
        running.wait_for_port(WORKSTATION, 5055)
        image = aws(running, "ec2", "describe-images", "--owners", "amazon")["Images"][0]["ImageId"]
        setup = [str(REPOSITORY / "cluster" / "aws_setup.sh"), RANGE, BUCKET]
        assert f"lets {RANGE} in" in running.run(*setup, **AWS, AMI=image)
        yield running


def aws(lab: Lab, *words: str) -> Any:
    """Return the mock's reply to a command."""
    return json.loads(lab.run("aws", *words, "--output", "json", **AWS) or "{}")


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Path:
    """Bring up the cluster and return its file. The key pair exists already, since the machine must know it."""
    key = HOME / ".ssh" / "id_ed25519"
    lab.run("cp", "-p", str(key), str(HOME / ".ssh" / "ray-autoscaler_us-west-2.pem"))
    words = ["--key-name", "ray-autoscaler_us-west-2", "--public-key-material", f"fileb://{key}.pub"]
    aws(lab, "ec2", "import-key-pair", *words)
    # The mock's addresses lead nowhere; all ssh goes to the head.
    proxy = lab.home() / "to_head"
    proxy.write_text(f"#!/bin/sh\nexec ssh -q -W {HEAD}:22 ray@head\n")
    proxy.chmod(0o755)
    text = (REPOSITORY / "cluster" / "gpu.yaml").read_text()
    user = "  ssh_user: ubuntu\n"
    assert text.count(user) == 1
    text = text.replace(user, f"{user}  ssh_proxy_command: {HOME}/to_head\n")
    return brought_up(lab, text, INTERNET, **AWS)


def instances(lab: Lab) -> list[Any]:
    """Return all instances that the mock ever started for the cluster."""
    tag = "Name=tag:ray-cluster-name,Values=rllib-hpo-gpu"
    found = aws(lab, "ec2", "describe-instances", "--filters", tag)["Reservations"]
    return [instance for reservation in found for instance in reservation["Instances"]]


def test_the_head_is_up(cluster: Path, lab: Lab) -> None:
    status = lab.run("ray", "exec", str(cluster), "ray status", **AWS)
    assert "1 head" in status
    assert any("raylet/raylet" in line for line in lab.ray_processes("head"))


def test_what_is_recorded_of_it(cluster: Path, lab: Lab) -> None:
    (head,) = instances(lab)
    assert head["State"]["Name"] == "running"
    assert head["InstanceType"] == "m6i.large"
    tags = {tag["Key"]: tag["Value"] for tag in head["Tags"]}
    assert tags["ray-cluster-name"] == "rllib-hpo-gpu"
    assert tags["ray-node-type"] == "head"
    assert tags["ray-user-node-type"] == "head"
    assert head["IamInstanceProfile"]["Arn"].endswith("instance-profile/rllib-hpo-head")
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert head["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    assert [group["GroupName"] for group in head["SecurityGroups"]] == ["rllib-hpo"]


def test_ssh_is_open_to_the_range_alone(cluster: Path, lab: Lab) -> None:
    """Ray makes no security group of its own, which would be open to everybody."""
    groups = {
        group["GroupName"]: group for group in aws(lab, "ec2", "describe-security-groups")["SecurityGroups"]
    }
    assert {*groups} == {"default", "rllib-hpo"}
    ranges = {
        (rule.get("FromPort"), each["CidrIp"])
        for rule in groups["rllib-hpo"]["IpPermissions"]
        for each in rule["IpRanges"]
    }
    assert ranges == {(22, RANGE)}
    among = [
        pair["GroupId"] for rule in groups["rllib-hpo"]["IpPermissions"] for pair in rule["UserIdGroupPairs"]
    ]
    assert among == [groups["rllib-hpo"]["GroupId"]]


def test_the_roles_have_the_policies_of_this_repository(cluster: Path, lab: Lab) -> None:
    """There is no other policy: Ray attaches full rights over EC2 and S3 to a role that it makes itself."""
    roles = {role["RoleName"] for role in aws(lab, "iam", "list-roles")["Roles"]}
    assert {"rllib-hpo-head", "rllib-hpo-worker"} == {
        role for role in roles if "ray" in role or "rllib" in role
    }
    for role, names in (("head", ["results", "workers"]), ("worker", ["results"])):
        words = ["--role-name", f"rllib-hpo-{role}"]
        assert aws(lab, "iam", "list-attached-role-policies", *words)["AttachedPolicies"] == []
        assert sorted(aws(lab, "iam", "list-role-policies", *words)["PolicyNames"]) == names
    block = aws(lab, "s3api", "get-public-access-block", "--bucket", BUCKET)["PublicAccessBlockConfiguration"]
    assert all(block.values())


def test_down_ends_it(cluster: Path, lab: Lab) -> None:
    lab.run("timeout", "400", "ray", "down", "-y", str(cluster), **AWS)
    assert {instance["State"]["Name"] for instance in instances(lab)} == {"terminated"}
    wait_until(lambda: not lab.ray_processes("head"))

"""Submit sweeps as jobs of a Ray cluster, follow, list and stop them.

Ray reads the cluster's token (RAY_AUTH_TOKEN, ~/.ray/auth_token, where RAY_AUTH_MODE=token) and puts it into
the headers of requests; nothing here ever holds it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

import rllib_hpo
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.cluster.nodes import REPORT
from rllib_hpo.experiments.jobs.request import OTHER_VERSION, Request, entrypoint, pack, quoted, runtime_env
from rllib_hpo.results.provenance import git_commit
from rllib_hpo.rllib._private import JobClientHooks

POLL_S = 1.0
RECONNECT_TIMEOUT_S = 600.0
"""Seconds of retries before `follow` gives up on a cluster that does not answer; the job continues."""
TIMEOUTS_S = (10.0, 120.0)  # to connect, and to answer
FIRST_TIMEOUTS_S = (10.0, 15.0)  # the same when the cluster is asked for its version, which takes it no time


class Unreachable(UserError):
    """The cluster does not answer; a retry may succeed."""


class Job(NamedTuple):
    """A sweep on a cluster."""

    job_id: str
    state: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    exit_code: int | None
    message: str
    sweep: str
    storage: str
    """URI of the sweep on storage, or ""."""
    out: str
    """Its directory, on the head."""
    started: float | None
    """Seconds since 1970."""

    @property
    def ended(self) -> bool:
        """Whether the state is final."""
        return self.state not in ("PENDING", "RUNNING")


class Client(JobClientHooks, JobSubmissionClient):
    """Ray's job client with timeouts; Ray's own waits forever for a cluster that does not answer."""

    def request_options(self, *arguments: Any) -> dict[str, Any]:
        """Timeouts to connect and to answer; shorter for the first request."""
        return {"timeout": FIRST_TIMEOUTS_S if "/api/version" in arguments else TIMEOUTS_S}


def connect(address: str) -> Client:
    """Connect to the cluster whose dashboard is at `address`.

    Raises:
        UserError: If it does not answer, refuses, or runs another Ray.
    """
    if not re.match(r"https?://\S+$", address):
        raise UserError(
            f"--address {address} must be the address of a dashboard, for example http://127.0.0.1:8265."
        )
    for chatty in (
        "dashboard.modules.dashboard_sdk",
        "dashboard.modules.job.sdk",
        "_private.runtime_env.packaging",
    ):
        logging.getLogger(f"ray.{chatty}").setLevel(logging.WARNING)
    # Ray's client prefers these, which may name another cluster, to the address it is given.
    hidden = {name: os.environ.pop(name, None) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    try:
        with explained(address):
            client = Client(address)
    finally:
        os.environ.update({name: value for name, value in hidden.items() if value is not None})
    if client.ray_version != ray.__version__:
        raise UserError(
            f"The cluster at {address} runs Ray {client.ray_version}, but this machine has {ray.__version__}: "
            "install the same version of rllib_hpo on both."
        )
    return client


@contextmanager
def explained(address: str, job_id: str = "") -> Iterator[None]:
    """Turn errors of requests into a UserError of one sentence.

    Raises:
        Unreachable: If the cluster does not answer.
        UserError: If it refuses, or knows no such job.
    """
    try:
        yield
    except AuthenticationError as error:
        raise UserError(_refused(address, str(error))) from None
    except aiohttp.WSServerHandshakeError as error:
        raise Unreachable(
            f"The cluster at {address} responds with status {error.status} instead of a log."
        ) from None
    except (ConnectionError, requests.ConnectionError, requests.Timeout, aiohttp.ClientError):
        raise Unreachable(
            f"Nothing responds at {address}: is the cluster up, and the tunnel to its dashboard open?"
        ) from None
    except (requests.RequestException, ValueError, KeyError):
        raise UserError(f"The server at {address} is not the dashboard of a Ray cluster.") from None
    except RuntimeError as error:
        text = str(error)
        if job_id and "status code 404" in text:
            raise UserError(
                f"The cluster at {address} has no job {job_id}; `rllib-hpo status --address {address}` lists them."
            ) from None
        if "status code 5" in text or "WebSocket" in text:
            raise Unreachable(
                f"The cluster at {address} reports a server error: {_first_line(text)}."
            ) from None
        raise UserError(f"The cluster at {address} rejects the request: {_first_line(text)}.") from None


def _refused(address: str, text: str) -> str:
    if "Forbidden" in text or "authentication failed" in text.lower():
        return (
            f"The cluster at {address} rejects the token (403): RAY_AUTH_TOKEN or, if that is unset, "
            "~/.ray/auth_token differs from the cluster's token."
        )
    return (
        f"The cluster at {address} requires a token (401): put the cluster's token into ~/.ray/auth_token (mode "
        "0600) or RAY_AUTH_TOKEN, and set RAY_AUTH_MODE=token."
    )


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0].rstrip(". ")[:300]


def submit(client: Client, request: Request) -> str:
    """Submit a sweep; returns the job's id, which is the same if the same sweep is submitted again.

    Raises:
        UserError: If it runs or has run there already, or the cluster refuses it.
    """
    address = client.get_address()
    job_id = _free_id(client, request)
    out = request.out or f"~/runs/{job_id}"
    with tempfile.TemporaryDirectory() as folder, explained(address):
        pack(request, Path(folder))
        client.submit_job(
            entrypoint=entrypoint(request, out),
            submission_id=job_id,
            runtime_env=runtime_env(folder, request.pip, request.extra),
            metadata={
                "sweep": request.name,
                "storage": request.storage,
                "out": out,
                "rllib_hpo": rllib_hpo.__version__,
                "git_commit": git_commit(),
            },
        )
    return job_id


def _free_id(client: Client, request: Request) -> str:
    """Job id NAME-DIGEST, with a number if a job of that id failed or was stopped."""
    address = client.get_address()
    digest = hashlib.sha256(repr((request.words, request.out, request.pip)).encode())
    for path in sorted(request.files.values()):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    name = re.sub(r"[^A-Za-z0-9_-]", "-", request.name)
    states = {job.job_id: job.state for job in jobs(client)}
    for attempt in range(1_000):
        job_id = f"{name}-{hashlib.sha256(f'{digest.hexdigest()}{attempt}'.encode()).hexdigest()[:8]}"
        state = states.get(job_id)
        if state is None:
            return job_id
        if state in ("PENDING", "RUNNING"):
            again = f"rllib-hpo submit --attach {job_id} --address {address}"
            raise UserError(
                f"This sweep is already on the cluster as {job_id} ({state}); follow it with `{again}`."
            )
        if state == "SUCCEEDED":
            if request.resumes:  # what is done runs nothing again
                continue
            raise UserError(
                f"This sweep has already run on the cluster as {job_id}; to run it again, give another --out or "
                "--storage."
            )
    raise UserError(f"{address} already has a thousand failed jobs of this sweep.")


def jobs(client: Client) -> list[Job]:
    """All sweeps of a cluster, newest last.

    Raises:
        UserError: If it cannot be asked.
    """
    with explained(client.get_address()):
        found = [_job(details) for details in client.list_jobs() if "sweep" in (details.metadata or {})]
    return sorted(found, key=lambda job: job.started or 0.0)


def get_job(client: Client, job_id: str) -> Job:
    """A sweep on the cluster.

    Raises:
        UserError: If there is no such job, or the cluster cannot be asked.
    """
    with explained(client.get_address(), job_id):
        return _job(client.get_job_info(job_id))


def _job(details: Any) -> Job:
    about = details.metadata or {}
    return Job(
        str(details.submission_id),
        getattr(details.status, "value", str(details.status)),
        details.driver_exit_code,
        details.message or "",
        about.get("sweep", ""),
        about.get("storage", ""),
        about.get("out", ""),
        None if details.start_time is None else details.start_time / 1000,
    )


def stop(client: Client, job_id: str) -> None:
    """Stop a job after its running trials have saved.

    Raises:
        UserError: If there is no such job, or it has ended.
    """
    job = get_job(client, job_id)
    if job.ended:
        raise UserError(f"The job {job_id} has already ended ({job.state}).")
    with explained(client.get_address(), job_id):
        client.stop_job(job_id)


def follow(
    client: Client, job_id: str, write: Callable[[str], None], timeout_s: float = RECONNECT_TIMEOUT_S
) -> Job:
    """Write a job's log as it grows until the job ends; retry while the cluster does not answer.

    Raises:
        UserError: If there is no such job, or the cluster stays away.
    """
    log, answered = _Log(write), time.monotonic()
    get_job(client, job_id)  # what is wrong from the start is no interruption
    while True:
        try:
            job = get_job(client, job_id)
            if job.state != "PENDING" and not (job.ended and job.exit_code is None and job.state == "FAILED"):
                with explained(client.get_address(), job_id):
                    asyncio.run(log.tail(client, job_id))
                job = get_job(client, job_id)
            answered = time.monotonic()
            if job.ended:
                return job
        except Unreachable as error:
            if time.monotonic() - answered > timeout_s:
                again = f"rllib-hpo submit --attach {job_id} --address {client.get_address()}"
                raise UserError(
                    f"{error} The job keeps running if its cluster does; follow it with `{again}`."
                ) from None
        time.sleep(POLL_S)


class _Log:
    """Position in a log, since each connection sends it from the beginning."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._written = write, 0

    async def tail(self, client: Client, job_id: str) -> None:
        position = 0
        async for text in client.tail_job_logs(job_id):
            position += len(text)
            if position > self._written:
                self._write(text[len(text) - (position - self._written) :])
                self._written = position


def ask_nodes(client: Client, directory: str) -> dict[str, Any]:
    """Get a report of every node of a cluster, through a small job.

    Args:
        client: Of the cluster.
        directory: Which all nodes should see.

    Raises:
        UserError: If the job fails.
    """
    with explained(client.get_address()):
        job_id = client.submit_job(
            entrypoint=f"python -m rllib_hpo.experiments.cluster.nodes {quoted(directory)}",
            submission_id=f"doctor-{secrets.token_hex(4)}",
        )
    said: list[str] = []
    job = follow(client, job_id, said.append)
    for text in "".join(said).splitlines():
        if text.startswith(REPORT):
            answers: dict[str, Any] = json.loads(text.removeprefix(REPORT))
            return answers
    if "No module named" in "".join(said):
        raise UserError("the head node's `python` has no rllib_hpo: install it there, or submit with --pip.")
    last = ("".join(said).strip().splitlines() or [_first_line(job.message)])[-1]
    raise UserError(f"the job {job_id} that queries the nodes failed: {last[:300]}")


def exit_code(job: Job) -> int:
    """Exit code of the sweep: 0 if all trials are done, 130 if it was stopped.

    Raises:
        UserError: If trials failed (exit code 2), or the job did.
    """
    if job.state == "SUCCEEDED":
        return 0
    if job.state == "STOPPED" or job.exit_code == 130:
        return 130
    reasons = {
        2: "trials failed, or the sweep was rejected; see its log",
        OTHER_VERSION: f"the cluster does not have rllib_hpo {rllib_hpo.__version__}: install it on all nodes, or "
        "submit with --pip",
        127: "there is no `python` on the cluster's PATH",
        None: _first_line(job.message),
    }
    ended = f"its process ended with exit code {job.exit_code}"
    raise UserError(f"The job {job.job_id} failed: {reasons.get(job.exit_code, ended)}.")

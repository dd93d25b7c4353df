"""Run an S3 server on this machine behind a network that can be switched off and on."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.experiments.token_cluster import free_ports

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "dummy-id", "AWS_SECRET_ACCESS_KEY": "dummy-secret"}


class Proxy:
    """Forward TCP to the server; it can be switched off and on."""

    def __init__(self, target: int) -> None:
        self.target, (self.port,) = target, free_ports(1)
        self._open: list[socket.socket] = []
        self.on()

    def on(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=[self._listening], daemon=True).start()

    def off(self) -> None:
        for one in [self._listening, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def uri(self, path: str) -> str:
        """Return the URI of a place on the server; `path` begins with the bucket."""
        return f"s3://{path}?endpoint_override=http://127.0.0.1:{self.port}&region=us-east-1&scheme=http"

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listening.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self._open += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextmanager
def s3_server(log: Path) -> Iterator[Proxy]:
    """Run a server with a bucket called "bucket", behind a proxy; child processes get its credentials.

    It needs moto and flask-cors. Only the proxy is switched off, since a restarted server would have lost its data.
    """
    (port,) = free_ports(1)
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=output,
            stderr=output,
        )
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        os.environ.update(CREDENTIALS)
        yield Proxy(port)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        server.kill()
        server.wait()

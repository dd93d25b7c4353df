"""Simulate W&B's server on this machine: log requests, accept one account or none, and store views."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeServer:
    """Hold the server's address and the requests it received."""

    url: str
    entity: str | None
    """Entity that owns every key; with None the server rejects all keys."""
    authorizations: set[str] = field(default_factory=set)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, request: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return status and body for a GraphQL request."""
        if self.entity is None:
            return 401, {"errors": [{"message": "invalid API key"}]}
        if "upsertView" in request["query"]:
            view = {"id": "42", "name": request["variables"]["name"]}
            return 200, {"data": {"upsertView": {"view": view, "inserted": True}}}
        viewer = {"id": "1", "entity": self.entity, "username": self.entity, "flags": "{}", "email": ""}
        return 200, {"data": {"viewer": viewer, "serverInfo": {}}}


@contextmanager
def fake_server(entity: str | None = None) -> Iterator[FakeServer]:
    """Serve on a free port while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                request = json.loads(body)
            except ValueError:
                request = {"query": ""}
            fake.authorizations.add(self.headers.get("Authorization", "").removeprefix("Basic "))
            fake.requests.append(request)
            self._send(*fake.answer(request))

        def do_GET(self) -> None:
            self._send(404, {})

        def _send(self, status: int, answer: Mapping[str, Any]) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Do nothing: keep the console clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake = FakeServer(f"http://127.0.0.1:{server.server_port}", entity)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""A server in a thread of the test, and a client that can send what no browser would."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from autocompress.service.app import create_app
from autocompress.service.settings import Settings
from autocompress.service.tokens import Tokens

TOKEN = "t" * 43
OTHER = "o" * 43
# Stands in for a search: does nothing until it is asked to end.
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    app: FastAPI
    port: int
    workspace: Path
    tokens: Mapping[str, str] = field(default_factory=lambda: {"owner": TOKEN, "ann": OTHER})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def parts(self):
        return self.app.state.service

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        token: str | None = TOKEN,
    ) -> Answer:
        """One request; `body` is bytes or JSON values. Every header can be overridden, Host too."""
        own = {"Host": f"127.0.0.1:{self.port}"}
        if token is not None:
            own["Authorization"] = f"Bearer {token}"
        if body is not None and not isinstance(body, bytes):
            body, own["Content-Type"] = json.dumps(body).encode(), "application/json"
        own |= headers or {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in own.items():
                connection.putheader(name, value)
            if body is not None and "Content-Length" not in own and "Transfer-Encoding" not in own:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it was read
                if body is not None:
                    connection.send(body)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, path: str, **more: Any) -> Answer:
        return self.send("GET", path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> Answer:
        return self.send("POST", path, {} if body is None else body, **more)

    @contextlib.contextmanager
    def stream(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[Iterator[tuple[str, str, Any]]]:
        """Events of a stream as (kind, id, data)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}", **(headers or {})})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        try:
            yield _events(response)
        finally:
            response.close()
            connection.close()


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, str, Any]]:
    fields: dict[str, str] = {}
    for line in response:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield fields.get("event", ""), fields.get("id", ""), json.loads(fields["data"])
            fields = {}


@contextlib.contextmanager
def serving(workspace: Path, command=lambda _workspace, _job, _server: SLEEP, **settings: Any) -> Iterator[Server]:
    """A server on a free port; it has ended, with all that it started, when the block has."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    given = Settings(workspace=workspace, port=port, **{"min_free_bytes": 0, **settings})
    app = create_app(given, tokens=Tokens({"owner": TOKEN, "ann": OTHER}), command=command)
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            threading.Event().wait(0.01)
        assert server.started, "the server did not start"
        yield Server(app, port, workspace)
    finally:
        if hasattr(app.state, "service"):
            app.state.service.hub.close()
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive(), "the server does not end"

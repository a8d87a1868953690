"""`autocompress --server URL`: the verbs of the command line over the REST interface of a server.

Uses the standard library alone, so a machine that only asks needs no extra. The token comes from
`AUTOCOMPRESS_TOKEN`; for a server of this machine, from the workspace as well.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

from autocompress.errors import AutocompressError, ConstraintError, NotFoundError, ServerError, UsageError, first_line

_TIMEOUT_S = 30.0
_FILE = ".server-tokens"  # as `tokens.py` writes it, which a client need not load
_PATIENCE, _RETRY_S = 60, 1.0  # looks in vain: a server that is started again first ends what it runs
_KINDS: dict[int, type[AutocompressError]] = {404: NotFoundError, 409: UsageError, 413: UsageError, 422: UsageError}
_OVER = ("finished", "interrupted", "cancelled", "failed")


class Unreachable(ServerError):
    """Nobody answers at the address, or the connection broke: trying again may help."""


class Client:
    """A server, as the command line sees it.

    Args:
        url: "http://127.0.0.1:8765", with or without an end slash.
        workspace: whose token opens a server of this machine.
    Raises:
        UsageError: no such kind of address.
        ServerError: there is no token for it, or it is no address at all.
    """

    def __init__(self, url: str, *, workspace: Path) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            _ = parts.port  # is read here for the first time
        except ValueError as error:
            raise ServerError(f"{url!r} is no address ({error}); give one like http://127.0.0.1:8765") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.path.strip("/"):
            raise UsageError(f"--server takes an address like http://127.0.0.1:8765, got {url!r}")
        self._base = f"{parts.scheme}://{parts.netloc}"
        self._token = _token(parts.hostname, workspace)
        # No proxy: it would see the token, and a server of this machine is not to be asked for through one.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

    # -- what the verbs need

    def study(self, name: str) -> dict[str, Any]:
        """Summary of the study of this name.

        Raises:
            NotFoundError: the server has none.
        """
        found: list[dict[str, Any]] = self.get("/studies", name=name)["items"]
        if not found:
            raise NotFoundError(
                f"no study {name!r} on {self._base}; `autocompress list --server {self._base}` shows them"
            )
        return found[0]

    def studies(self) -> Iterator[dict[str, Any]]:
        """All studies, newest first."""
        after = None
        while True:
            page = self.get("/studies", limit=200, after=after)
            yield from page["items"]
            if (after := page["next"]) is None:
                return

    def trials(self, study_id: str) -> Iterator[dict[str, Any]]:
        """All trials of a study, without their curves."""
        after = -1
        while True:
            page = self.get(f"/studies/{study_id}/trials", limit=1000, after=after)
            yield from page["items"]
            if page["next"] is None:
                return
            after = page["next"]

    def get(self, path: str, **query: object) -> Any:
        """The JSON of a resource."""
        given = urllib.parse.urlencode({key: value for key, value in query.items() if value is not None})
        return self._json("GET", f"{path}?{given}" if given else path)

    def post(self, path: str, body: Mapping[str, Any] | None = None, **headers: str) -> Any:
        """The JSON of what a POST made."""
        data = json.dumps(dict(body or {})).encode()
        return self._json("POST", path, data, {"content-type": "application/json", **headers})

    def upload(self, file: BinaryIO, *, size: int, **query: str) -> Any:
        """Send weights; what the server knows of them then."""
        path = f"/models?{urllib.parse.urlencode(query)}"
        headers = {"content-type": "application/octet-stream", "content-length": str(size)}
        return self._json("POST", path, file, headers)

    def download(self, path: str, out: IO[bytes]) -> None:
        """Write what the server sends to a file."""
        with self._open("GET", path, None, {}) as response:
            while chunk := self._read(response, 1 << 20):
                out.write(chunk)

    def follow(self, study_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Events of a study (kind, data) until it is over, through lost connections."""
        last_id, patience = None, _PATIENCE
        while True:
            try:
                for kind, last, data in self._events(study_id, last_id):
                    last_id, patience = last or last_id, _PATIENCE
                    yield kind, data
                    if kind == "state" and data["state"] in _OVER:
                        return
            except (OSError, http.client.HTTPException, Unreachable):
                pass
            patience -= 1
            if patience < 0:
                raise ServerError(f"the connection to {self._base} was lost; the search goes on if the server does")
            time.sleep(_RETRY_S)

    def _events(self, study_id: str, last_id: str | None) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
        headers = {"last-event-id": last_id} if last_id else {}
        with self._open("GET", f"/studies/{study_id}/events", None, headers) as response:
            fields: dict[str, str] = {}
            for line in response:
                text = line.decode().rstrip("\r\n")
                if not text and "data" in fields:
                    yield fields.get("event", ""), fields.get("id"), json.loads(fields["data"])
                if not text:
                    fields = {}
                elif not text.startswith(":"):
                    name, _, value = text.partition(":")
                    fields[name] = value.removeprefix(" ")

    # -- requests

    def _json(self, method: str, path: str, data: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        with self._open(method, path, data, headers or {}) as response:
            content = self._read(response)
        try:
            return json.loads(content)
        except ValueError as error:
            raise ServerError(f"{self._base} sent something else than JSON; is it `autocompress serve`?") from error

    def _read(self, response: Any, size: int | None = None) -> bytes:
        try:
            content: bytes = response.read(size)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        return content

    def _open(self, method: str, path: str, data: Any, headers: Mapping[str, str]) -> Any:
        own = {"authorization": f"Bearer {self._token}", "accept": "application/json", **headers}
        try:
            request = urllib.request.Request(f"{self._base}/api/v1{path}", data=data, headers=own, method=method)
            return self._opener.open(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error.code, self._read(error, 100_000)) from error
        except urllib.error.URLError as error:
            raise Unreachable(
                f"cannot reach {self._base} ({error.reason}); is `autocompress serve` running there?"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        except ValueError as error:  # a name that no machine can have, or a token with characters that no header has
            raise ServerError(
                f"{self._base} cannot be asked ({error}); check --server and AUTOCOMPRESS_TOKEN"
            ) from error

    def _broken(self, error: Exception) -> Unreachable:
        return Unreachable(f"{self._base} broke off the connection ({first_line(error)}); try again")

    def _refused(self, status: int, body: bytes) -> AutocompressError:
        try:
            detail = str(json.loads(body)["detail"])
        except (ValueError, KeyError, TypeError):
            detail = f"status {status}"
        if status == 422 and detail.startswith("no artifact meets"):
            return ConstraintError(detail)
        if kind := _KINDS.get(status):
            return kind(detail)
        hint = "; set AUTOCOMPRESS_TOKEN to the token of that server" if status == 401 else ""
        return ServerError(f"{self._base} refused: {detail}{hint}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token goes to the server it was meant for, and to no other."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


def _token(host: str, workspace: Path) -> str:
    if given := os.environ.get("AUTOCOMPRESS_TOKEN"):
        return given
    path = workspace / _FILE
    if host in ("127.0.0.1", "localhost", "::1"):
        try:
            match = re.search(r"^[\w.-]+\s+([\w-]+)\s*$", path.read_text(encoding="utf-8"), re.MULTILINE)
        except OSError:
            match = None
        if match:
            return match[1]
    raise ServerError(f"there is no token for {host}; set AUTOCOMPRESS_TOKEN, or give the server's --workspace")

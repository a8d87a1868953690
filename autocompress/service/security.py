"""The door: every request passes here before anything else sees it.

In this order: the Host header (a page of another name cannot rebind its way in), the size of the body,
who is calling, and for everything that changes something where the request came from. Answers get the
headers that keep a browser from doing more than the pages need.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autocompress.service.observe import Observer, Seen
from autocompress.service.problems import Problem, problem_response
from autocompress.service.settings import Settings
from autocompress.service.tokens import Tokens

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer, a form of ours would post with the origin "null"
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_OPEN = ("/api/v1/health", "/login", "/favicon.ico")  # needs no token
_UPLOADS = ("/api/v1/models",)
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>\d{1,5}))?", re.IGNORECASE)


def cookie_name(port: int) -> str:
    """Cookies are shared by all ports of a host: two servers must not sign each other out."""
    return f"autocompress-{port}"


class Guard:
    """The middleware; what passes has `actor` in its state."""

    def __init__(self, app: ASGIApp, *, settings: Settings, tokens: Tokens, observer: Observer) -> None:
        self._app, self._settings, self._tokens, self._observer = app, settings, tokens, observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        seen = Seen(id=uuid.uuid4().hex[:12], method=scope["method"], path=scope["path"], address=_address(scope))
        scope.setdefault("state", {}).update(request_id=seen.id, address=seen.address)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                _add_headers(MutableHeaders(scope=message), scope, seen.id)
            await send(message)

        try:
            actor = self._admit(scope)
            scope["state"]["actor"] = seen.actor = actor or "-"
            await self._app(scope, self._limited(scope, receive), sending)
        except _Redirected as error:
            await RedirectResponse(error.url, 303)(scope, receive, sending)
        except Problem as problem:
            if seen.status:
                raise
            await problem_response(problem)(scope, receive, sending)
        except Exception as error:
            self._observer.failed(seen, error)
            if seen.status:
                raise
            bug = Problem(500, f"internal error; the log of the server has more under request {seen.id}")
            await problem_response(bug)(scope, receive, sending)
        finally:
            self._observer.seen(seen, scope)

    def _admit(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        self._check_length(scope, headers)
        is_open = scope["path"] in _OPEN or scope["path"].startswith("/static/")
        actor, by_cookie = self._caller(headers)
        if scope["method"] not in SAFE_METHODS:
            self._check_origin(scope, headers, needed=by_cookie or actor is None)
        if actor is None and not is_open:
            self._observer.refused("token")
            if not scope["path"].startswith("/api/") and scope["method"] in SAFE_METHODS:
                raise _Redirected(f"/login?next={quote(scope['path'])}" if scope["path"] != "/" else "/login")
            detail = "a valid token is needed; `autocompress serve` prints an address that holds it"
            raise Problem(401, detail, headers={"www-authenticate": "Bearer"})
        return actor

    def _check_host(self, headers: Headers) -> None:
        given = headers.getlist("host")
        match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
        if match is None or match["name"].lower().strip("[]") not in self._settings.hosts:
            self._observer.refused("host")
            raise Problem(400, "this server does not answer to that host name; see --allowed-host")

    def _check_length(self, scope: Scope, headers: Headers) -> None:
        length = headers.get("content-length")
        if length is not None and (not length.isdecimal() or int(length[:20]) > self._limit(scope)):
            self._observer.refused("size")
            raise Problem(413, f"a request may have at most {self._limit(scope)} bytes")

    def _limit(self, scope: Scope) -> int:
        return self._settings.max_upload_bytes if scope["path"] in _UPLOADS else self._settings.max_body_bytes

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """The body, as long as it keeps its limit: a chunked one does not say how long it is."""
        limit, got = self._limit(scope), 0

        async def receiving() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b"")) if message["type"] == "http.request" else 0
            if got > limit:
                self._observer.refused("size")
                raise Problem(413, f"a request may have at most {limit} bytes")
            return message

        return receiving

    def _caller(self, headers: Headers) -> tuple[str | None, bool]:
        """Who calls, and whether a cookie says so: a browser sends one without being asked."""
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self._tokens.of_token(token.strip()), False
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(cookie_name(self._settings.port))
        except CookieError:
            cookie = None
        return (self._tokens.of_cookie(cookie.value), True) if cookie else (None, False)

    def _check_origin(self, scope: Scope, headers: Headers, *, needed: bool) -> None:
        """What changes something must come from our own pages, or from a program with a token.

        Args:
            needed: whether a browser is calling, which always says where it is.
        """
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site", "same-origin")
        if origin is None:
            if not needed and site in ("same-origin", "none"):
                return
        else:
            there = urlsplit(origin)
            own = (scope.get("scheme", "http"), "https")  # https: a proxy in front that ends TLS
            if (
                there.scheme in own
                and there.netloc.lower() == headers.get("host", "").lower()
                and site == "same-origin"
            ):
                return
        self._observer.refused("origin")
        raise Problem(403, "this request did not come from a page of this server")


class _Redirected(Exception):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url


def _add_headers(headers: MutableHeaders, scope: Scope, request_id: str) -> None:
    for name, value in _HEADERS.items():
        headers[name] = value
    headers["x-request-id"] = request_id
    if "cache-control" not in headers:
        # What a study says is revalidated; what somebody typed or may not see is not kept.
        headers["cache-control"] = "no-cache" if "etag" in headers else "no-store"


def _address(scope: MutableMapping[str, Any]) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "-"

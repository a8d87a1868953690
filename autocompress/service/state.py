"""Everything a running server holds, and the small questions that every route asks."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any, cast

from fastapi import Request
from starlette.responses import Response

from autocompress.service.events import Hub
from autocompress.service.exports import Exports
from autocompress.service.jobs import JobStore
from autocompress.service.observe import Audit, Observer
from autocompress.service.problems import Problem
from autocompress.service.scheduler import Scheduler
from autocompress.service.settings import Settings
from autocompress.service.tokens import Tokens
from autocompress.service.uploads import Models
from autocompress.service.views import Views


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The parts of a server; `app.py` makes and ends them."""

    settings: Settings
    tokens: Tokens
    observer: Observer
    audit: Audit
    jobs: JobStore
    views: Views
    hub: Hub
    exports: Exports
    models: Models
    scheduler: Scheduler

    def check_disk(self) -> None:
        """Refuse to store anything on a disk that is nearly full.

        Raises:
            Problem: 507.
        """
        free = shutil.disk_usage(self.settings.workspace).free
        if free < self.settings.min_free_bytes:
            raise Problem(507, f"the server has {free / 1e6:.0f} MB of disk space left; free some first")

    def note(self, request: Request, action: str, study: str | None, **detail: Any) -> None:
        """An entry of the audit trail about this request."""
        self.audit.write(actor(request), request.state.address, action, study, **detail)


def service(request: Request) -> Service:
    """The server's parts."""
    return cast(Service, request.app.state.service)


def actor(request: Request) -> str:
    """Who calls."""
    return str(request.state.actor)


def is_current(request: Request, etag: str) -> bool:
    """Whether the client has this version already."""
    given = request.headers.get("if-none-match", "")
    return etag in (tag.strip().removeprefix("W/") for tag in given.split(","))


def tagged(etag: str) -> dict[str, str]:
    """Headers of an answer that can be asked for again."""
    return {"etag": etag}


def not_modified(etag: str) -> Response:
    """The answer to somebody who has it already."""
    return Response(status_code=304, headers=tagged(etag))

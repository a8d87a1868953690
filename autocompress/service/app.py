"""Puts the server together, and runs it: `autocompress serve`."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import FrameType

import uvicorn
from fastapi import FastAPI

from autocompress.errors import UsageError
from autocompress.service import pages, problems, routes, routes_work
from autocompress.service.events import Hub
from autocompress.service.exports import Exports
from autocompress.service.jobs import JobStore
from autocompress.service.observe import Audit, Observer, log_to_stderr
from autocompress.service.scheduler import Command, Scheduler, job_command
from autocompress.service.security import Guard
from autocompress.service.settings import Settings
from autocompress.service.state import Service
from autocompress.service.tokens import Tokens, read_tokens
from autocompress.service.uploads import Models
from autocompress.service.views import Views
from autocompress.study.database import Database

_NICER = 10
_BACKLOG = 2048  # as uvicorn has it


def create_app(settings: Settings, *, tokens: Tokens | None = None, command: Command = job_command) -> FastAPI:
    """The application; its parts start and end with it.

    Args:
        tokens: who may call; by default those of the workspace.
        command: what the process of a job is started with.
    Raises:
        UsageError: the workspace cannot be used.
    """
    Database(settings.workspace.absolute()).close()  # makes the folder and the tables
    tokens = tokens or read_tokens(settings.workspace)
    observer = Observer()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        jobs = JobStore(settings.workspace)
        views = Views(settings.workspace, jobs)
        parts = app.state.service = Service(
            settings=settings,
            tokens=tokens,
            observer=observer,
            audit=Audit(settings.workspace),
            jobs=jobs,
            views=views,
            hub=Hub(views),
            exports=Exports(settings.workspace, keep=settings.max_exports),
            models=Models(settings.workspace, keep=settings.max_models),
            scheduler=Scheduler(settings, jobs, command=command),
        )
        parts.scheduler.start()  # searches have the niceness of its thread
        _step_back()
        parts.hub.start()
        parts.exports.start()
        try:
            yield
        finally:
            await parts.hub.stop()
            parts.scheduler.stop()
            parts.exports.stop()
            for opened in (parts.audit, parts.models, views, jobs):
                opened.close()

    app = FastAPI(
        title="autocompress",
        description="Searches of compressed models: start them, watch them, take the files away.",
        docs_url=None,  # its page would fetch scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        lifespan=lifespan,
    )
    problems.install(app)
    for part in (routes, routes_work, pages):
        app.include_router(part.router)
    app.add_middleware(Guard, settings=settings, tokens=tokens, observer=observer)
    return app


def serve(settings: Settings, *, ready: Callable[[str], None]) -> None:
    """Run a server until it is asked to end; searches are interrupted then and go on with the next server.

    Args:
        ready: called with the address that lets a browser in, once the port is ours.
    Raises:
        UsageError: the address is taken, or the workspace cannot be used.
    """
    tokens = _tokens(settings)
    log_to_stderr(tokens)
    listening = _listen(settings)
    settings = replace(settings, port=listening.getsockname()[1])
    app = create_app(settings, tokens=tokens)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=30,
        lifespan="on",
        ws="none",
    )
    server = _Server(config, app)
    ready(f"{settings.url}/login?token={tokens.first}")
    server.run(sockets=[listening])


def _step_back() -> None:
    """Let searches go first: what answers clients gets a tenth of their share of a core that both want.

    On Linux niceness belongs to the thread; the threads that answer requests are started by this one and inherit it.
    """
    if sys.platform == "linux":
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, nice + _NICER))


class _Server(uvicorn.Server):
    """Ends the event streams first: they would keep the server waiting."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        parts = getattr(self._app.state, "service", None)
        if parts is not None:
            parts.hub.close()
        super().handle_exit(sig, frame)


def _tokens(settings: Settings) -> Tokens:
    Database(settings.workspace.absolute()).close()
    return read_tokens(settings.workspace)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns Nagle's delay off only for sockets that name their protocol: 40 ms of every answer.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(_BACKLOG)  # the address is told next: who asks at once waits instead of being refused
    except OSError as error:
        listening.close()
        raise UsageError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another with --port"
        ) from error
    return listening

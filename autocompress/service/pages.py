"""The pages of the dashboard and what they are made of; every number on them comes from the REST interface."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from autocompress.errors import NotFoundError
from autocompress.resources import resource
from autocompress.service.problems import Problem
from autocompress.service.security import cookie_name
from autocompress.service.state import service

router = APIRouter(include_in_schema=False)
_KINDS = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".webmanifest": "application/manifest+json",
}


@router.get("/")
def studies_page(request: Request) -> Response:
    """What runs, what waits, and a form to start a search."""
    return _page(request, "studies")


@router.get("/studies/{study_id}")
def study_page(request: Request, study_id: str) -> Response:
    """One study, live."""
    try:
        name = service(request).views.name_of(study_id)
    except NotFoundError:
        return _missing(request, f"There is no study {study_id} on this server.")
    return _page(request, "study", study_id=study_id, study_name=name)


@router.get("/studies/{study_id}/trials/{number}")
def trial_page(request: Request, study_id: str, number: int) -> Response:
    """One trial."""
    views = service(request).views
    try:
        name = views.name_of(study_id)
        views.store.trial(name, max(-1, min(number, 2**31)))  # no trial has either; SQLite holds no larger ones
    except NotFoundError:
        return _missing(request, f"There is no trial {number} of a study {study_id} on this server.")
    return _page(request, "trial", study_id=study_id, study_name=name, trial=number)


@router.get("/compare")
def compare_page(request: Request) -> Response:
    """Studies over one another."""
    return _page(request, "compare", studies=request.query_params.getlist("study"))


@router.get("/login")
def login_page(request: Request, token: str | None = None, next: str = "/") -> Response:
    """A form for the token; with the token in the address, the way in."""
    if token is not None:
        return _enter(request, token, next)
    return _page(request, "login", next=_inside(next), failed=False)


@router.post("/login")
async def login(request: Request) -> Response:
    """The way in from the form."""
    fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=10)
    return _enter(request, fields.get("token", [""])[0], fields.get("next", ["/"])[0])


@router.post("/logout")
def logout(request: Request) -> Response:
    """The way out."""
    response = RedirectResponse("/login", 303)
    response.delete_cookie(cookie_name(service(request).settings.port), httponly=True, samesite="strict")
    return response


@router.get("/static/plotly.min.js")
def plotly() -> Response:
    """What draws the figures, from the installed plotly."""
    return FileResponse(_plotly(), media_type="text/javascript", headers={"cache-control": "max-age=86400"})


@router.get("/static/{name:path}")
def static(name: str) -> Response:
    """Scripts, styles and pictures of the pages."""
    if (file := _files().get(name)) is None:
        raise Problem(404, "no such file")
    return FileResponse(file, media_type=_KINDS[file.suffix], headers={"cache-control": "no-cache"})


@router.get("/favicon.ico")
def favicon() -> Response:
    """Browsers ask for it whatever the page says."""
    found = next((file for name, file in _files().items() if Path(name).stem == "favicon"), None)
    return FileResponse(found, media_type=_KINDS[found.suffix]) if found else Response(status_code=204)


def _page(request: Request, name: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    from autocompress import __version__

    facts = {"version": __version__, "allow_code": service(request).settings.allow_code, "page": name}
    facts |= {"actor": request.state.actor, **values}
    return HTMLResponse(_templates().get_template(f"{name}.html.jinja").render(facts), status)


def _missing(request: Request, detail: str) -> HTMLResponse:
    return _page(request, "missing", status=404, detail=detail)


def _enter(request: Request, token: str, target: str) -> Response:
    parts = service(request)
    person = parts.tokens.of_token(token)
    if person is None:
        parts.observer.refused("login")
        return _page(request, "login", status=401, next=_inside(target), failed=True)
    response = RedirectResponse(_inside(target), 303)
    response.set_cookie(
        cookie_name(parts.settings.port),
        parts.tokens.cookie(person),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
        max_age=30 * 86400,
    )
    parts.audit.write(person, request.state.address, "login", None)
    return response


def _inside(target: str) -> str:
    """A page of this server, whatever somebody put into a link."""
    inside = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if inside else "/"


@cache
def _templates() -> Environment:
    loader = FileSystemLoader(resource("dashboards"))
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@cache
def _files() -> dict[str, Path]:
    """Every file that may be had, by its name: what is not in this list cannot be asked for."""
    folder = resource("dashboards")
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix in _KINDS)
    return {path.relative_to(folder).as_posix(): path for path in files}


@cache
def _plotly() -> Path:
    from importlib.util import find_spec

    spec = find_spec("plotly")
    assert spec is not None, "plotly is a dependency"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js"
